// Decoding with a cache of type bf16.
#include "kernels/cuda/attention_decode.cuh"

namespace fewbit::cuda {

template cudaError_t PrepareDecodeOf<kv::KvType::kBF16>(int, int, size_t);
template cudaError_t LaunchDecodeOf<kv::KvType::kBF16>(int, DecodeForm, const DecodeArgs&, int,
                                                       size_t, cudaStream_t);

}  // namespace fewbit::cuda
