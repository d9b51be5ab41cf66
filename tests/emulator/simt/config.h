// What the emulator may vary without changing what a correct kernel computes.
#pragma once
#include <cstdint>

namespace simt {

// Which of the threads that can run runs next.
enum class Schedule {
  kRoundRobin,  // in the order in which they became ready
  kRandom,      // uniformly
  kPriority,  // the warp of the highest random priority; the priorities change now and then: lets warps drift far apart
};

// When an asynchronous copy (cp.async, TMA, wgmma) happens, between its issue and the wait for it.
enum class AsyncTiming { kLate, kEarly, kRandom };

// How the FP8 tensor cores add: exactly, or into a register of 13 fraction bits as those of sm89 and sm90 do.
enum class Accumulate { kExact, kReduced };

struct Config {
  Schedule schedule = Schedule::kRoundRobin;
  uint64_t seed = 0;  // of kRandom and kPriority, and of AsyncTiming::kRandom
  AsyncTiming async = AsyncTiming::kLate;
  Accumulate accumulate = Accumulate::kExact;
};

// The configuration of the next launch. At first that of the environment: SAGE_EMULATOR_SCHEDULE (round_robin,
// random:SEED, priority:SEED), SAGE_EMULATOR_ASYNC (late, early, random), SAGE_EMULATOR_ACCUMULATE (exact, reduced).
// Throws Error for a value that is none of these.
Config configuration();
void configure(Config const& config);
void configure_schedule(char const* text);    // as in the environment
void configure_async(char const* text);       // as in the environment
void configure_accumulate(char const* text);  // as in the environment

}  // namespace simt
