// Prefill with a cache of type bf16.
#include "kernels/cuda/attention_prefill.cuh"

namespace fewbit::cuda {

template cudaError_t PreparePrefillOf<kv::KvType::kBF16>(int, size_t);
template cudaError_t LaunchWriteOf<kv::KvType::kBF16>(int, const WriteArgs&, int, cudaStream_t);
template cudaError_t LaunchPrefillOf<kv::KvType::kBF16>(int, const PrefillArgs&, int, size_t,
                                                        cudaStream_t);

}  // namespace fewbit::cuda
