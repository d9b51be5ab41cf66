#pragma once
#include <cstdint>

namespace simt {

struct Stats {
  uint64_t launches = 0;
  uint64_t switches = 0;        // from one CUDA thread to another
  uint64_t collectives = 0;     // warp-wide operations
  uint64_t mma = 0;             // tensor-core instructions of a warp
  uint64_t ldsm_phases = 0;     // 8 rows of 16 bytes, read by ldmatrix in one wavefront if no two share a bank
  uint64_t ldsm_conflicts = 0;  // wavefronts beyond that
  uint64_t stsm_phases = 0;     // the same of stmatrix
  uint64_t stsm_conflicts = 0;

  Stats& operator+=(Stats const& other);
};

// The counters of this OS thread; added to stats() at the end of its share of a launch.
extern __thread Stats t_stats __attribute__((tls_model("initial-exec")));

Stats stats();  // of all launches since reset_stats
void reset_stats();
void collect_stats();  // moves t_stats into stats()

}  // namespace simt
