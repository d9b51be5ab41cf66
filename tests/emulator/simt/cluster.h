// Clusters of blocks: only those of one block are emulated.
#pragma once
#include <cstdint>

namespace simt {

void check_cluster_rank(char const* what, uint32_t rank);  // throws unless it is the running block's, 0
// barrier.cluster: every thread of the block arrives once and then waits once.
void cluster_arrive();
void cluster_wait();
// elect.sync: the same lane of a warp each time, lane 0 unless the schedule is seeded; meets with the whole warp.
uint32_t elected_lane();

}  // namespace simt
