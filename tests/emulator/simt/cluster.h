// Clusters of blocks: only those of one block are emulated.
#pragma once
#include <cstdint>

namespace simt {

void check_cluster_rank(char const* what, uint32_t rank);  // throws unless it is the running block's, 0
// barrier.cluster: every thread of the block arrives once and then waits once.
void cluster_arrive();
void cluster_wait();
// elect.sync by the whole warp. PTX leaves open which lane it is; CUTLASS's pipelines count on lane 0.
uint32_t elected_lane();

}  // namespace simt
