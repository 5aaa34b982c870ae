// Linear layers for few tokens, from sm_80 on. A block owns a run of 16-row blocks of the matrix;
// its warps take tiles in turn, each through a ring of asynchronous copies of its own, and leave
// one float per (row, token, tile) in shared memory, which the block then sums in the order that
// device_tile.h defines. Weights are asked for before the kernel waits for its predecessor in the
// stream.
#include <cuda_fp16.h>

#include <algorithm>
#include <array>
#include <utility>

#include "kernels/cuda/device/store_plain.cuh"
#include "kernels/cuda/device/tile_product.cuh"
#include "kernels/cuda/device/tile_ring.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_small.h"
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
  int m, group_tokens;
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
  int quad_bytes;

  __device__ Activations(const SmallArgs& a, const Share& s) {
    const uint8_t* from = a.staged + s.group * a.group_bytes;
    meta = reinterpret_cast<const int2*>(from);
    meta_stride = EvenTokens(a.group_tokens);
    planes = from + a.tiles * meta_stride * sizeof(int2);
    quad_bytes = QuadBytes(a.group_tokens);
  }

  // The activation of `token` at a position in 2-bit strips, as the product sees it.
  __device__ __forceinline__ float Value(int position, int token) const {
    constexpr int kTileChannels = quant::kTileChunks * quant::ChunkChannels(2);
    const uint8_t* at = planes + position / kColumnBytes * quad_bytes + token * 2 * kColumnBytes +
                        position % kColumnBytes;
    const int v = 256 * static_cast<int8_t>(at[0]) + static_cast<int8_t>(at[kColumnBytes]);
    const int scale = meta[position / kTileChannels * meta_stride + token].x;
    return __fmul_rn(__int2float_rn(v), __int_as_float(scale));
  }
};

// The outlier lists of a block's rows, which lie behind each other: fetched into shared memory
// while weights are under way. What does not fit there stays in global memory.
class Outliers {
 public:
  __device__ __forceinline__ Outliers(const SmallArgs& a, const Share& s, uint8_t* shared)
      : global_(a.w.outliers),
        bounds_(reinterpret_cast<uint32_t*>(shared + a.layout.outliers)),
        entries_(bounds_ + a.layout.outlier_bounds),
        capacity_(a.layout.outlier_entries) {
    if (global_ == nullptr) return;
    const int lists = s.blocks * quant::kBlockRows * kSegments;
    const uint32_t* start =
        a.w.outlier_start + static_cast<size_t>(s.first_block) * quant::kBlockRows * kSegments;
    for (int i = threadIdx.x; i <= lists; i += blockDim.x) CopyAsync4(bounds_ + i, start + i);
    if (threadIdx.x + 32 >= blockDim.x) {  // the last warp
      const uint32_t begin = __ldg(start), count = min(__ldg(start + lists) - begin, capacity_);
      for (uint32_t i = threadIdx.x % 32; i < count; i += 32) {
        CopyAsync4(entries_ + i, global_ + begin + i);
      }
    }
    CopyAsyncCommit();
  }
  __device__ bool any() const { return global_ != nullptr; }
  // Before the block barrier after which lists are read.
  __device__ __forceinline__ void Wait() const { CopyAsyncWait<0>(); }

  // sums[i] = the outliers of list first + i times the activations of `token`, each in list order.
  template <int kLists>
  __device__ __forceinline__ void Sum(const Activations& x, int first, int token,
                                      float (&sums)[kLists]) const {
    const uint32_t base = bounds_[0];
    uint32_t bound[kLists + 1];
#pragma unroll
    for (int i = 0; i <= kLists; ++i) bound[i] = bounds_[first + i];
#pragma unroll
    for (int i = 0; i < kLists; ++i) sums[i] = 0;
#pragma unroll 1
    for (uint32_t at = bound[0]; at < bound[kLists]; at += kAhead) {
      float value[kAhead], activation[kAhead];
#pragma unroll
      for (uint32_t i = 0; i < kAhead; ++i) {
        const uint32_t place = min(at + i, bound[kLists] - 1);
        const uint32_t entry =
            place - base < capacity_ ? entries_[place - base] : __ldg(global_ + place);
        value[i] = __half2float(__ushort_as_half(static_cast<uint16_t>(entry >> 16)));
        activation[i] = x.Value(static_cast<int>(entry & 0xFFFF), token);
      }
#pragma unroll
      for (uint32_t i = 0; i < kAhead; ++i) {
#pragma unroll
        for (int list = 0; list < kLists; ++list) {
          const bool inside = at + i >= bound[list] && at + i < bound[list + 1];
          if (inside) sums[list] = __fmaf_rn(value[i], activation[i], sums[list]);
        }
      }
    }
  }

