# Decides whether CUDA is built, and with which compiler and CUTLASS headers. Sets SAGE_HAS_CUDA (0 or 1) and, with 1,
# SAGE_CUTLASS_INCLUDE_DIR and SAGE_CUTLASS_VERSION; the language CUDA and the package CUDAToolkit are then there.
set(SAGE_HAS_CUDA 0)
set(SAGE_CUDA_ARCHS_DEFAULT 80 89 90 120)
set(SAGE_CUDA_ARCHS ${SAGE_CUDA_ARCHS_DEFAULT} CACHE STRING
  "Architectures to compile the CUDA kernels for, of 80, 86, 87, 89, 90, 120: each those that are of use there")
set(SAGE_CUDA_EXTRA_ARCH "" CACHE STRING
  "One more architecture to compile every kernel for that can run there: to test on such a GPU")
set(SAGE_CUDA_VERSION_MIN 12.8)  # the first toolkit that knows sm_120
if(SAGE_CUDA STREQUAL "OFF")
  message(STATUS "sage: CUDA is off (SAGE_CUDA=OFF)")
  return()
endif()

if(CMAKE_CUDA_COMPILER)
  set(source "CMAKE_CUDA_COMPILER")
elseif(DEFINED ENV{CUDACXX})
  set(CMAKE_CUDA_COMPILER "$ENV{CUDACXX}")
  set(source "the environment variable CUDACXX")
elseif(EXISTS "$ENV{CUDA_HOME}/bin/nvcc")
  set(CMAKE_CUDA_COMPILER "$ENV{CUDA_HOME}/bin/nvcc")
  set(source "the environment variable CUDA_HOME")
else()
  find_program(SAGE_NVCC_ON_PATH nvcc NO_CACHE NO_CMAKE_PATH NO_CMAKE_SYSTEM_PATH)
  sage_python_package_dirs(nvidia.cu13 pip_cuda_dirs)
  find_program(SAGE_NVCC_FROM_PIP nvcc PATHS ${pip_cuda_dirs} PATH_SUFFIXES bin NO_CACHE NO_DEFAULT_PATH)
  if(SAGE_NVCC_ON_PATH)
    set(CMAKE_CUDA_COMPILER "${SAGE_NVCC_ON_PATH}")
    set(source "PATH")
  elseif(SAGE_NVCC_FROM_PIP)
    set(CMAKE_CUDA_COMPILER "${SAGE_NVCC_FROM_PIP}")
    set(source "the pip packages of ${Python_EXECUTABLE}")
  endif()
endif()

if(NOT CMAKE_CUDA_COMPILER)
  string(CONCAT searched "CMAKE_CUDA_COMPILER, CUDACXX, CUDA_HOME/bin, PATH and the pip packages of the building "
    "Python (${Python_EXECUTABLE})")
  if(SAGE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "SAGE_CUDA=ON, but there is no nvcc in ${searched}. Install a CUDA toolkit >= "
      "${SAGE_CUDA_VERSION_MIN} and put its bin folder on PATH, or let pip bring the compiler into the building "
      "Python: pip install -r ${PROJECT_SOURCE_DIR}/cmake/cuda_toolchain.txt "
      "(pip install of this project then needs --no-build-isolation).")
  endif()
  message(STATUS "sage: CUDA is off: no nvcc in ${searched}")
  return()
endif()

# Asked before the language is enabled: CMake stops at a compiler that is too old for the host compiler.
execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE nvcc_says ERROR_QUIET RESULT_VARIABLE ignored)
if(nvcc_says MATCHES "release ([0-9]+\\.[0-9]+)" AND CMAKE_MATCH_1 VERSION_LESS SAGE_CUDA_VERSION_MIN)
  string(CONCAT too_old "a CUDA toolkit >= ${SAGE_CUDA_VERSION_MIN} is needed, got ${CMAKE_MATCH_1} "
    "(${CMAKE_CUDA_COMPILER}, from ${source}); name another with -DCMAKE_CUDA_COMPILER=...")
  if(SAGE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "SAGE_CUDA=ON, but ${too_old}")
  endif()
  unset(CMAKE_CUDA_COMPILER)
  message(STATUS "sage: CUDA is off: ${too_old}")
  return()
endif()

include(third_party/cutlass/resolve.cmake)

cmake_path(GET CMAKE_CUDA_COMPILER PARENT_PATH cuda_bin)
cmake_path(GET cuda_bin PARENT_PATH cuda_root)
sage_accept_pip_toolkit("${cuda_root}" is_pip_toolkit)
if(is_pip_toolkit)
  string(APPEND CMAKE_CUDA_FLAGS " -L${cuda_root}/lib")  # nvcc looks in lib64
endif()
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES OFF)  # every target names its own
endif()
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
find_package(CUDAToolkit REQUIRED)
set(SAGE_HAS_CUDA 1)
# Every kernel fits its registers: a spill, or any other use of local memory, is an error.
set(SAGE_NVCC_NO_SPILLS -Xptxas=-warn-spills,-warn-lmem-usage,-Werror)
set(SAGE_NVCC_OPTIONS --expt-relaxed-constexpr ${SAGE_NVCC_NO_SPILLS})
message(STATUS "sage: CUDA ${CMAKE_CUDA_COMPILER_VERSION}: ${CMAKE_CUDA_COMPILER} (from ${source}), "
  "headers ${CUDAToolkit_INCLUDE_DIRS}")
