# The operations beside the linear layers; included by kernels/CMakeLists.txt.
target_sources(fewbit_kernels PRIVATE cpu/ops.cc cpu/ops_portable.cc)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  target_sources(fewbit_kernels PRIVATE cpu/ops_avx2.cc cpu/ops_avx512.cc)
  set(FEWBIT_OPS_AVX512_FLAGS -O3 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # GCC 12's own intrinsics start from an undefined register and warn about it (GCC bug 105593).
    list(APPEND FEWBIT_OPS_AVX512_FLAGS -Wno-uninitialized -Wno-maybe-uninitialized)
  endif()
  set_source_files_properties(cpu/ops_avx2.cc PROPERTIES COMPILE_OPTIONS "-O3;-mavx2;-mfma;-mf16c")
  set_source_files_properties(cpu/ops_avx512.cc PROPERTIES COMPILE_OPTIONS "${FEWBIT_OPS_AVX512_FLAGS}")
endif()
