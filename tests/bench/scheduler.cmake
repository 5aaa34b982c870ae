add_executable(scheduler_bench ${CMAKE_CURRENT_LIST_DIR}/scheduler_bench.cc
  ${CMAKE_SOURCE_DIR}/tests/scheduler/counting_new.cc)
target_link_libraries(scheduler_bench PRIVATE fewbit_options fewbit_engine benchmark::benchmark)
