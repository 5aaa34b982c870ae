// Decoding with a cache of type i8.
#include "kernels/cuda/attention_decode.cuh"

namespace fewbit::cuda {

template cudaError_t PrepareDecodeOf<kv::KvType::kI8>(int, int, size_t);
template cudaError_t LaunchDecodeOf<kv::KvType::kI8>(int, DecodeForm, const DecodeArgs&, int,
                                                     size_t, cudaStream_t);

}  // namespace fewbit::cuda
