#include "api/status.h"

#include <cstdarg>
#include <cstdio>

namespace sage {

Status make_status(StatusCode code, char const* format, ...) {
  Status status;
  status.code = code;
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(status.message, sizeof(status.message), format, arguments);
  va_end(arguments);
  return status;
}

}  // namespace sage
