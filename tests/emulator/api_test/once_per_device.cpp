// arch::OncePerDevice: every device on its own, a failure is tried again, from several threads.
#include "arch/once_per_device.h"

#include <cstdio>
#include <thread>
#include <vector>

namespace {

int failures = 0;

void check(bool passed, char const* what) {
  std::printf("%s: %s\n", what, passed ? "passed" : "FAILED");
  failures += !passed;
}

void one_thread() {
  sage::arch::OncePerDevice once;
  int calls = 0;
  auto const succeed = [&] { return ++calls, 0; };
  auto const fail = [&] { return ++calls, 17; };
  check(once(0, fail) == 17 && once(0, fail) == 17 && calls == 2, "a failure comes back and is tried again");
  check(once(0, succeed) == 0 && calls == 3, "an action that failed may succeed later");
  check(once(0, fail) == 0 && calls == 3, "what succeeded is not done again");
  check(once(1, fail) == 17 && calls == 4, "another device is another matter");
  check(once(1, succeed) == 0 && once(63, succeed) == 0 && calls == 6, "each device once");
  check(once(1, fail) == 0 && once(63, fail) == 0 && once(0, fail) == 0 && calls == 6, "devices are not confused");
  check(once(64, succeed) == 0 && once(64, succeed) == 0 && once(128, fail) == 17 && calls == 9,
        "devices that are not remembered: every time");
}

// After a call returned 0, the action has been done for that device, whoever did it.
void many_threads() {
  constexpr int kThreads = 8, kDevices = 64, kRounds = 200;
  bool in_time = true, often_enough = true, not_too_often = true;
  for (int round = 0; round < kRounds; ++round) {
    sage::arch::OncePerDevice once;
    std::atomic<int> done[kDevices] = {}, ready{0};
    std::atomic<bool> late{false};
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&] {
        ++ready;
        while (ready < kThreads) std::this_thread::yield();
        for (int device = 0; device < kDevices; ++device) {
          once(device, [&] { return ++done[device], 0; });
          if (done[device] == 0) late = true;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    in_time &= !late;
    for (std::atomic<int> const& count : done) {
      often_enough &= count >= 1;
      not_too_often &= count <= kThreads;
    }
    for (int device = 0; device < kDevices; ++device) not_too_often &= once(device, [] { return 1; }) == 0;
  }
  check(in_time, "done when the call returns, with many threads");
  check(often_enough, "done on every device, with many threads");
  check(not_too_often, "remembered, with many threads");
}

}  // namespace

int main() {
  one_thread();
  many_threads();
  std::printf("%d failed\n", failures);
  return failures != 0;
}
