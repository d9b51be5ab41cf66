# Where the CUDA toolkit in `root` is one from pip, which has its libraries in lib, not lib64, and no libcudart.so: sets
# CUDA_CUDART, without which FindCUDAToolkit refuses it, though only the static library is linked, and `is_pip_toolkit`.
function(sage_accept_pip_toolkit root is_pip_toolkit)
  set(${is_pip_toolkit} OFF PARENT_SCOPE)
  file(GLOB cudart "${root}/lib/libcudart.so.*")
  if(cudart AND NOT EXISTS "${root}/lib64" AND NOT EXISTS "${root}/lib/libcudart.so")
    set(CUDA_CUDART "${cudart}" CACHE FILEPATH "CUDA's runtime library, for FindCUDAToolkit")
    set(${is_pip_toolkit} ON PARENT_SCOPE)
  endif()
endfunction()
