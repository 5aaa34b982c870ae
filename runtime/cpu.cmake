# fewbit_runtime: everything that turns a ForwardBatch into tokens on the CPU.
add_library(fewbit_runtime STATIC
  cpu_executor.cc
  executor_limits.cc
  kv_cache.cc
  models/decoder.cc
  models/decoder_layer.cc
  models/rope.cc
  philox.cc
  row_sampler.cc
  sampler.cc
  thread_team.cc)
target_link_libraries(fewbit_runtime PUBLIC fewbit_options fewbit_kernels fewbit_scheduler
  absl::status absl::statusor absl::strings Threads::Threads)
