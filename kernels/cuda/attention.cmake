# Attention: one file per cache type, so that they compile beside one another.
target_sources(fewbit_cuda_host PRIVATE attention.cc)
if(FEWBIT_CUDA_ENABLED)
  target_sources(fewbit_cuda_objects PRIVATE
    attention_combine.cu attention_step.cu
    attention_decode_bf16.cu attention_decode_f16.cu attention_decode_i8.cu
    attention_prefill_bf16.cu attention_prefill_f16.cu attention_prefill_i8.cu)
  target_sources(fewbit_cuda PRIVATE attention_launch.cc)
endif()
