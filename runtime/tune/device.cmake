# fewbit_tune_device: tuning's operators on any device this build has; CreateOps chooses.
add_library(fewbit_tune_device STATIC create_ops.cc)
target_link_libraries(fewbit_tune_device PUBLIC fewbit_options fewbit_tune
  PRIVATE fewbit_device fewbit_cuda_runtime absl::strings)
if(FEWBIT_CUDA_ENABLED)
  target_sources(fewbit_tune_device PRIVATE cuda_ops.cc)
  target_link_libraries(fewbit_tune_device PRIVATE fewbit_cuda)
else()
  target_sources(fewbit_tune_device PRIVATE no_cuda_ops.cc)
endif()
