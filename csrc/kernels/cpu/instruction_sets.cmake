# The CPU kernels: one source per instruction set, each with its own flags and chosen at run time (isa.cpp). What such a
# source defines must have internal linkage, except its table: a weak symbol could be merged with another's code.
set(SAGE_FLAGS_portable -Wno-psabi)
set(SAGE_FLAGS_avx2 -mavx2 -mfma -mf16c)
set(SAGE_FLAGS_avx_vnni ${SAGE_FLAGS_avx2} -mavxvnni)
set(SAGE_FLAGS_avx512_vnni ${SAGE_FLAGS_avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")  # GCC's own AVX-512 headers read undefined vectors on purpose (GCC bug 105593)
  list(APPEND SAGE_FLAGS_avx512_vnni -Wno-uninitialized -Wno-maybe-uninitialized)
endif()

set(SAGE_CPU_ISAS portable)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  list(APPEND SAGE_CPU_ISAS avx2 avx_vnni avx512_vnni)
endif()

include(CheckCXXCompilerFlag)
foreach(isa IN LISTS SAGE_CPU_ISAS)
  string(REPLACE ";" " " flags "${SAGE_FLAGS_${isa}}")
  check_cxx_compiler_flag("${flags}" SAGE_COMPILER_HAS_${isa})
  if(NOT SAGE_COMPILER_HAS_${isa})
    message(FATAL_ERROR "The CPU kernels need GCC >= 11 or Clang >= 12: ${CMAKE_CXX_COMPILER} "
      "(${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}) does not take ${flags}")
  endif()
  set(source ${CMAKE_CURRENT_LIST_DIR}/forward_${isa}.cpp)
  target_sources(sage PRIVATE ${source})
  set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "-O3;-fno-math-errno;-fno-exceptions;${SAGE_FLAGS_${isa}}")
endforeach()
