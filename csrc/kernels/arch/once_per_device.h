// What must be done once on every CUDA device, from any number of threads.
#pragma once
#include <atomic>
#include <cstdint>

namespace sage::arch {

// Constant-initialised: a static object of a function costs no guard. The action is idempotent: threads that race may
// each do it, and on devices beyond the 64th it is done every time. A device means its primary context, as long as the
// process has not reset it.
class OncePerDevice {
 public:
  // Does `action`, which returns an error or 0, unless it has succeeded for `device` before; returns its error, or 0.
  template <class Action>
  int operator()(int device, Action const& action) {
    uint64_t const bit = device < 64 ? uint64_t{1} << device : 0;
    if (done_.load(std::memory_order_acquire) & bit) return 0;
    int const error = action();
    if (error == 0) done_.fetch_or(bit, std::memory_order_release);
    return error;
  }

 private:
  std::atomic<uint64_t> done_{0};
};

}  // namespace sage::arch
