// Linear layers for few tokens. A block owns a run of 16-row blocks of the matrix; its warps take
// tiles in turn, each through a ring of asynchronous copies of its own, and leave one float per
// (row, token, tile) in shared memory, which the block then sums in the order that device_tile.h
// defines. Weights are asked for before the kernel waits for its predecessor in the stream.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <array>
#include <utility>

#include "kernels/cuda/device/tile_product.cuh"
#include "kernels/cuda/device/tile_ring.cuh"
#include "kernels/cuda/linear_launch.h"
#include "kernels/cuda/small_instances.h"

namespace fewbit::cuda {
namespace {

// One tile of a row block, as the host works it out.
struct TileInfo {
  uint32_t offset;  // within the row block
  uint16_t bytes;
  uint16_t quad;  // its first
  uint16_t bits;
  uint16_t chunks;
};

struct SmallArgs {
  DeviceMatrix w;
  const uint8_t* staged;
  void* y;
  int64_t y_stride;
  size_t group_bytes;      // of the staged activations
  size_t row_block_bytes;  // of the weights
  SharedLayout layout;
  int tiles, row_blocks;
  int m, group_tokens, stages;
  int segment_begin[kSegments + 1];
  DType y_type;
  TileInfo tile[kMaxTiles];
};

// What one thread block owns.
struct Share {
  int first_block, blocks;  // row blocks
  int tokens, group;

  // Whole groups of kBlocks row blocks, as even as possible.
  template <int kBlocks>
  static __device__ Share Of(const SmallArgs& a) {
    const int groups = (a.row_blocks + kBlocks - 1) / kBlocks;
    const int each = groups / gridDim.x, rest = groups - each * gridDim.x, id = blockIdx.x;
    const int first = id * each + min(id, rest), count = each + (id < rest ? 1 : 0);
    Share s;
    s.first_block = first * kBlocks;
    s.blocks = min(count * kBlocks, a.row_blocks - s.first_block);
    s.group = blockIdx.y;
    s.tokens = min(a.group_tokens, a.m - s.group * a.group_tokens);
    return s;
  }
};

// The staged activations of the block's token group, in global memory; every block of a
// multiprocessor finds them in its L1 cache.
struct Activations {
  const int2* meta;  // {scale, bias} [tile][meta_stride]
  int meta_stride;
  const uint8_t* planes;

  __device__ Activations(const SmallArgs& a, const Share& s) {
    const uint8_t* from = a.staged + s.group * a.group_bytes;
    meta = reinterpret_cast<const int2*>(from);
    meta_stride = (a.group_tokens + 1) / 2 * 2;
    planes = from + a.tiles * meta_stride * sizeof(int2);
  }
};

// The sum over the outliers of one (row, segment) and token, in list order. The bounds and the
// first entries are loaded ahead, while weights and activations are under way.
template <int kTiles>
class OutlierList {
 public:
  __device__ __forceinline__ void LoadBounds(const SmallArgs& a, size_t list) {
    begin_ = __ldg(a.w.outlier_start + list);
    end_ = __ldg(a.w.outlier_start + list + 1);
  }
  __device__ __forceinline__ void LoadEntries(const SmallArgs& a) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      entries_[i] = begin_ + i < end_ ? __ldg(a.w.outliers + begin_ + i) : 0;
    }
  }
  // An entry beyond the end has the value zero and adds nothing: x at position 0 is finite unless
  // the whole result is not.
  __device__ __forceinline__ float Sum(const SmallArgs& a, const Activations& x, int token) {
    float sum = 0;
    while (begin_ < end_) {
      float term[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) term[i] = Activation(x, token, entries_[i]);
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const float value = __half2float(__ushort_as_half(entries_[i] >> 16));
        if (begin_ + i < end_) sum = __fmaf_rn(value, term[i], sum);
      }
      begin_ += kAhead;
      if (begin_ < end_) LoadEntries(a);
    }
    return sum;
  }

 private:
  static constexpr int kAhead = 4;

  // Positions are those of 2-bit strips: 64 to a quad, 512 to a tile.
  static __device__ __forceinline__ float Activation(const Activations& x, int token,
                                                     uint32_t entry) {
    const int position = entry & 0xFFFF;
    const uint8_t* at =
        x.planes + (position / 64) * QuadBytes(4 * kTiles) + 128 * token + position % 64;
    const int high = static_cast<int8_t>(at[0]), low = static_cast<int8_t>(at[64]);
    const float scale = __int_as_float(x.meta[(position / 512) * x.meta_stride + token].x);
    return __fmul_rn(__int2float_rn(256 * high + low), scale);
  }

  uint32_t begin_ = 0, end_ = 0;
  uint32_t entries_[kAhead] = {};
};