 private:
  static constexpr uint32_t kAhead = 4;

  const uint32_t* global_;
  uint32_t* bounds_;
  uint32_t* entries_;
  uint32_t capacity_;
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
    terms[g * TermStride(kTiles) + token] =
        __fmul_rn(__fmul_rn(total(sums[j][0], sums[j][1]), d.x), scale);
    terms[(g + 8) * TermStride(kTiles) + token] =
        __fmul_rn(__fmul_rn(total(sums[j][2], sums[j][3]), d.y), scale);
  }
}

// The sum of the terms of one segment; `from` points at the row and token of the row block's first
// tile.
template <int kTiles>
__device__ __forceinline__ float SegmentSum(const SmallArgs& a, const float* from, int segment) {
  float part = 0;
#pragma unroll 4
  for (int tile = a.segment_begin[segment]; tile < a.segment_begin[segment + 1]; ++tile) {
    part = __fadd_rn(part, from[tile * TermFloats(kTiles)]);
  }
  return part;
}

// Sums and stores all results of the block. With few tokens, four neighbouring lanes share a row
// and token, one segment each. Call after the block barrier.
__device__ __forceinline__ void ReduceFew(const SmallArgs& a, const Share& s, const Activations& x,
                                          const float* terms, const Outliers& outliers) {
  const int items = s.blocks * s.tokens * quant::kBlockRows * kSegments;
  const int segment = threadIdx.x % kSegments;
#pragma unroll 1
  for (int base = 0; base < items; base += blockDim.x) {
    const uint32_t output = (base + threadIdx.x) / kSegments;
    const int row = s.tokens == 1 ? output : output / static_cast<uint32_t>(s.tokens);
    const int token = output - row * s.tokens, at = s.first_block * quant::kBlockRows + row;
    const bool valid = row < s.blocks * quant::kBlockRows;
    float part = 0, extra[1] = {};
    if (valid) {
      if (outliers.any()) outliers.Sum(x, row * kSegments + segment, token, extra);
      const float* from = terms + row / quant::kBlockRows * a.tiles * TermFloats(1) +
                          row % quant::kBlockRows * TermStride(1) + token;
      part = SegmentSum<1>(a, from, segment);
    }
    float sum = part, extras = extra[0];
#pragma unroll
    for (int i = 1; i < kSegments; ++i) {
      sum = __fadd_rn(sum, __shfl_down_sync(0xFFFFFFFFu, part, i));
      extras = __fadd_rn(extras, __shfl_down_sync(0xFFFFFFFFu, extra[0], i));
    }
    if (outliers.any()) sum = __fadd_rn(sum, extras);
    if (valid && segment == 0 && at < a.w.shape.rows) {
      StorePlain(a.y, a.y_type, (s.group * a.group_tokens + token) * a.y_stride + at, sum);
    }
  }
}

// The same with more tokens: neighbouring lanes are tokens of one row, each sums all segments.
template <int kTiles>
__device__ __forceinline__ void ReduceMany(const SmallArgs& a, const Share& s, const Activations& x,
                                           const float* terms, const Outliers& outliers) {
  const int outputs = s.blocks * s.tokens * quant::kBlockRows;
#pragma unroll 1
  for (int o = threadIdx.x; o < outputs; o += blockDim.x) {
    const int row = static_cast<uint32_t>(o) / static_cast<uint32_t>(s.tokens);
    const int token = o - row * s.tokens, at = s.first_block * quant::kBlockRows + row;
    if (at >= a.w.shape.rows) continue;
    float extra[kSegments] = {};
    if (outliers.any()) outliers.Sum(x, row * kSegments, token, extra);
    const float* from = terms + row / quant::kBlockRows * a.tiles * TermFloats(kTiles) +
                        row % quant::kBlockRows * TermStride(kTiles) + token;
    float sum = 0, extras = 0;
#pragma unroll
    for (int segment = 0; segment < kSegments; ++segment) {
      const float part = SegmentSum<kTiles>(a, from, segment);
      sum = segment == 0 ? part : __fadd_rn(sum, part);
      extras = segment == 0 ? extra[0] : __fadd_rn(extras, extra[segment]);
    }
    if (outliers.any()) sum = __fadd_rn(sum, extras);
    StorePlain(a.y, a.y_type, (s.group * a.group_tokens + token) * a.y_stride + at, sum);
  }
}

