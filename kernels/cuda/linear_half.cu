// Linear layers for many tokens, sm_90: weights become fp16 in registers and meet fp16 activations
// on the tensor cores. Clusters of two blocks share the activations and take equal stretches of the
// work (half_tile.h); warps have roles that run ahead of each other.
#include <array>
#include <utility>

#include "kernels/cuda/cluster_launch.h"
#include "kernels/cuda/device/half_fetch.cuh"
#include "kernels/cuda/device/half_product.cuh"
#include "kernels/cuda/device/half_sums.cuh"
#include "kernels/cuda/linear_half.h"

namespace fewbit::cuda {
namespace {

template <int kForm>
__device__ __forceinline__ void InitBarriers(const HalfBarriers<kForm>& b) {
  constexpr HalfForm kF = kHalfForms[kForm];
  for (int i = 0; i < kF.quad_stages; ++i) {
    BarrierInit(b.quads.Full(i), 1);
    BarrierInit(b.quads.Empty(i), kHalfCluster * kHalfProductWarps);
  }
  for (int i = 0; i < kF.tile_stages; ++i) {
    BarrierInit(b.tiles.Full(i), kHalfRowBlocks);
    BarrierInit(b.tiles.Empty(i), kHalfProductWarps);
  }
  BarrierInitFence();
}

// The warp that fetches weights does not wait for the others.
template <int kForm, bool kZeroPoints>
__device__ __forceinline__ void Begin(int warp, uint8_t* shared,
                                      const HalfBarriers<kForm>& barriers) {
  constexpr HalfShared kL = HalfLayout(kHalfForms[kForm], kZeroPoints);
  constexpr int kBarrier = 3;  // behind those of HalfTarget
  if (warp == kHalfProductWarps) {
    if (threadIdx.x % 32 == 0) InitBarriers(barriers);
    __syncwarp();
    asm volatile("bar.arrive %0, %1;" ::"n"(kBarrier), "n"(kHalfThreads) : "memory");
    return;
  }
  if (warp < kHalfProductWarps) {
    for (int i = threadIdx.x; i < kHalfDeltaBytes / 16; i += 32 * kHalfProductWarps) {
      reinterpret_cast<uint4*>(shared + kL.deltas)[i] = make_uint4(0, 0, 0, 0);
    }
  }
  NamedBarrier(kBarrier, kHalfThreads);
}

template <int kForm, bool kZeroPoints>
__device__ __forceinline__ void RunProducts(const HalfArgs& a, uint8_t* shared,
                                            const HalfBarriers<kForm>& barriers) {
  constexpr HalfForm kF = kHalfForms[kForm];
  constexpr HalfShared kL = HalfLayout(kF, kZeroPoints);
  uint8_t* buffer = shared + kL.stores + threadIdx.x / 128 * kHalfStoreBytes;
  HalfProduct<kForm, kZeroPoints> product(shared, barriers);
#pragma unroll 1
  for (HalfStretch at(a); at.item < at.end;) {
    float sums[kF.tokens / 2];
    product.Run(sums);
    const HalfPiece piece(a, at);
    const HalfShare share(piece, min(kF.tokens, a.m - piece.group * kF.tokens));
    if (piece.pieces > 1) SendSums<kForm>(a, piece, share, sums);
    HalfCollector<kForm>(a, piece, share).Run(sums, buffer);
    at.item += piece.end - piece.first;
  }
}

template <int kForm, bool kZeroPoints>
__global__ void __launch_bounds__(kHalfThreads, 1) HalfKernel(const __grid_constant__ HalfArgs a) {
  extern __shared__ __align__(1024) uint8_t shared[];
  constexpr HalfShared kL = HalfLayout(kHalfForms[kForm], kZeroPoints);
  // So the compiler knows that a warp does not diverge.
  const int warp = __shfl_sync(0xFFFFFFFFu, threadIdx.x / 32, 0);
  const HalfBarriers<kForm> barriers(SharedAddress(shared + kL.barriers));
  Begin<kForm, kZeroPoints>(warp, shared, barriers);
  LetNextKernelStart();
  ClusterArrive();
  if (warp < kHalfProductWarps) {
    RaiseRegisters<kHalfProductRegisters>();
    ClusterWait();
    RunProducts<kForm, kZeroPoints>(a, shared, barriers);
  } else {
    LowerRegisters<kHalfFetchRegisters>();
    if (warp == kHalfProductWarps) {
      FetchHalfWeights<kForm, kZeroPoints>(a, shared, barriers);
      __syncwarp();
      ClusterWait();
    } else if (warp == kHalfProductWarps + 1) {
      ClusterWait();
      WaitForPreviousKernels();
      if (threadIdx.x % 32 == 0) {
        FetchHalfActivations<kForm, kZeroPoints>(a, shared, barriers);
      }
    } else {
      ClusterWait();
    }
  }
  // No block may end while the other can still reach into its shared memory.
  __syncwarp();
  ClusterArrive();
  ClusterWait();
}

using Kernel = void (*)(HalfArgs);
constexpr int kForms = static_cast<int>(kHalfForms.size());

template <size_t... kIndex>
constexpr std::array<Kernel, sizeof...(kIndex)> KernelTable(std::index_sequence<kIndex...>) {
  return {HalfKernel<static_cast<int>(kIndex) / 2, kIndex % 2 == 1>...};
}
constexpr std::array<Kernel, 2 * kForms> kKernels =
    KernelTable(std::make_index_sequence<2 * kForms>());

}  // namespace

cudaError_t PrepareHalfKernels(const DeviceProps& props) {
  return PrepareInstances(kKernels, props);
}

cudaError_t CountHalfClusters(const DeviceProps& props, int* clusters) {
  *clusters = 0;
  if (props.major != 9) return cudaSuccess;
  const cudaError_t error = PrepareHalfKernels(props);
  if (error != cudaSuccess) return error;
  const ClusterGeometry most = {kHalfCluster, props.multiprocessors, kHalfThreads,
                                HalfLayout(kHalfForms.back(), true).total};
  return CountResidentClusters(kKernels.back(), most, clusters);
}

cudaError_t LaunchHalf(const Desc& desc, const HalfPlan& plan, const DeviceGroup& group,
                       const LinearInput& in, const LinearOutput& out, void* exchange,
                       cudaStream_t stream) {
  const HalfForm& form = kHalfForms[plan.form];
  HalfArgs args = {};
  args.parts = desc.count;
  args.groups = plan.groups;
  args.m = desc.m;
  for (int p = 0; p < desc.count; ++p) {
    const DeviceMatrix& w = group.parts[p];
    if (w.outliers != nullptr && w.tile_outliers == nullptr) return cudaErrorInvalidValue;
    const int units = (w.shape.rows + kHalfUnitRows - 1) / kHalfUnitRows * plan.groups;
    args.part[p] = {w,
                    in.parts[p].staged,
                    in.parts[p].group_bytes,
                    w.shape.row_block_bytes(),
                    HalfPairs(w.shape),
                    args.items,
                    out.column[p]};
    args.items += static_cast<uint32_t>(units) * HalfPairs(w.shape);
  }
  args.exchange = static_cast<uint32_t*>(exchange);
  args.y = out.y;
  args.y_stride = out.stride;
  args.y_type = desc.y_type;
  const bool zero_points = desc.shapes[0].zero_points;
  const ClusterGeometry geometry = {kHalfCluster, plan.clusters, kHalfThreads,
                                    HalfLayout(form, zero_points).total};
  return LaunchClusters(kKernels[2 * plan.form + (zero_points ? 1 : 0)], geometry, plan.early_start,
                        stream, args);
}

}  // namespace fewbit::cuda
