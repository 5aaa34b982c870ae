add_executable(bench_server ${CMAKE_CURRENT_LIST_DIR}/bench_server.cc)
target_compile_definitions(bench_server PRIVATE FEWBIT_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
target_link_libraries(bench_server PRIVATE fewbit_server fewbit_fake_executor)
