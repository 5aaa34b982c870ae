# The operators of tuning; included by kernels/CMakeLists.txt. Vectors are wider than the instructions of most processors, which the
# compiler says of every function that takes one; square roots set no errno and compares trap for nobody, so that loops become vectors.
target_sources(fewbit_kernels PRIVATE cpu/gradients.cc cpu/gradients_portable.cc)
set(gradient_options -O3 -Wno-psabi -fno-math-errno -fno-trapping-math)
set_source_files_properties(cpu/gradients_portable.cc PROPERTIES COMPILE_OPTIONS "${gradient_options}")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  target_sources(fewbit_kernels PRIVATE cpu/gradients_avx2.cc cpu/gradients_avx512.cc)
  set_source_files_properties(cpu/gradients_avx2.cc PROPERTIES COMPILE_OPTIONS "${gradient_options};-mavx2")
  set_source_files_properties(cpu/gradients_avx512.cc PROPERTIES
    COMPILE_OPTIONS "${gradient_options};-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mprefer-vector-width=512")
endif()
