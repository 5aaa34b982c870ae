# fewbit_tune_device: from a --device text to tuning's operators on the CPU or a GPU.
add_library(fewbit_tune_device STATIC create_ops.cc own_text.cc)
target_link_libraries(fewbit_tune_device PUBLIC fewbit_options fewbit_tune
  PRIVATE fewbit_device fewbit_cuda_runtime fewbit_engine absl::strings absl::time)
