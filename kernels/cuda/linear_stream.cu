// Linear layers for up to 8 tokens on sm_90: one persistent block per multiprocessor, at most half
// of its registers and shared memory, so that the blocks of the next linear layer become resident
// and fill their rings with weights while this one still runs. A block owns a run of 16-row blocks
// of one matrix, one stretch of memory, and its warps have roles:
//   producer    asks for the weights, a few tiles per bulk copy, as far ahead as the ring has room;
//               waits for the kernels before this one, then asks for the activations
//   consumers   take tiles in turn and leave one float term per (row, token, tile)
//   finishers   sum the outliers of a row block while its tiles are under way, then add up its
//   terms
//               in the order that device_tile.h defines, and store the results
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <array>
#include <utility>

#include "kernels/cuda/device/async_copy.cuh"
#include "kernels/cuda/device/terms.cuh"
#include "kernels/cuda/device/tile_product.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_stream.h"

namespace fewbit::cuda {
namespace {

struct StreamPart {
  const uint8_t* tiles;
  const uint32_t* outlier_start;
  const uint32_t* outliers;  // null: none
  const uint8_t* staged;
  int64_t column;
  int rows, row_blocks;
  int first_block, blocks;  // of the grid
  uint32_t row_block_bytes, section2_bytes, x_bytes;
  int num_tiles, tiles2;
  int last2, last4;  // chunks of the last tile of each width
  int quads2;        // in 2-bit tiles
  int segment_begin[kSegments + 1];
};

struct StreamArgs {
  StreamPart part[kMostParts];
  int count;
  void* y;
  int64_t y_stride;
  DType y_type;
  int m;
  int log_tokens;  // of m rounded up to a power of two
  int stages, stage_tiles, term_slots;
  StreamLayout layout;
};

// The tiles of a row block, by arithmetic instead of a table.
template <bool kZeroPoints>
struct TileMap {
  static constexpr uint32_t kBytes2 = quant::TileBytes(2, quant::kTileChunks, kZeroPoints);
  static constexpr uint32_t kBytes4 = quant::TileBytes(4, quant::kTileChunks, kZeroPoints);

  // Of tile `tile` in its row block; the end of the row block for the number of tiles.
  static __device__ __forceinline__ uint32_t Offset(const StreamPart& p, int tile) {
    return tile < p.tiles2 ? tile * kBytes2
                           : min(p.section2_bytes + (tile - p.tiles2) * kBytes4, p.row_block_bytes);
  }
  static __device__ __forceinline__ int FirstQuad(const StreamPart& p, int tile) {
    return tile < p.tiles2 ? tile * quant::kTileChunks * ChunkQuads(2)
                           : p.quads2 + (tile - p.tiles2) * quant::kTileChunks * ChunkQuads(4);
  }
  static __device__ __forceinline__ int Chunks(const StreamPart& p, int tile) {
    const int last = tile + 1 == p.tiles2 ? p.last2 : p.last4;
    return tile + 1 == p.tiles2 || tile + 1 == p.num_tiles ? last : quant::kTileChunks;
  }
};

// What one block owns.
struct StreamShare {
  int first_row_block, row_blocks;

  __device__ __forceinline__ explicit StreamShare(const StreamPart& p) {
    const int id = static_cast<int>(blockIdx.x) - p.first_block;
    const int each = p.row_blocks / p.blocks, rest = p.row_blocks - each * p.blocks;
    first_row_block = id * each + min(id, rest);
    row_blocks = each + (id < rest ? 1 : 0);
  }
};

// The barriers of a block: `full` and `empty` of every ring stage, `ready` and `free` of every term
// slot, and the one of the activations.
struct StreamBarriers {
  uint64_t *full, *empty, *ready, *free, *x;

