// Linear layers for more than a few tokens, sm_90: wgmma on integers. A cluster of 4 blocks takes
// kWideRows rows of the weights for one token group, each block one segment of the channels;
// partial sums go to the block that owns the row, through its shared memory. Blocks stay and take
// unit after unit, and their warps have roles that run ahead of each other.
#include <array>
#include <utility>

#include "kernels/cuda/cluster_launch.h"
#include "kernels/cuda/device/cluster_fetch.cuh"
#include "kernels/cuda/device/cluster_helpers.cuh"
#include "kernels/cuda/device/cluster_product.cuh"
#include "kernels/cuda/linear_cluster.h"

namespace fewbit::cuda {
namespace {

template <int kForm>
__device__ __forceinline__ void InitBarriers(const ClusteredBarriers& b) {
  constexpr ClusteredForm kF = kClusteredForms[kForm];
  for (int i = 0; i < kF.tile_stages; ++i) {
    BarrierInit(b.tiles.full + i, kClusteredFetchWarps);
    BarrierInit(b.tiles.empty + i, kClusteredProductWarps);
  }
  for (int i = 0; i < kF.slice_stages; ++i) {
    BarrierInit(b.slices.full + i, 1);
    BarrierInit(b.slices.empty + i, kClusteredProductWarps);
  }
  for (int i = 0; i < kF.inboxes; ++i) {
    BarrierInit(b.inbox.full + i, 1);
    BarrierInit(b.inbox.empty + i, kClusterBlocks);
  }
  BarrierInitFence();
}

template <int kForm, bool kZeroPoints>
__global__ void __launch_bounds__(kClusteredForms[kForm].threads, kClusteredForms[kForm].residency)
    ClusteredKernel(const __grid_constant__ ClusteredArgs a) {
  extern __shared__ __align__(128) uint8_t shared[];
  constexpr ClusteredForm kF = kClusteredForms[kForm];
  constexpr ClusteredShared kL = ClusteredLayout(kF, kZeroPoints);
  const int warp = __shfl_sync(0xFFFFFFFFu, threadIdx.x / 32, 0);
  const ClusteredBarriers barriers(shared + kL.barriers, kF);
  if (threadIdx.x == 0) InitBarriers<kForm>(barriers);
  LetNextKernelStart();
  __syncthreads();
  // The other blocks may still be on their way: nobody needs them before the first partial sums.
  ClusterArrive();
  if (warp < kClusteredProductWarps) {
    RaiseRegisters<kF.product_registers>();
    RunProducts<kForm, kZeroPoints>(a, shared, barriers);
  } else {
    LowerRegisters<kF.other_registers>();
    if (warp == kClusteredProductWarps) {
      FetchWeights<kForm, kZeroPoints>(a, shared, barriers);
      __syncwarp();
      ClusterWait();
    } else if (warp == kClusteredProductWarps + 1) {
      WaitForPreviousKernels();
      if (threadIdx.x % 32 == 0) FetchActivations<kForm, kZeroPoints>(a, shared, barriers);
      __syncwarp();
      ClusterWait();
    } else {
      RunHelpers<kForm, kZeroPoints>(a, shared, barriers);
    }
  }
  // No block may end while another can still reach into its shared memory.
  ClusterArrive();
  ClusterWait();
}

using Kernel = void (*)(ClusteredArgs);
constexpr int kForms = static_cast<int>(kClusteredForms.size());

template <size_t... kIndex>
constexpr std::array<Kernel, sizeof...(kIndex)> KernelTable(std::index_sequence<kIndex...>) {
  return {ClusteredKernel<static_cast<int>(kIndex) / 2, kIndex % 2 == 1>...};
}
constexpr std::array<Kernel, 2 * kForms> kKernels =
    KernelTable(std::make_index_sequence<2 * kForms>());

}  // namespace

cudaError_t PrepareClusterKernels(const DeviceProps& props) {
  return PrepareInstances(kKernels, props);
}

cudaError_t CountClusters(const DeviceProps& props, int* clusters) {
  *clusters = 0;
  if (props.major != 9) return cudaSuccess;
  cudaError_t error = PrepareClusterKernels(props);
  if (error != cudaSuccess) return error;
  const ClusteredForm& form = kClusteredForms.back();
  const ClusterGeometry most = {kClusterBlocks, props.multiprocessors, form.threads,
                                ClusteredLayout(form, false).total};
  error = CountResidentClusters(kKernels[2 * (kForms - 1)], most, clusters);
  *clusters /= form.residency;
  return error;
}

cudaError_t LaunchCluster(const Desc& desc, const WidePlan& plan, const DeviceGroup& group,
                          const LinearInput& in, const LinearOutput& out, void* exchange,
                          cudaStream_t stream) {
  ClusteredArgs args = {};
  FillArgs(desc, plan, group, in, out, exchange, &args);
  args.makers = kClusterBlocks * plan.makers;
  const ClusteredForm& form = kClusteredForms[plan.form];
  const bool zero_points = desc.shapes[0].zero_points;
  const ClusterGeometry geometry = {kClusterBlocks, plan.teams, form.threads,
                                    ClusteredLayout(form, zero_points).total};
  return LaunchClusters(kKernels[2 * plan.form + (zero_points ? 1 : 0)], geometry, plan.early_start,
                        stream, args);
}

}  // namespace fewbit::cuda