// The items of one warp: (tile, group of kBlocks row blocks). With few tokens a warp takes all row
// blocks of one tile index before the next, so that it can keep its activations; with more, items
// are dealt out one by one.
template <int kBlocks, bool kColumns>
struct Cursor {
  int tile, block = 0;

  __device__ __forceinline__ Cursor(const SmallArgs& a, const Share& s, int warp)
      : tile(kColumns ? warp : 0) {
    if constexpr (!kColumns) Move(s, warp);
  }
  __device__ __forceinline__ bool Valid(const SmallArgs& a) const { return tile < a.tiles; }
  __device__ __forceinline__ void Advance(const Share& s, int warps) {
    if constexpr (kColumns) {
      block += kBlocks;
      if (block >= s.blocks) {
        block = 0;
        tile += warps;
      }
    } else {
      Move(s, warps);
    }
  }

 private:
  __device__ __forceinline__ void Move(const Share& s, int items) {
    block += items * kBlocks;
    const int turn = (s.blocks + kBlocks - 1) / kBlocks * kBlocks;
    while (block >= turn) {
      block -= turn;
      ++tile;
    }
  }
};

template <int kInstance>
struct Warp {
  static constexpr Instance kI = kSmallTable[kInstance];
  static constexpr int kTiles = kI.token_tiles, kBlocks = kI.row_blocks;
  static constexpr bool kColumns = kTiles == 1;

  const SmallArgs& a;
  const Share& s;
  int lane, warps;
  TileRing ring;
  Cursor<kBlocks, kColumns> ahead, at;

  __device__ __forceinline__ Warp(const SmallArgs& args, const Share& share, uint8_t* shared)
      : a(args),
        s(share),
        lane(threadIdx.x % 32),
        warps(blockDim.x / 32),
        ring(shared + threadIdx.x / 32 * kAsyncStages * kBlocks * a.layout.tile_bytes,
             kBlocks * a.layout.tile_bytes),
        ahead(args, share, threadIdx.x / 32),
        at(ahead) {}

  __device__ __forceinline__ void Issue() {
    if (!ahead.Valid(a)) {
      ring.IssueNothing();
      return;
    }
    const TileInfo& tile = a.tile[ahead.tile];
    ring.template Issue<kBlocks>(
        a.w.tiles + (s.first_block + ahead.block) * a.row_block_bytes + tile.offset, tile.bytes,
        min(kBlocks, s.blocks - ahead.block), a.row_block_bytes, a.layout.tile_bytes);
    ahead.Advance(s, warps);
  }

