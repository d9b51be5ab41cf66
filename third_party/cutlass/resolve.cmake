# Finds the CUTLASS headers (nothing of CUTLASS is in this repository): in the folder CUTLASS_DIR if given, else in a
# checkout in this folder, else in the nvidia-cutlass wheel of the building Python. Sets SAGE_CUTLASS_INCLUDE_DIR and
# SAGE_CUTLASS_VERSION and makes the target sage_cutlass, which carries the include folder.
set(SAGE_CUTLASS_PINNED 4.2.0)
set(CUTLASS_DIR "" CACHE PATH "A CUTLASS checkout; empty: third_party/cutlass, else the nvidia-cutlass wheel")

if(CUTLASS_DIR)
  set(cutlass_candidates "${CUTLASS_DIR}/include")
  set(cutlass_searched "${CUTLASS_DIR}/include (CUTLASS_DIR)")
else()
  sage_python_package_dirs(cutlass_library wheel_dirs)
  set(cutlass_candidates "${CMAKE_CURRENT_LIST_DIR}/include")
  foreach(dir IN LISTS wheel_dirs)
    list(APPEND cutlass_candidates "${dir}/source/include")
  endforeach()
  string(CONCAT cutlass_searched "${CMAKE_CURRENT_LIST_DIR}/include (a checkout) and in the package cutlass_library of "
    "${Python_EXECUTABLE} (the wheel)")
endif()
unset(SAGE_CUTLASS_INCLUDE_DIR)
foreach(dir IN LISTS cutlass_candidates)
  if(EXISTS "${dir}/cutlass/version.h")
    set(SAGE_CUTLASS_INCLUDE_DIR "${dir}")
    break()
  endif()
endforeach()
if(NOT SAGE_CUTLASS_INCLUDE_DIR)
  message(FATAL_ERROR "CUTLASS not found: looked for cutlass/version.h in ${cutlass_searched}. "
    "Install the wheel: pip install --no-deps nvidia-cutlass==${SAGE_CUTLASS_PINNED}.0, or name a checkout: "
    "-DCUTLASS_DIR=..., or build without CUDA: -DSAGE_CUDA=OFF")
endif()
file(STRINGS "${SAGE_CUTLASS_INCLUDE_DIR}/cutlass/version.h" version_lines
  REGEX "^#define CUTLASS_(MAJOR|MINOR|PATCH) +[0-9]+")
string(REGEX MATCHALL "[0-9]+" SAGE_CUTLASS_VERSION "${version_lines}")
list(JOIN SAGE_CUTLASS_VERSION "." SAGE_CUTLASS_VERSION)
if(NOT SAGE_CUTLASS_VERSION VERSION_EQUAL SAGE_CUTLASS_PINNED)
  message(FATAL_ERROR
    "CUTLASS must be version ${SAGE_CUTLASS_PINNED}, got ${SAGE_CUTLASS_VERSION} in ${SAGE_CUTLASS_INCLUDE_DIR}")
endif()
message(STATUS "sage: CUTLASS ${SAGE_CUTLASS_VERSION}: ${SAGE_CUTLASS_INCLUDE_DIR}")

add_library(sage_cutlass INTERFACE)
target_include_directories(sage_cutlass SYSTEM INTERFACE "${SAGE_CUTLASS_INCLUDE_DIR}")
