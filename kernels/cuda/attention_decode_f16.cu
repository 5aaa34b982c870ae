// Decoding with a cache of type f16.
#include "kernels/cuda/attention_decode.cuh"

namespace fewbit::cuda {

template cudaError_t PrepareDecodeOf<kv::KvType::kF16>(int, int, size_t);
template cudaError_t LaunchDecodeOf<kv::KvType::kF16>(int, DecodeForm, const DecodeArgs&, int,
                                                      size_t, cudaStream_t);

}  // namespace fewbit::cuda