  __device__ __forceinline__ StreamBarriers(const StreamArgs& a, uint8_t* shared)
      : full(reinterpret_cast<uint64_t*>(shared + a.layout.barriers)),
        empty(full + a.stages),
        ready(empty + a.stages),
        free(ready + a.term_slots),
        x(free + a.term_slots) {}
  __device__ __forceinline__ void Init(const StreamArgs& a, int tiles, int finishers, int lane) {
    if (lane < a.stages) {
      BarrierInit(full + lane, 1);
      BarrierInit(empty + lane, a.stage_tiles);
    }
    if (lane < a.term_slots) {
      BarrierInit(ready + lane, tiles);
      BarrierInit(free + lane, finishers);
    }
    if (lane == 0) BarrierInit(x, 1);
    BarrierInitFence();
    __syncwarp();
  }
};

// A place in a ring of `size` slots, with the parity of the phase that a waiter waits for.
struct RingPlace {
  int slot;
  uint32_t parity = 0;

  __device__ __forceinline__ void Advance(int by, int size) {
    slot += by;
    while (slot >= size) {
      slot -= size;
      parity ^= 1;
    }
  }
};

// One lane asks for everything: the whole share of the block in stages of a.stage_tiles tiles.
template <bool kZeroPoints>
__device__ __forceinline__ void Produce(const StreamArgs& a, const StreamPart& p,
                                        const StreamShare& s, const StreamBarriers& b,
                                        uint8_t* shared) {
  using Map = TileMap<kZeroPoints>;
  const uint64_t policy = ReadOncePolicy();
  const uint8_t* from = p.tiles + static_cast<size_t>(s.first_row_block) * p.row_block_bytes;
  const int items = s.row_blocks * p.num_tiles;
  const int stages = (items + a.stage_tiles - 1) / a.stage_tiles;
  const int ahead = min(stages, a.stages);
  int left = items, tile = 0;
  uint32_t begin = 0, row_block = 0;  // byte offsets in the share: of the stage, of the row block
  RingPlace place = {0};
#pragma unroll 1
  for (int stage = 0; stage <= stages; ++stage) {
    if (stage == ahead) {
      WaitForPreviousKernels();
      BarrierExpect(b.x, p.x_bytes);
      BulkCopy(shared + a.layout.x, p.staged, p.x_bytes, b.x);
    }
    if (stage == stages) break;
    if (stage >= a.stages) BarrierWait(b.empty + place.slot, place.parity ^ 1);
    tile += min(left, a.stage_tiles);
    left -= a.stage_tiles;
    while (tile >= p.num_tiles) {
      tile -= p.num_tiles;
      row_block += p.row_block_bytes;
    }
    const uint32_t end = row_block + Map::Offset(p, tile);
    BarrierExpect(b.full + place.slot, end - begin);
    BulkCopyOnce(shared + place.slot * a.layout.stage_bytes, from + begin, end - begin,
                 b.full + place.slot, policy);
    begin = end;
    place.Advance(1, a.stages);
  }
}

// The activations of the block's matrix in shared memory, in the staged form.
struct StreamActivations {
  const int2* meta;  // {scale, bias} [tile][meta_stride]
  int meta_stride;
  const uint8_t* planes;
  int quad_bytes;

