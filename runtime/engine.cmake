# The engine thread and the batch it launches; any executor (CPU, the tests' fake) plugs in behind executor.h.
add_library(fewbit_engine STATIC
  ${CMAKE_CURRENT_SOURCE_DIR}/batch.cc
  ${CMAKE_CURRENT_SOURCE_DIR}/engine.cc)
target_link_libraries(fewbit_engine PUBLIC
  fewbit_options fewbit_scheduler absl::status absl::strings absl::time Threads::Threads)
