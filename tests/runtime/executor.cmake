# Decoder, KV cache, thread team, sampler, CPU executor and the operations under them.
fewbit_test(ops_test SOURCES ../kernels/ops_test.cc LIBS fewbit_kernels LABELS kernels)
fewbit_test(golden_test SOURCES golden_test.cc
  LIBS fewbit_runtime fewbit_models nlohmann_json::nlohmann_json LABELS runtime)
fewbit_test(decoder_test SOURCES decoder_test.cc LIBS fewbit_runtime fewbit_models LABELS runtime)
fewbit_test(rope_test SOURCES rope_test.cc LIBS fewbit_runtime LABELS runtime)
fewbit_test(thread_team_test SOURCES thread_team_test.cc LIBS fewbit_runtime LABELS runtime)
fewbit_test(sampler_test SOURCES sampler_test.cc LIBS fewbit_runtime LABELS runtime)
fewbit_test(cpu_executor_test SOURCES cpu_executor_test.cc ../scheduler/counting_new.cc
  LIBS fewbit_runtime LABELS runtime)
fewbit_test(device_test SOURCES device_test.cc LIBS fewbit_device fewbit_models LABELS runtime)