// The partial sums of a block, dealt out to threads: segment fastest, then row, token, row block.
struct SegmentItem {
  int segment, row, token, block;
  __device__ SegmentItem(const Share& s, int index) {
    segment = index % kSegments;
    row = index / kSegments % quant::kBlockRows;
    const uint32_t rest = static_cast<uint32_t>(index) / (kSegments * quant::kBlockRows);
    block = s.tokens == 1 ? rest : rest / static_cast<uint32_t>(s.tokens);
    token = rest - block * s.tokens;
  }
  __device__ size_t List(const Share& s) const {
    return (static_cast<size_t>(s.first_block + block) * quant::kBlockRows + row) * kSegments +
           segment;
  }
};

// One float per row and token of the tile: the exact sum, d and the scale of x.
template <int kTiles, bool kZeroPoints>
__device__ __forceinline__ void WriteTerms(const int (&sums)[kTiles][4], const uint8_t* d_bytes,
                                           const int2 (&meta)[kTiles], int tokens, int lane,
                                           float* terms) {
  const int g = lane / 4, t = lane % 4;
  constexpr float kUnit = 1.0f / (quant::kStoredSecondOrderFactor * (kZeroPoints ? 2.0f : 4.0f));
  const float2 d = __half22float2(reinterpret_cast<const __half2*>(d_bytes)[g]);
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    const int token = 4 * j + t;
    if (token >= tokens) continue;
    const float scale = __fmul_rn(__int_as_float(meta[j].x), kUnit);
    // Wraps around on the way; the sum itself fits.
    const auto total = [&](int high, int low) {
      return __int2float_rn(static_cast<int>(256u * high + low + static_cast<uint32_t>(meta[j].y)));
    };
    terms[token * quant::kBlockRows + g] =
        __fmul_rn(__fmul_rn(total(sums[j][0], sums[j][1]), d.x), scale);
    terms[token * quant::kBlockRows + g + 8] =
        __fmul_rn(__fmul_rn(total(sums[j][2], sums[j][3]), d.y), scale);
  }
}

__device__ __forceinline__ void StoreOutput(const SmallArgs& a, int64_t at, float value) {
  if (a.y_type == DType::kF32) {
    static_cast<float*>(a.y)[at] = value;
  } else if (a.y_type == DType::kF16) {
    static_cast<__half*>(a.y)[at] = __float2half_rn(value);
  } else {
    static_cast<__nv_bfloat16*>(a.y)[at] = __float2bfloat16_rn(value);
  }
}

// The sum of one item once all terms are there; the four lanes of a row then add their segments in
// order. Every lane of a warp comes here, those without an item too.
__device__ __forceinline__ void ReduceItem(const SmallArgs& a, const Share& s, const float* terms,
                                           const SegmentItem& item, bool valid, float outliers) {
  float part = 0;
  if (valid) {
    const int slot = s.tokens * quant::kBlockRows;
    const float* from =
        terms + item.block * a.tiles * slot + item.token * quant::kBlockRows + item.row;
#pragma unroll 4
    for (int tile = a.segment_begin[item.segment]; tile < a.segment_begin[item.segment + 1];
         ++tile) {
      part = __fadd_rn(part, from[tile * slot]);
    }
    part = __fadd_rn(part, outliers);
  }
  float sum = part;
#pragma unroll
  for (int segment = 1; segment < kSegments; ++segment) {
    sum = __fadd_rn(sum, __shfl_down_sync(0xFFFFFFFFu, part, segment));
  }
  const int row = (s.first_block + item.block) * quant::kBlockRows + item.row;
  if (valid && item.segment == 0 && row < a.w.shape.rows) {
    StoreOutput(a, (s.group * a.group_tokens + item.token) * a.y_stride + row, sum);
  }
}

// Sums all terms of the block. The outliers of a thread's first item, whose list is `list`, are
// summed before the barrier.
template <int kTiles>
__device__ __forceinline__ void Reduce(const SmallArgs& a, const Share& s, const Activations& x,
                                       const float* terms, OutlierList<kTiles> list) {
  const int items = s.blocks * s.tokens * quant::kBlockRows * kSegments;
#pragma unroll 1
  for (int base = 0; base < items; base += blockDim.x) {
    const int index = base + threadIdx.x;
    const SegmentItem item(s, index);
    const bool valid = index < items;
    float outliers = 0;
    if (a.w.outliers != nullptr && valid) {
      if (base > 0) {
        list.LoadBounds(a, item.List(s));
        list.LoadEntries(a);
      }
      outliers = list.Sum(a, x, item.token);
    }
    if (base == 0) __syncthreads();
    ReduceItem(a, s, terms, item, valid, outliers);
  }
}

