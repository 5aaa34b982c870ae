// Prefill with a cache of type i8.
#include "kernels/cuda/attention_prefill.cuh"

namespace fewbit::cuda {

template cudaError_t PreparePrefillOf<kv::KvType::kI8>(int, size_t);
template cudaError_t LaunchWriteOf<kv::KvType::kI8>(int, const WriteArgs&, int, cudaStream_t);
template cudaError_t LaunchPrefillOf<kv::KvType::kI8>(int, const PrefillArgs&, int, size_t,
                                                      cudaStream_t);

}  // namespace fewbit::cuda
