fewbit_test(golden_test SOURCES golden_test.cc LIBS fewbit_runtime fewbit_models nlohmann_json::nlohmann_json)