// The weights of one warp: tiles `warp`, `warp` + warps, ... of the row block, each for all row
// blocks of the share before the next.
template <Copy kCopy, int kBlocks>
class WeightStream {
 public:
  __device__ WeightStream(const SmallArgs& a, const Share& s, uint8_t* shared, int warp, int warps)
      : ring_(shared + warp * a.stages * kBlocks * a.layout.tile_bytes,
              reinterpret_cast<uint64_t*>(shared + a.layout.barriers) + warp * a.stages, a.stages,
              kBlocks * a.layout.tile_bytes),
        base_(a.w.tiles + s.first_block * a.row_block_bytes),
        tile_(warp),
        warps_(warps) {
    if (tile_ < a.tiles) from_ = base_ + a.tile[tile_].offset;
  }
  __device__ __forceinline__ void Issue(const SmallArgs& a, const Share& s) {
    if (tile_ >= a.tiles) {
      ring_.IssueNothing();
      return;
    }
    ring_.template Issue<kBlocks>(from_, a.tile[tile_].bytes, min(kBlocks, s.blocks - block_),
                                  a.row_block_bytes, a.layout.tile_bytes);
    block_ += kBlocks;
    from_ += kBlocks * a.row_block_bytes;
    if (block_ >= s.blocks) {
      block_ = 0;
      tile_ += warps_;
      if (tile_ < a.tiles) from_ = base_ + a.tile[tile_].offset;
    }
  }
  __device__ __forceinline__ const uint8_t* Wait() { return ring_.Wait(); }

 private:
  TileRing<kCopy> ring_;
  const uint8_t* base_;
  const uint8_t* from_ = nullptr;
  int tile_, block_ = 0, warps_;
};

// One tile index for all row blocks of the share.
template <int kInstance, typename Stream>
class TileColumn {
  static constexpr Instance kI = kSmallTable[kInstance];
  static constexpr int kTiles = kI.token_tiles, kBlocks = kI.row_blocks;

 public:
  __device__ __forceinline__ TileColumn(const SmallArgs& a, const Share& s, const Activations& x,
                                        const ActivationView<kTiles>& view, int index, int lane,
                                        float* terms, Stream* stream)
      : a_(a), s_(s), view_(view), info_(a.tile[index]), lane_(lane), stream_(stream) {
    quad_ = view.first + info_.quad * view.kQuadBytes;
    slot_ = s.tokens * quant::kBlockRows;
    terms_ = terms + index * slot_;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      meta_[j] = x.meta[index * x.meta_stride + min(4 * j + lane % 4, s.tokens - 1)];
    }
  }

  __device__ __forceinline__ void Run() {
    if constexpr (kTiles == 1 && kBlocks == 1) {
      if (info_.chunks == quant::kTileChunks) {
        if (info_.bits == 2) {
          RunKept<2>();
        } else {
          RunKept<4>();
        }
        return;
      }
    }
    ForEach([&](const uint8_t* data, TileSums<kBlocks, kTiles>& sums) {
      TileProduct<kBlocks, kTiles, kI.zero_points>(data, a_.layout.tile_bytes, info_.bits,
                                                   info_.chunks, lane_, quad_, view_, sums);
    });
  }

 private:
  // Activations stay in registers from one row block to the next.
  template <int kBits>
  __device__ __forceinline__ void RunKept() {
    TileActivations<kBits, 1> kept;
    kept.Load(quad_, view_);
    ForEach([&](const uint8_t* data, TileSums<1, 1>& sums) {
      FullTileProduct<kBits, kI.zero_points>(data, lane_, kept, sums[0]);
    });
  }

  template <typename Product>
  __device__ __forceinline__ void ForEach(const Product& product) {
#pragma unroll 1
    for (int block = 0; block < s_.blocks; block += kBlocks) {
      const uint8_t* data = stream_->Wait();
      TileSums<kBlocks, kTiles> sums;
      product(data, sums);
      const uint8_t* d = data + info_.bytes - quant::kSecondOrderBytes;
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        if (block + b >= s_.blocks) break;
        WriteTerms<kTiles, kI.zero_points>(sums[b], d + b * a_.layout.tile_bytes, meta_, s_.tokens,
                                           lane_, terms_ + (block + b) * a_.tiles * slot_);
      }
      stream_->Issue(a_, s_);
    }
  }

  const SmallArgs& a_;
  const Share& s_;
  const ActivationView<kTiles>& view_;
  const TileInfo info_;
  int lane_, slot_;
  const uint8_t* quad_;
  float* terms_;
  int2 meta_[kTiles];
  Stream* stream_;
};

