// Linear layers for more than a few tokens, sm_90: wgmma on integers. A team of 4 blocks takes
// kWideRows rows of the weights for one token group, each block one segment of the channels;
// partial sums go to the block that owns the row, through memory that stays in the L2 cache. Blocks
// stay and take unit after unit, and their warps have roles that run ahead of each other.
#include <array>
#include <utility>

#include "kernels/cuda/cluster_launch.h"
#include "kernels/cuda/device/wide_fetch.cuh"
#include "kernels/cuda/device/wide_helpers.cuh"
#include "kernels/cuda/device/wide_product.cuh"
#include "kernels/cuda/linear_wide.h"

namespace fewbit::cuda {
namespace {

template <int kForm>
__device__ __forceinline__ void InitBarriers(const WideBarriers& b) {
  constexpr WideForm kF = kWideForms[kForm];
  for (int i = 0; i < kF.tile_stages; ++i) {
    BarrierInit(b.tiles.full + i, kWideFetchWarps);
    BarrierInit(b.tiles.empty + i, kWideProductWarps);
  }
  for (int i = 0; i < kF.slice_stages; ++i) {
    BarrierInit(b.slices.full + i, 1);
    BarrierInit(b.slices.empty + i, kWideProductWarps);
  }
  for (int i = 0; i < kWideSums; ++i) {
    BarrierInit(b.sums.full + i, kWideWorkers);
    BarrierInit(b.sums.empty + i, kWideWorkers);
  }
  for (int i = 0; i < kWideBoxes; ++i) BarrierInit(b.emptied + i, kWideWorkers);
  BarrierInitFence();
}

template <int kForm, bool kZeroPoints>
__global__ void __launch_bounds__(kWideForms[kForm].threads, kWideForms[kForm].residency)
    WideKernel(const __grid_constant__ WideArgs a) {
  extern __shared__ __align__(128) uint8_t shared[];
  constexpr WideForm kF = kWideForms[kForm];
  constexpr WideShared kL = WideLayout(kF, kZeroPoints);
  // So that ptxas knows that branches on it do not diverge.
  const int warp = __shfl_sync(0xFFFFFFFFu, threadIdx.x / 32, 0);
  const WideBarriers barriers(shared + kL.barriers, kF);
  if (threadIdx.x == 0) InitBarriers<kForm>(barriers);
  LetNextKernelStart();
  __syncthreads();
  if (warp < kWideProductWarps) {
    RaiseRegisters<kF.product_registers>();
    RunProducts<kForm, kZeroPoints>(a, shared, barriers);
  } else {
    LowerRegisters<kF.other_registers>();
    if (warp == kWideProductWarps) {
      FetchWeights<kForm, kZeroPoints>(a, shared, barriers);
    } else if (warp == kWideProductWarps + 1) {
      WaitForPreviousKernels();
      if (threadIdx.x % 32 == 0) FetchActivations<kForm, kZeroPoints>(a, shared, barriers);
    } else {
      RunHelpers<kForm, kZeroPoints>(a, shared, barriers, warp - kFirstHelper);
    }
  }
}

using Kernel = void (*)(WideArgs);
constexpr int kForms = static_cast<int>(kWideForms.size());

template <size_t... kIndex>
constexpr std::array<Kernel, sizeof...(kIndex)> KernelTable(std::index_sequence<kIndex...>) {
  return {WideKernel<static_cast<int>(kIndex) / 2, kIndex % 2 == 1>...};
}
constexpr std::array<Kernel, 2 * kForms> kKernels =
    KernelTable(std::make_index_sequence<2 * kForms>());

}  // namespace

cudaError_t PrepareWideKernels(const DeviceProps& props) {
  return PrepareInstances(kKernels, props);
}

cudaError_t LaunchWide(const Desc& desc, const WidePlan& plan, const DeviceGroup& group,
                       const LinearInput& in, const LinearOutput& out, void* exchange,
                       cudaStream_t stream) {
  WideArgs args = {};
  FillArgs(desc, plan, group, in, out, exchange, &args);
  const WideForm& form = kWideForms[plan.form];
  const bool zero_points = desc.shapes[0].zero_points;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(kWideTeam * plan.teams);
  config.blockDim = dim3(form.threads);
  config.dynamicSmemBytes = WideLayout(form, zero_points).total;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = plan.early_start ? 1 : 0;
  return cudaLaunchKernelEx(&config, kKernels[2 * plan.form + (zero_points ? 1 : 0)], args);
}

}  // namespace fewbit::cuda
