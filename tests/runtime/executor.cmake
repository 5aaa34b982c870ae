fewbit_test(golden_test SOURCES golden_test.cc LIBS fewbit_runtime fewbit_models nlohmann_json::nlohmann_json)
fewbit_test(ops_test SOURCES ../kernels/ops_test.cc LIBS fewbit_kernels)
