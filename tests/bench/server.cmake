add_executable(bench_server ${CMAKE_CURRENT_LIST_DIR}/bench_server.cc)
target_compile_definitions(bench_server PRIVATE FEWBIT_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
target_link_libraries(bench_server PRIVATE fewbit_server fewbit_fake_executor)

# The harness and the imaginary GPU are made in tests/server, which comes later; names of targets may.
add_executable(bench_scrape ${CMAKE_CURRENT_LIST_DIR}/bench_scrape.cc)
target_link_libraries(bench_scrape PRIVATE fewbit_server_testing fewbit_fake_nvml GTest::gtest)
add_executable(bench_sensors ${CMAKE_CURRENT_LIST_DIR}/bench_sensors.cc)
target_link_libraries(bench_sensors PRIVATE fewbit_server)

add_executable(quality_simulate ${CMAKE_CURRENT_LIST_DIR}/quality_simulate.cc
  ${CMAKE_CURRENT_LIST_DIR}/simulated_matrix.cc)
target_link_libraries(quality_simulate PRIVATE fewbit_options fewbit_tool fewbit_quantize fewbit_eval fewbit_models
  nlohmann_json::nlohmann_json absl::flags absl::strings)
