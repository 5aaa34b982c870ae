add_executable(bench_decode bench_decode.cc)
target_link_libraries(bench_decode PRIVATE fewbit_options fewbit_runtime fewbit_models
  absl::flags absl::flags_parse absl::flags_usage)
add_executable(quantize_scale quantize_scale.cc)
target_link_libraries(quantize_scale PRIVATE fewbit_options fewbit_quantize fewbit_models
  absl::flags absl::flags_parse absl::flags_usage absl::strings)
add_executable(bench_tune bench_tune.cc)
target_link_libraries(bench_tune PRIVATE fewbit_options fewbit_tune benchmark::benchmark)
