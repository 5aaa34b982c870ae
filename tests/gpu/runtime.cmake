# fewbit-gpu-runtime-test: whole models and the engine on a device, started by run.sh.
if(FEWBIT_CUDA_ENABLED)
  add_executable(fewbit-gpu-runtime-test engine_gpu_test.cc gpu_model.cc model_gpu_test.cc)
  target_compile_definitions(fewbit-gpu-runtime-test PRIVATE FEWBIT_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  target_link_libraries(fewbit-gpu-runtime-test PRIVATE
    fewbit_options fewbit_cuda_runtime fewbit_runtime fewbit_engine fewbit_models nlohmann_json::nlohmann_json
    GTest::gmock GTest::gtest GTest::gtest_main -static-libstdc++ -static-libgcc)
endif()
