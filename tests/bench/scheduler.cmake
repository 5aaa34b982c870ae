add_executable(bench_scheduler ${CMAKE_CURRENT_LIST_DIR}/bench_scheduler.cc
  ${CMAKE_SOURCE_DIR}/tests/scheduler/counting_new.cc)
target_link_libraries(bench_scheduler PRIVATE fewbit_options fewbit_engine benchmark::benchmark)
add_executable(bench_engine ${CMAKE_CURRENT_LIST_DIR}/bench_engine.cc)
target_link_libraries(bench_engine PRIVATE fewbit_options fewbit_engine benchmark::benchmark)
