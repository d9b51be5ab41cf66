// What the self-tests share: checks that go on after a failure, and a main() that reports it.
#pragma once
#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>

#include "simt/machine.h"

namespace self_test {

inline int failures = 0;

inline void report(bool ok, char const* file, int line, std::string const& what) {
  if (ok) return;
  ++failures;
  std::printf("%s:%d: %s\n", file, line, what.c_str());
}

// What `run` throws; empty if nothing.
template <class Run>
std::string error_of(Run&& run) {
  try {
    run();
  } catch (std::exception const& error) {
    return error.what();
  }
  return "";
}

#define CHECK(condition) ::self_test::report(condition, __FILE__, __LINE__, "not true: " #condition)
#define CHECK_EQUAL(got, expected) \
  ::self_test::report((got) == (expected), __FILE__, __LINE__, \
                      #got " is " + std::to_string(got) + ", expected " + std::to_string(expected))
// The statements throw an error that contains `text`.
#define CHECK_ERROR(text, ...) \
  do { \
    std::string const error = ::self_test::error_of([&] { __VA_ARGS__; }); \
    ::self_test::report(error.find(text) != std::string::npos, __FILE__, __LINE__, \
                        "the error is '" + error + "', expected one with '" + (text) + "'"); \
  } while (0)

// One schedule and timing of asynchronous copies after another; the configuration is put back at the end.
template <class Run>
void for_each_configuration(Run&& run) {
  simt::Config const before = simt::configuration();
  for (auto const async : {simt::AsyncTiming::kLate, simt::AsyncTiming::kEarly, simt::AsyncTiming::kRandom}) {
    for (uint64_t seed = 0; seed < 5; ++seed) {
      simt::Config config = before;
      config.async = async;
      config.seed = seed;
      config.schedule = seed == 0  ? simt::Schedule::kRoundRobin
                        : seed % 2 ? simt::Schedule::kRandom
                                   : simt::Schedule::kPriority;
      simt::configure(config);
      run();
    }
  }
  simt::configure(before);
}

// A small generator of test data.
struct Generator {
  uint32_t state = 1;
  uint32_t operator()() { return state = state * 1664525u + 1013904223u, state >> 8; }
};

inline int finish(char const* name) {
  std::printf("%s: %s\n", name, failures ? (std::to_string(failures) + " checks failed").c_str() : "passed");
  return failures ? 1 : 0;
}

}  // namespace self_test
