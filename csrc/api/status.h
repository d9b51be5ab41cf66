// Building the Status of a failed check: the field, what it got, what is allowed.
#pragma once
#include "sage/types.h"

namespace sage {

__attribute__((format(printf, 2, 3))) Status make_status(StatusCode code, char const* format, ...);

#define SAGE_REQUIRE(condition, ...) \
  do { \
    if (!(condition)) return ::sage::make_status(::sage::StatusCode::kInvalidArgument, __VA_ARGS__); \
  } while (0)

// Returns what went wrong in a call that gives a Status.
#define SAGE_TRY(call) \
  do { \
    if (::sage::Status status_of_call = (call); !status_of_call.ok()) return status_of_call; \
  } while (0)

#define SAGE_SUPPORT(condition, ...) \
  do { \
    if (!(condition)) return ::sage::make_status(::sage::StatusCode::kUnsupported, __VA_ARGS__); \
  } while (0)

}  // namespace sage
