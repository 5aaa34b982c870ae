#include <cuda_fp16.h>

#include <type_traits>

#include "kernels/cuda/device/async_copy.cuh"
#include "kernels/cuda/device/input_row.cuh"
#include "kernels/cuda/device/stage_token.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops_plain.h"

namespace fewbit::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTokens = 4;    // of a block, one after the other, all asked for at once
constexpr int kElements = 8;  // of a thread in a row

// 8 neighbouring elements of kType, as they are stored.
template <DType kType>
struct Eight {
  static constexpr int kBytes = kType == DType::kF32 ? 4 : 2;
  static constexpr int kWords = kElements * kBytes / 16;
  uint4 words[kWords];

  // From row + element; both are multiples of 8.
  __device__ __forceinline__ void Load(const void* base, int64_t element) {
    const auto* from = static_cast<const uint8_t*>(base) + element * kBytes;
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = reinterpret_cast<const uint4*>(from)[i];
  }
  __device__ __forceinline__ void Store(void* base, int64_t element) const {
    auto* to = static_cast<uint8_t*>(base) + element * kBytes;
#pragma unroll
    for (int i = 0; i < kWords; ++i) reinterpret_cast<uint4*>(to)[i] = words[i];
  }
  // Elements 4 * i .. 4 * i + 3.
  __device__ __forceinline__ float4 Four(int i) const {
    using T = std::conditional_t<kType == DType::kF32, float, __half>;
    return Load4(reinterpret_cast<const T*>(words) + 4 * i);
  }
};

// A thread has the same 8 channels of kTokens neighbouring tokens.
template <DType kIn, DType kOut>
__global__ void __launch_bounds__(kThreads) PlainSiluKernel(const SiluArgs args, void* out) {
  const int channel = kElements * (blockIdx.x * kThreads + threadIdx.x);
  const int first = blockIdx.y * kTokens;
  LetNextKernelStart();
  WaitForPreviousKernels();
  if (channel >= args.cols) return;
  Eight<kIn> gate[kTokens], up[kTokens];
#pragma unroll
  for (int i = 0; i < kTokens; ++i) {
    if (first + i >= args.tokens) break;
    gate[i].Load(args.gate, (first + i) * args.stride + channel);
    up[i].Load(args.up, (first + i) * args.stride + channel);
  }
#pragma unroll
  for (int i = 0; i < kTokens; ++i) {
    if (first + i >= args.tokens) break;
    Eight<kOut> y;
#pragma unroll
    for (int j = 0; j < kElements / 4; ++j) {
      StorePlain4(y.words, kOut, 4 * j, SiluMul4(gate[i].Four(j), up[i].Four(j)));
    }
    y.Store(out, static_cast<int64_t>(first + i) * args.cols + channel);
  }
}

// Calls visit with the kernel for gate and up of `in` (kF32 or kF16) and a result of `out`.
template <typename Visit>
cudaError_t VisitSiluKernel(DType in, DType out, const Visit& visit) {
  const auto by_output = [&](auto f32, auto f16, auto bf16) {
    return visit(out == DType::kF32 ? f32 : out == DType::kF16 ? f16 : bf16);
  };
  return in == DType::kF16 ? by_output(PlainSiluKernel<DType::kF16, DType::kF32>,
                                       PlainSiluKernel<DType::kF16, DType::kF16>,
                                       PlainSiluKernel<DType::kF16, DType::kBF16>)
                           : by_output(PlainSiluKernel<DType::kF32, DType::kF32>,
                                       PlainSiluKernel<DType::kF32, DType::kF16>,
                                       PlainSiluKernel<DType::kF32, DType::kBF16>);
}

}  // namespace

cudaError_t PreparePlainOps() {
  for (const DType in : {DType::kF32, DType::kF16}) {
    for (const DType out : {DType::kF32, DType::kF16, DType::kBF16}) {
      const cudaError_t error =
          VisitSiluKernel(in, out, [](auto kernel) { return PreferShared(kernel); });
      if (error != cudaSuccess) return error;
    }
  }
  return cudaSuccess;
}

cudaError_t LaunchPlainSiluMul(const SiluArgs& args, const LinearInput& out, cudaStream_t stream) {
  constexpr int kColumns = kElements * kThreads;
  const dim3 grid((args.cols + kColumns - 1) / kColumns, (args.tokens + kTokens - 1) / kTokens);
  return VisitSiluKernel(args.type, out.plain_type, [&](auto kernel) {
    return LaunchDependent(kernel, grid, dim3(kThreads), 0, stream, args, out.plain);
  });
}

}  // namespace fewbit::cuda
