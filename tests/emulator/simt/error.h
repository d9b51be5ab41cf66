#pragma once
#include <stdexcept>

namespace simt {

// What a kernel did wrong. Ends the launch; reported as "kernel NAME, block B, thread T: what".
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

[[noreturn]] __attribute__((cold, format(printf, 1, 2))) void fail(char const* format, ...);

}  // namespace simt