  // The scales of this lane's tokens in tile `at`.
  __device__ __forceinline__ void LoadMeta(const Activations& x, int2 (&meta)[kTiles]) const {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      meta[j] = x.meta[at.tile * x.meta_stride + min(4 * j + lane % 4, s.tokens - 1)];
    }
  }

  // Waits for the tile `at`, runs product(data, sums), writes the terms, asks for another tile.
  template <typename Product>
  __device__ __forceinline__ void Step(const TileInfo& info, const int2 (&meta)[kTiles],
                                       float* terms, const Product& product) {
    const uint8_t* data = ring.Wait();
    TileSums<kBlocks, kTiles> sums;
    product(data, sums);
    const uint8_t* d = data + info.bytes - quant::kSecondOrderBytes;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      if (at.block + b >= s.blocks) break;
      WriteTerms<kTiles, kI.zero_points>(
          sums[b], d + b * a.layout.tile_bytes, meta, s.tokens, lane,
          terms + ((at.block + b) * a.tiles + at.tile) * TermFloats(kTiles));
    }
    Issue();
    at.Advance(s, warps);
  }

  // All row blocks of one tile index, with the activations of a full tile in registers.
  template <int kBits>
  __device__ __forceinline__ void KeptColumn(const TileInfo& info, const int2 (&meta)[kTiles],
                                             const uint8_t* quad,
                                             const ActivationView<kTiles>& view, float* terms) {
    TileActivations<kBits, 1> kept;
    kept.Load(quad, view);
#pragma unroll 1
    for (int i = 0; i < s.blocks; ++i) {
      Step(info, meta, terms, [&](const uint8_t* data, TileSums<kBlocks, kTiles>& sums) {
        FullTileProduct<kBits, kI.zero_points>(data, lane, kept, sums[0]);
      });
    }
  }

  __device__ __forceinline__ void Run(const Activations& x, float* terms) {
    const ActivationView<kTiles> view(x.planes, x.quad_bytes, s.tokens, lane);
#pragma unroll 1
    while (at.Valid(a)) {
      const TileInfo info = a.tile[at.tile];
      const uint8_t* quad = view.first + info.quad * view.quad_bytes;
      int2 meta[kTiles];
      LoadMeta(x, meta);
      if constexpr (kColumns) {
        if (info.chunks == quant::kTileChunks) {
          if (info.bits == 2) {
            KeptColumn<2>(info, meta, quad, view, terms);
          } else {
            KeptColumn<4>(info, meta, quad, view, terms);
          }
          continue;
        }
      }
      Step(info, meta, terms, [&](const uint8_t* data, TileSums<kBlocks, kTiles>& sums) {
        TileProduct<kBlocks, kTiles, kI.zero_points>(data, a.layout.tile_bytes, info.bits,
                                                     info.chunks, lane, quad, view, sums);
      });
    }
  }
};

template <int kInstance>
__global__ void __launch_bounds__(32 * kSmallTable[kInstance].max_warps,
                                  kSmallTable[kInstance].residency)
    SmallKernel(const __grid_constant__ SmallArgs a) {
  extern __shared__ __align__(128) uint8_t shared[];
  constexpr Instance kI = kSmallTable[kInstance];
  const Share s = Share::Of<kI.row_blocks>(a);
  Warp<kInstance> warp(a, s, shared);
#pragma unroll 1
  for (int i = 0; i < kAsyncStages; ++i) warp.Issue();
  LetNextKernelStart();
  const Activations x(a, s);
  float* terms = reinterpret_cast<float*>(shared + a.layout.terms);
  const Outliers outliers(a, s, shared);
  WaitForPreviousKernels();
  warp.Run(x, terms);
  outliers.Wait();
  __syncthreads();
  if constexpr (kI.token_tiles == 1) {
    ReduceFew(a, s, x, terms, outliers);
  } else {
    ReduceMany<kI.token_tiles>(a, s, x, terms, outliers);
  }
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

cudaError_t PrepareSmallKernels(const DeviceProps& props) {
  for (int i = 0; i < kSmallInstances; ++i) {
    cudaError_t error = cudaFuncSetAttribute(
        kKernels[i], cudaFuncAttributeMaxDynamicSharedMemorySize, props.shared_per_block);
    if (error == cudaSuccess) error = PreferShared(kKernels[i]);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t LaunchSmall(const SmallPlan& plan, int m, const DeviceMatrix& w, const StageTarget& x,
                        void* y, DType y_type, int64_t y_stride, cudaStream_t stream) {
  SmallArgs args = {};
  args.w = w;
  args.staged = x.staged;
  args.y = y;
  args.y_stride = y_stride;
  args.group_bytes = x.group_bytes;
  args.row_block_bytes = w.shape.row_block_bytes();
  args.layout = LayoutShared(w.shape, plan);
  FillTiles(w.shape, &args);
  args.m = m;
  args.group_tokens = plan.group_tokens;
  args.y_type = y_type;
  return LaunchDependent(kKernels[plan.instance], dim3(plan.blocks, plan.groups),
                         dim3(32 * plan.warps), plan.shared_bytes, stream, args);
}

}  // namespace fewbit::cuda
