add_library(fewbit_fake_executor STATIC ${CMAKE_CURRENT_LIST_DIR}/fake_executor.cc)
target_link_libraries(fewbit_fake_executor PUBLIC fewbit_engine absl::flat_hash_set)

fewbit_test(engine_test
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/engine_test.cc ${CMAKE_CURRENT_LIST_DIR}/engine_pipeline_test.cc
    ${CMAKE_CURRENT_LIST_DIR}/engine_stress_test.cc
  LIBS fewbit_engine fewbit_fake_executor
  LABELS runtime)

fewbit_test(engine_parts_test
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/batch_test.cc ${CMAKE_CURRENT_LIST_DIR}/published_test.cc
  LIBS fewbit_engine
  LABELS runtime)
