# fewbit-bench: speed of the GPU kernels on random weights of known shapes.
if(FEWBIT_CUDA_ENABLED)
  execute_process(COMMAND git rev-parse --short=12 HEAD WORKING_DIRECTORY ${CMAKE_SOURCE_DIR}
    OUTPUT_VARIABLE FEWBIT_COMMIT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(NOT FEWBIT_COMMIT)
    set(FEWBIT_COMMIT unknown)
  endif()
  add_library(fewbit_bench_objects OBJECT cuda/bandwidth.cu cuda/random_fill.cu)
  target_include_directories(fewbit_bench_objects PRIVATE ${CMAKE_SOURCE_DIR})
  target_compile_options(fewbit_bench_objects PRIVATE --expt-relaxed-constexpr)
  set_target_properties(fewbit_bench_objects PROPERTIES CUDA_STANDARD 20 CUDA_ARCHITECTURES "80-real;90a-real")
  add_executable(fewbit-bench cuda/attention.cc cuda/decode.cc cuda/fewbit_bench.cc cuda/linears.cc cuda/ops.cc cuda/random_layers.cc cuda/random_model.cc cuda/tune.cc
    ${CMAKE_SOURCE_DIR}/tests/kernels/random_matrix.cc
    $<TARGET_OBJECTS:fewbit_bench_objects>)
  target_compile_definitions(fewbit-bench PRIVATE FEWBIT_COMMIT="${FEWBIT_COMMIT}")
  target_link_libraries(fewbit-bench PRIVATE fewbit_options fewbit_cuda fewbit_cuda_runtime fewbit_engine fewbit_models fewbit_tune)
  fewbit_gpu_program(fewbit-bench)
endif()