  __device__ __forceinline__ StreamActivations(const StreamArgs& a, const StreamPart& p,
                                               const uint8_t* shared)
      : meta(reinterpret_cast<const int2*>(shared + a.layout.x)),
        meta_stride(EvenTokens(a.m)),
        planes(shared + a.layout.x + p.num_tiles * meta_stride * sizeof(int2)),
        quad_bytes(QuadBytes(a.m)) {}

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

template <int kTiles, bool kZeroPoints>
__device__ __forceinline__ void Consume(const StreamArgs& a, const StreamPart& p,
                                        const StreamShare& s, const StreamBarriers& b, int warp,
                                        int warps, uint8_t* shared) {
  using Map = TileMap<kZeroPoints>;
  const int lane = threadIdx.x % 32;
  const StreamActivations x(a, p, shared);
  const ActivationView<kTiles> view(x.planes, x.quad_bytes, a.m, lane);
  float* terms = reinterpret_cast<float*>(shared + a.layout.terms);
  const int in_stage = warp % a.stage_tiles, step = warps / a.stage_tiles;
  RingPlace place = {warp / a.stage_tiles}, slot = {0};
  int tile = warp, row_block = 0;
  BarrierWait(b.x, 0);
#pragma unroll 1
  while (true) {
    while (tile >= p.num_tiles) {
      tile -= p.num_tiles;
      ++row_block;
      slot.Advance(1, a.term_slots);
    }
    if (row_block >= s.row_blocks) break;
    // The stage holds the tiles since `first`, perhaps from the row block before.
    int first = tile - in_stage;
    uint32_t offset = Map::Offset(p, tile);
    while (first < 0) {
      first += p.num_tiles;
      offset += p.row_block_bytes;
    }
    offset -= Map::Offset(p, first);
    int2 meta[kTiles];
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      meta[j] = x.meta[tile * x.meta_stride + min(4 * j + lane % 4, a.m - 1)];
    }
    const uint8_t* quad = view.first + Map::FirstQuad(p, tile) * x.quad_bytes;
    const int chunks = Map::Chunks(p, tile);
    const uint8_t* data = shared + place.slot * a.layout.stage_bytes + offset;
    BarrierWait(b.full + place.slot, place.parity);
    int sums[kTiles][4];
    int record;
    if (tile < p.tiles2) {
      WholeTileProduct<kTiles, 2, kZeroPoints>(data, chunks, lane, quad, view, sums);
      record = RecordBytes(2, kZeroPoints);
    } else {
      WholeTileProduct<kTiles, 4, kZeroPoints>(data, chunks, lane, quad, view, sums);
      record = RecordBytes(4, kZeroPoints);
    }
    if (row_block >= a.term_slots) BarrierWait(b.free + slot.slot, slot.parity ^ 1);
    WriteTerms<kTiles, kZeroPoints>(sums, data + chunks * record, meta, a.m, lane,
                                    terms + (slot.slot * p.num_tiles + tile) * TermFloats(kTiles));
    __syncwarp();
    if (lane == 0) {
      BarrierArrive(b.empty + place.slot);
      BarrierArrive(b.ready + slot.slot);
    }
    place.Advance(step, a.stages);
    tile += warps;
  }
}

__device__ __forceinline__ void StoreOutput(const StreamArgs& a, int64_t at, float value) {
  if (a.y_type == DType::kF32) {
    static_cast<float*>(a.y)[at] = value;
  } else if (a.y_type == DType::kF16) {
    static_cast<__half*>(a.y)[at] = __float2half_rn(value);
  } else {
    static_cast<__nv_bfloat16*>(a.y)[at] = __float2bfloat16_rn(value);
  }
}

// The outlier lists of the share, which lie behind each other, in shared memory.
class StreamOutliers {
 public:
  __device__ __forceinline__ StreamOutliers(const StreamArgs& a, const StreamPart& p,
                                            const StreamShare& s, uint8_t* shared)
      : global_(p.outliers),
        bounds_(reinterpret_cast<uint32_t*>(shared + a.layout.bounds)),
        entries_(reinterpret_cast<uint32_t*>(shared + a.layout.entries)),
        capacity_(a.layout.entry_capacity) {}

  // Asks for the lists; they are weights and need no wait for earlier kernels. `id` of `threads`
  // threads, which then Wait() and pass a barrier of theirs.
  __device__ __forceinline__ void Fetch(const StreamPart& p, const StreamShare& s, int id,
                                        int threads) const {
    if (global_ == nullptr) return;
    const int lists = s.row_blocks * quant::kBlockRows * kSegments;
    const uint32_t* start =
        p.outlier_start + static_cast<size_t>(s.first_row_block) * quant::kBlockRows * kSegments;
    for (int i = id; i <= lists; i += threads) CopyAsync4(bounds_ + i, start + i);
    const uint32_t begin = __ldg(start), count = min(__ldg(start + lists) - begin, capacity_);
    for (uint32_t i = id; i < count; i += threads) CopyAsync4(entries_ + i, global_ + begin + i);
    CopyAsyncCommit();
  }
  __device__ __forceinline__ void Wait() const { CopyAsyncWait<0>(); }
  __device__ __forceinline__ bool any() const { return global_ != nullptr; }

  // The outliers of one list times the activations of `token`, in list order.
  __device__ __forceinline__ float Sum(const StreamActivations& x, int list, int token) const {
    const uint32_t base = bounds_[0];
    uint32_t at = bounds_[list] - base;
    const uint32_t end = bounds_[list + 1] - base;
    float sum = 0;
#pragma unroll 1
    for (; at < end; ++at) {
      const uint32_t entry = at < capacity_ ? entries_[at] : __ldg(global_ + base + at);
      const float value = __half2float(__ushort_as_half(static_cast<uint16_t>(entry >> 16)));
      sum = __fmaf_rn(value, x.Value(static_cast<int>(entry & 0xFFFF), token), sum);
    }
    return sum;
  }