template <int kInstance>
__global__ void __launch_bounds__(32 * kSmallTable[kInstance].max_warps,
                                  kSmallTable[kInstance].residency)
    SmallKernel(const __grid_constant__ SmallArgs a) {
  extern __shared__ __align__(128) uint8_t shared[];
  constexpr Instance kI = kSmallTable[kInstance];
  constexpr int kTiles = kI.token_tiles;
  using Stream = WeightStream<kI.copy, kI.row_blocks>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const Share s = Share::Of<kI.row_blocks>(a);
  Stream stream(a, s, shared, warp, warps);
#pragma unroll 1
  for (int i = 0; i < a.stages; ++i) stream.Issue(a, s);
  LetNextKernelStart();
  OutlierList<kTiles> list;
  const SegmentItem first_item(s, threadIdx.x);
  if (a.w.outliers != nullptr && first_item.block < s.blocks) {
    list.LoadBounds(a, first_item.List(s));
    list.LoadEntries(a);
  }
  const Activations x(a, s);
  const ActivationView<kTiles> view(x.planes, s.tokens, lane);
  float* terms = reinterpret_cast<float*>(shared + a.layout.terms);
  WaitForPreviousKernels();
#pragma unroll 1
  for (int tile = warp; tile < a.tiles; tile += warps) {
    TileColumn<kInstance, Stream>(a, s, x, view, tile, lane, terms, &stream).Run();
  }
  Reduce<kTiles>(a, s, x, terms, list);
}

using Kernel = void (*)(SmallArgs);

template <size_t... kIndex>
constexpr std::array<Kernel, sizeof...(kIndex)> KernelTable(std::index_sequence<kIndex...>) {
  return {SmallKernel<static_cast<int>(kIndex)>...};
}
constexpr std::array<Kernel, kSmallInstances> kKernels =
    KernelTable(std::make_index_sequence<kSmallInstances>());

void FillTiles(const quant::PackedShape& shape, SmallArgs* args) {
  args->tiles = NumTiles(shape);
  args->row_blocks = shape.row_blocks();
  for (int i = 0; i < args->tiles; ++i) {
    const int bits = i < shape.tiles(2) ? 2 : 4;
    const int of_width = bits == 2 ? i : i - shape.tiles(2);
    const int chunks = shape.tile_chunks(bits, of_width);
    args->tile[i] = {static_cast<uint32_t>(shape.tile_offset(bits, of_width)),
                     static_cast<uint16_t>(quant::TileBytes(bits, chunks, shape.zero_points)),
                     static_cast<uint16_t>(FirstQuad(shape, i)), static_cast<uint16_t>(bits),
                     static_cast<uint16_t>(chunks)};
  }
  for (int i = 0; i <= kSegments; ++i) args->segment_begin[i] = SegmentBegin(args->tiles, i);
}

}  // namespace

cudaError_t ReadDeviceProps(int device, DeviceProps* props) {
  const std::array<std::pair<cudaDeviceAttr, int*>, 5> wanted = {{
      {cudaDevAttrComputeCapabilityMajor, &props->major},
      {cudaDevAttrComputeCapabilityMinor, &props->minor},
      {cudaDevAttrMultiProcessorCount, &props->multiprocessors},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, &props->shared_per_multiprocessor},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, &props->shared_per_block},
  }};
  for (const auto& [attribute, value] : wanted) {
    const cudaError_t error = cudaDeviceGetAttribute(value, attribute, device);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t PrepareSmallKernels(const DeviceProps& props) {
  for (int i = 0; i < kSmallInstances; ++i) {
    if (kSmallTable[i].copy == Copy::kBulk && props.major < 9) continue;
    const cudaError_t error = cudaFuncSetAttribute(
        kKernels[i], cudaFuncAttributeMaxDynamicSharedMemorySize, props.shared_per_block);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t LaunchSmall(const Desc& desc, const Plan& plan, const DeviceMatrix& w,
                        const void* staged, void* y, int64_t y_stride, cudaStream_t stream) {
  SmallArgs args = {};
  args.w = w;
  args.staged = static_cast<const uint8_t*>(staged);
  args.y = y;
  args.y_stride = y_stride;
  args.group_bytes = StagedGroupBytes(desc.shape, plan.group_tokens);
  args.row_block_bytes = desc.shape.row_block_bytes();
  args.layout = LayoutShared(desc.shape, plan);
  FillTiles(desc.shape, &args);
  args.m = desc.m;
  args.stages = plan.stages;
  args.group_tokens = plan.group_tokens;
  args.y_type = desc.y_type;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(plan.blocks, plan.groups);
  config.blockDim = dim3(32 * plan.warps);
  config.dynamicSmemBytes = plan.shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kKernels[plan.instance], args);
}

}  // namespace fewbit::cuda