 private:
  const uint32_t* global_;
  uint32_t* bounds_;
  uint32_t* entries_;
  uint32_t capacity_;
};

// ((v of this lane + that of the next segment) + ...), valid in lanes of segment 0; the segments of
// a row lie 2^log_stride lanes apart.
__device__ __forceinline__ float AddSegments(float v, int log_stride) {
  float sum = v;
#pragma unroll
  for (int i = 1; i < kSegments; ++i) {
    sum = __fadd_rn(sum, __shfl_down_sync(0xFFFFFFFFu, v, i << log_stride));
  }
  return sum;
}

// Lanes have one (row, segment, token) each; tokens are neighbours, then segments, then rows.
template <int kForm>
__device__ __forceinline__ void Finish(const StreamArgs& a, const StreamPart& p,
                                       const StreamShare& s, const StreamBarriers& b, int id,
                                       uint8_t* shared) {
  constexpr StreamForm kF = kStreamForms[kForm];
  constexpr int kThreads = 32 * kF.finishers, kLists = quant::kBlockRows * kSegments;
  constexpr int kMostPasses = kLists * 4 * kF.token_tiles / kThreads;
  const StreamActivations x(a, p, shared);
  const StreamOutliers outliers(a, p, s, shared);
  const float* terms = reinterpret_cast<const float*>(shared + a.layout.terms);
  outliers.Fetch(p, s, id, kThreads);
  WaitForPreviousKernels();
  outliers.Wait();
  NamedBarrier(1, kThreads);
  BarrierWait(b.x, 0);
  const int token = id & ((1 << a.log_tokens) - 1), segment = (id >> a.log_tokens) % kSegments;
  const int row_of_pass = kThreads >> (a.log_tokens + 2), first_row = id >> (a.log_tokens + 2);
  const int passes = (quant::kBlockRows + row_of_pass - 1) / row_of_pass;
  const int tile_begin = p.segment_begin[segment], tile_end = p.segment_begin[segment + 1];
  const bool valid = token < a.m;
  RingPlace slot = {0};
#pragma unroll 1
  for (int row_block = 0; row_block < s.row_blocks; ++row_block) {
    float extra[kMostPasses] = {};
#pragma unroll
    for (int i = 0; i < kMostPasses; ++i) {
      const int row = first_row + i * row_of_pass;
      if (!outliers.any() || i >= passes) break;
      float e = 0;
      if (valid && row < quant::kBlockRows) {
        e = outliers.Sum(x, row_block * kLists + row * kSegments + segment, token);
      }
      extra[i] = AddSegments(e, a.log_tokens);
    }
    BarrierWait(b.ready + slot.slot, slot.parity);
    const float* from = terms + slot.slot * p.num_tiles * TermFloats(kF.token_tiles) + token;
#pragma unroll
    for (int i = 0; i < kMostPasses; ++i) {
      const int row = first_row + i * row_of_pass;
      if (i >= passes) break;
      float part = 0;
      if (valid && row < quant::kBlockRows) {
#pragma unroll 4
        for (int tile = tile_begin; tile < tile_end; ++tile) {
          part = __fadd_rn(
              part, from[tile * TermFloats(kF.token_tiles) + row * TermStride(kF.token_tiles)]);
        }
      }
      float sum = AddSegments(part, a.log_tokens);
      if (outliers.any()) sum = __fadd_rn(sum, extra[i]);
      const int at = (s.first_row_block + row_block) * quant::kBlockRows + row;
      if (valid && segment == 0 && row < quant::kBlockRows && at < p.rows) {
        StoreOutput(a, token * a.y_stride + p.column + at, sum);
      }
    }
    __syncwarp();
    if (id % 32 == 0) BarrierArrive(b.free + slot.slot);
    slot.Advance(1, a.term_slots);
  }
}

template <int kForm, bool kZeroPoints>
__global__ void __launch_bounds__(32 * kStreamForms[kForm].warps(), 2)
    StreamKernel(const __grid_constant__ StreamArgs a) {
  extern __shared__ __align__(128) uint8_t shared[];
  constexpr StreamForm kF = kStreamForms[kForm];
  int id = 0;
  while (id + 1 < a.count && static_cast<int>(blockIdx.x) >= a.part[id + 1].first_block) ++id;
  const StreamPart& p = a.part[id];
  const StreamShare s(p);
  StreamBarriers b(a, shared);
  const int warp = threadIdx.x / 32;
  LetNextKernelStart();
  if (warp == 0) {
    b.Init(a, p.num_tiles, kF.finishers, threadIdx.x);
    __syncthreads();
    if (threadIdx.x == 0) Produce<kZeroPoints>(a, p, s, b, shared);
  } else if (warp <= kF.finishers) {
    __syncthreads();
    Finish<kForm>(a, p, s, b, threadIdx.x - 32, shared);
  } else {
    __syncthreads();
    Consume<kF.token_tiles, kZeroPoints>(a, p, s, b, warp - 1 - kF.finishers, kF.consumers, shared);
  }
}

using Kernel = void (*)(StreamArgs);
constexpr Kernel kKernels[kStreamForms.size()][2] = {
    {StreamKernel<0, false>, StreamKernel<0, true>},
    {StreamKernel<1, false>, StreamKernel<1, true>}};

void FillPart(const DeviceMatrix& w, const StageTarget& x, int64_t column, StreamPart* p) {
  const quant::PackedShape& s = w.shape;
  p->tiles = w.tiles;
  p->outlier_start = w.outlier_start;
  p->outliers = w.outliers;
  p->staged = x.staged;
  p->column = column;
  p->rows = s.rows;
  p->row_blocks = s.row_blocks();
  p->row_block_bytes = static_cast<uint32_t>(s.row_block_bytes());
  p->section2_bytes = static_cast<uint32_t>(s.section_bytes(2));
  p->x_bytes = x.group_bytes;
  p->num_tiles = NumTiles(s);
  p->tiles2 = s.tiles(2);
  p->last2 = s.tiles(2) > 0 ? s.tile_chunks(2, s.tiles(2) - 1) : 0;
  p->last4 = s.tiles(4) > 0 ? s.tile_chunks(4, s.tiles(4) - 1) : 0;
  p->quads2 = s.chunks2 * ChunkQuads(2);
  for (int i = 0; i <= kSegments; ++i) p->segment_begin[i] = SegmentBegin(p->num_tiles, i);
}

}  // namespace

cudaError_t PrepareStreamKernels(const DeviceProps& props) {
  if (props.major < 9) return cudaSuccess;
  for (const auto& form : kKernels) {
    for (Kernel kernel : form) {
      const cudaError_t error = cudaFuncSetAttribute(
          kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, props.shared_per_block);
      if (error != cudaSuccess) return error;
    }
  }
  return cudaSuccess;
}

cudaError_t LaunchStream(const Desc& desc, const StreamPlan& plan, const DeviceGroup& group,
                         const LinearInput& in, const LinearOutput& out, cudaStream_t stream) {
  StreamArgs args = {};
  args.count = desc.count;
  for (int i = 0; i < desc.count; ++i) {
    FillPart(group.parts[i], in.parts[i], out.column[i], &args.part[i]);
    args.part[i].first_block = plan.first_block[i];
    args.part[i].blocks = plan.first_block[i + 1] - plan.first_block[i];
  }
  args.y = out.y;
  args.y_stride = out.stride;
  args.y_type = desc.y_type;
  args.m = desc.m;
  while ((1 << args.log_tokens) < desc.m) ++args.log_tokens;
  args.stages = plan.stages;
  args.stage_tiles = plan.stage_tiles;
  args.term_slots = plan.term_slots;
  args.layout = plan.layout;
  const Kernel kernel = kKernels[plan.form][desc.shapes[0].zero_points];
  const dim3 grid(plan.blocks), block(32 * kStreamForms[plan.form].warps());
  if (plan.early) {
    return LaunchDependent(kernel, grid, block, plan.layout.total, stream, args);
  }
  kernel<<<grid, block, plan.layout.total, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace fewbit::cuda
