// Prefill with the products of a warpgroup (sm_90): the work of PrefillKernel for heads of 64 or
// 128. A block has 128 query rows of one head, 64 to each of two warpgroups, and walks the keys in
// tiles of 128 (i8: 64) by absolute index. A third warpgroup brings the tiles, three at a time: one
// of its warps copies them; i8 is copied first and widened by all four. Scores of a tile are under
// way together with the weighted values of the tile before, and the softmax of one warpgroup runs
// beside the products of the other (after Shah et al. 2024).
#include <type_traits>

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/device/attended_row.cuh"
#include "kernels/cuda/device/fragment.cuh"
#include "kernels/cuda/device/wgmma_half.cuh"
#include "kernels/cuda/launch.h"

namespace fewbit::cuda {
namespace {

constexpr int kGroups = 2;  // warpgroups with products
constexpr int kProductThreads = 128 * kGroups;
constexpr int kFetchThreads = 128;
constexpr int kThreads = kProductThreads + kFetchThreads;
constexpr int kGroupRows = kQueryTile / kGroups;
constexpr int kProductBarrier = 1, kFetchBarrier = 2, kTurnBarrier = 3;  // named ones
constexpr float kNothingSeen = -1e30f;
static_assert(kGroupRows == 64);
static_assert(kWideStages >= 3);  // one being left, one at work, one awaited

// A tile of 16-bit numbers in shared memory: panels of keys, then of values, one per 64 dimensions;
// and the same tile of an i8 cache before it is widened.
template <kv::KvType kType, int kDim>
struct WideTile {
  static constexpr bool kWidened = kType == kv::KvType::kI8;
  static constexpr int kKeys = WideKeyTile(kType);
  static constexpr int kBlocks = kKeys / kv::kBlockTokens;
  static constexpr int kPanels = kDim / 64;
  static constexpr int kPanelBytes = kKeys * kPanelRowBytes;
  static constexpr int kValues = kPanels * kPanelBytes;
  static constexpr int kBytes = 2 * kValues;
  static constexpr int kPieceBytes = kv::kBlockTokens * kPanelRowBytes;  // of a KV block
  static constexpr int kHeadBytes = kv::DeviceBlockShape{kType, 1, kDim}.head_bytes();
  static constexpr int kRawBytes = kWidened ? kBlocks * kHeadBytes : 0;
  // Of a thread. All in all not more than the launch has, 168 for each.
  static constexpr int kProductRegisters = kWidened ? 208 : 240;
  static constexpr int kFetchRegisters = kWidened ? 88 : 24;
  static_assert(kGroups * kProductRegisters + kFetchRegisters <= 3 * 168);
};

struct Ring {
  uint8_t* tiles;
  uint8_t* raw;        // [kWideRawStages]
  uint64_t* full;      // [kWideStages], by copied bytes; i8: by fetching warps
  uint64_t* empty;     // [kWideStages], by product warps
  uint64_t* raw_full;  // [kWideRawStages], by copied bytes

  static __device__ __forceinline__ int Slot(int n) { return n % kWideStages; }
  static __device__ __forceinline__ uint32_t Parity(int n) { return n / kWideStages & 1; }
};

// What a block does: key tiles begin .. end - 1, of which keys from seen_end on are seen by nobody.
struct Walk {
  int begin, end, seen_end;

  __device__ __forceinline__ int tiles() const { return end - begin; }
};

// Where the KV blocks of a block's (sequence, kv head) are.
template <kv::KvType kType, int kDim>
class Blocks {
 public:
  __device__ Blocks(const PrefillArgs& a, const PrefillItem& item, const Walk& walk)
      : table_(a.block_table + static_cast<size_t>(item.sequence) * a.sizes->block_table_stride),
        head_(a.cache + static_cast<size_t>(blockIdx.x / a.group) * Tile::kHeadBytes),
        block_bytes_(a.block_bytes),
        first_(walk.begin * Tile::kBlocks),
        end_((walk.seen_end + kv::kBlockTokens - 1) / kv::kBlockTokens) {}

  // Blocks of tile n of the walk that somebody sees.
  __device__ int Count(int n) const {
    return min(Tile::kBlocks, end_ - first_ - n * Tile::kBlocks);
  }
  __device__ const uint8_t* At(int n, int block) const {
    return head_ + static_cast<size_t>(table_[first_ + n * Tile::kBlocks + block]) * block_bytes_;
  }

 private:
  using Tile = WideTile<kType, kDim>;
  const int32_t* const table_;
  const uint8_t* const head_;
  const size_t block_bytes_;
  const int first_, end_;
};

// By one warp: tile n of the walk when the products have left its place in the ring.
template <kv::KvType kType, int kDim>
__device__ void CopyTiles(const Blocks<kType, kDim>& blocks, const Walk& walk, const Ring& ring) {
  using Tile = WideTile<kType, kDim>;
  constexpr int kPieces = 2 * Tile::kPanels;
  static_assert(kPieces * Tile::kBlocks <= 32 && kPieces * Tile::kPieceBytes == Tile::kHeadBytes);
  const int lane = threadIdx.x % 32, block = lane / kPieces, piece = lane % kPieces;
  for (int n = 0; n < walk.tiles(); ++n) {
    const int slot = Ring::Slot(n), count = blocks.Count(n);
    if (n >= kWideStages) BarrierWait(ring.empty + slot, Ring::Parity(n) ^ 1);
    if (lane == 0) BarrierExpect(ring.full + slot, count * Tile::kHeadBytes);
    __syncwarp();
    if (block < count) {
      BulkCopy(
          ring.tiles + slot * Tile::kBytes + piece * Tile::kPanelBytes + block * Tile::kPieceBytes,
          blocks.At(n, block) + piece * Tile::kPieceBytes, Tile::kPieceBytes, ring.full + slot);
    }
  }
}

// An i8 tile as 16-bit panels, zeros from key `count` on. By the fetching warps.
template <int kDim>
__device__ void WidenTile(const uint8_t* raw, int count, uint8_t* wide) {
  using Tile = WideTile<kv::KvType::kI8, kDim>;
  constexpr int kPieces = kDim / 16;
  constexpr int kHalf = kv::kBlockTokens * kDim;
  for (int i = threadIdx.x % kFetchThreads; i < 2 * Tile::kKeys * kPieces; i += kFetchThreads) {
    const int piece = i % kPieces, row = i / kPieces;
    const int half = row / Tile::kKeys, key = row % Tile::kKeys;
    const int token = key % kv::kBlockTokens;
    uint4 out[2] = {};
    if (key < count) {
      const uint8_t* from = raw + key / kv::kBlockTokens * Tile::kHeadBytes;
      const uint4 bytes = *reinterpret_cast<const uint4*>(
          from + half * kHalf + kv::DeviceBlockShape::piece_offset(kPieces, token, piece));
      const uint32_t scale =
          reinterpret_cast<const uint16_t*>(from + 2 * kHalf)[half * kv::kBlockTokens + token];
      WidenPiece(bytes, scale, out);
    }
    uint8_t* to =
        wide + half * Tile::kValues + piece / 4 * Tile::kPanelBytes + key * kPanelRowBytes;
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      const int place = (2 * piece + p) % 8 ^ key % 8;
      *reinterpret_cast<uint4*>(to + 16 * place) = out[p];
    }
  }
}

// By a warpgroup: copies i8 tiles, two at a time, and widens each when the products have left its
// place in the ring.
template <int kDim>
__device__ void CopyAndWidenTiles(const Blocks<kv::KvType::kI8, kDim>& blocks, const Walk& walk,
                                  const Ring& ring) {
  using Tile = WideTile<kv::KvType::kI8, kDim>;
  const int thread = threadIdx.x % kFetchThreads;
  const auto copy = [&](int n) {
    if (n >= walk.tiles() || thread >= 32) return;
    const int slot = n % kWideRawStages, count = blocks.Count(n);
    if (thread == 0) BarrierExpect(ring.raw_full + slot, count * Tile::kHeadBytes);
    __syncwarp();
    if (thread < count) {
      BulkCopy(ring.raw + slot * Tile::kRawBytes + thread * Tile::kHeadBytes, blocks.At(n, thread),
               Tile::kHeadBytes, ring.raw_full + slot);
    }
  };
  for (int n = 0; n < kWideRawStages; ++n) copy(n);
  for (int n = 0; n < walk.tiles(); ++n) {
    const int slot = Ring::Slot(n), raw = n % kWideRawStages;
    BarrierWait(ring.raw_full + raw, n / kWideRawStages & 1);
    if (n >= kWideStages) BarrierWait(ring.empty + slot, Ring::Parity(n) ^ 1);
    WidenTile<kDim>(ring.raw + raw * Tile::kRawBytes,
                    walk.seen_end - (walk.begin + n) * Tile::kKeys,
                    ring.tiles + slot * Tile::kBytes);
    FenceBeforeBulkCopies();  // products read as bulk copies do
    __syncwarp();
    if (thread % 32 == 0) BarrierArrive(ring.full + slot);
    NamedBarrier(kFetchBarrier, kFetchThreads);
    copy(n + kWideRawStages);
  }
}

// Values of the tile's keys from `count` on become zero: they may be anything. By all product
// warps.
template <kv::KvType kType, int kDim>
__device__ void ZeroValues(uint8_t* tile, int count) {
  using Tile = WideTile<kType, kDim>;
  constexpr int kPieces = kPanelRowBytes / 16;
  const int rows = Tile::kKeys - count;
  for (int i = threadIdx.x; i < Tile::kPanels * rows * kPieces; i += kProductThreads) {
    const int row = i / kPieces, panel = row / rows;
    uint8_t* at = tile + Tile::kValues + panel * Tile::kPanelBytes +
                  (count + row - panel * rows) * kPanelRowBytes;
    *reinterpret_cast<uint4*>(at + 16 * (i % kPieces)) = make_uint4(0, 0, 0, 0);
  }
  FenceBeforeBulkCopies();
  NamedBarrier(kProductBarrier, kProductThreads);
}

// A warpgroup's 64 query rows against all keys. In a warp [2] are rows g and g + 8.
template <kv::KvType kType, int kDim>
struct WideRows {
  using Tile = WideTile<kType, kDim>;
  static constexpr bool kBf16 = kType == kv::KvType::kBF16;
  using Math = std::conditional_t<kBf16, BfloatMath, HalfMath>;
  static constexpr int kSteps = kDim / 16, kKeySteps = Tile::kKeys / 16;

  uint32_t q[4 * kSteps];
  uint32_t p[4 * kKeySteps];
  float s[Tile::kKeys / 2];
  float out[kDim / 2];
  float top[2], sum[2], factor[2];

  __device__ __forceinline__ void Start(const uint16_t* const (&rows)[2]) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 4 * kSteps; ++i) {
      const uint16_t* row = rows[i % 2];
      const int at = 16 * (i / 4) + 8 * (i / 2 % 2) + 2 * t;
      q[i] = row == nullptr ? 0 : *reinterpret_cast<const uint32_t*>(row + at);
    }
#pragma unroll
    for (float& v : out) v = 0;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      top[r] = kNothingSeen;
      sum[r] = 0;
    }
  }

  // Registers that products are about to read or change are ready.
  __device__ __forceinline__ void Fence() {
    WgmmaPin(q);
    WgmmaPin(p);
    WgmmaPin(s);
    WgmmaPin(out);
    WgmmaFence();
  }

  __device__ __forceinline__ void IssueScores(const uint8_t* tile) {
    const uint32_t keys = SharedAddress(tile);
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      const uint32_t at = keys + k / 4 * Tile::kPanelBytes + k % 4 * 32;
      WgmmaHalves<kBf16, 0>(s, q + 4 * k, PanelRowsOperand(at), k > 0);
    }
    WgmmaCommit();
  }

  __device__ __forceinline__ void IssueValues(const uint8_t* tile) {
    const uint32_t values = SharedAddress(tile) + Tile::kValues;
#pragma unroll
    for (int k = 0; k < kKeySteps; ++k) {
      WgmmaHalves<kBf16, 1>(out, p + 4 * k,
                            PanelColumnsOperand(values + k * Tile::kPieceBytes, Tile::kPanelBytes),
                            1);
    }
    WgmmaCommit();
  }

  // Keys that a row does not see. `first`: the tile's first key; positions of rows g and g + 8.
  __device__ __forceinline__ void Mask(int first, const int (&position)[2], int window) {
#pragma unroll
    for (int i = 0; i < Tile::kKeys / 2; ++i) {
      const int key = first + 8 * (i / 4) + 2 * static_cast<int>(threadIdx.x % 4) + i % 2;
      const int here = position[i / 2 % 2];
      if (key > here || (window > 0 && key <= here - window)) s[i] = __int_as_float(0xFF800000);
    }
  }

  // Scores become weights, and `factor` what everything before them shrinks by.
  __device__ __forceinline__ void Weigh() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float most = top[r];
#pragma unroll
      for (int j = 0; j < Tile::kKeys / 8; ++j) {
        most = fmaxf(most, fmaxf(s[4 * j + 2 * r], s[4 * j + 2 * r + 1]));
      }
      most = fmaxf(most, __shfl_xor_sync(0xFFFFFFFFu, most, 1));
      most = fmaxf(most, __shfl_xor_sync(0xFFFFFFFFu, most, 2));
      factor[r] = Exp2(top[r] - most);
      top[r] = most;
      float added[2] = {0, 0};
#pragma unroll
      for (int j = 0; j < Tile::kKeys / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& v = s[4 * j + 2 * r + i];
          v = Exp2(v - most);
          added[i] += v;
        }
      }
      sum[r] = __fmaf_rn(sum[r], factor[r], added[0] + added[1]);
    }
  }

  __device__ __forceinline__ void PackWeights() {
#pragma unroll
    for (int i = 0; i < 4 * kKeySteps; ++i) p[i] = Math::Pack(s[2 * i], s[2 * i + 1]);
  }

  __device__ __forceinline__ void Shrink() {
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) out[i] *= factor[i / 2 % 2];
  }

  // to [2]: where rows g and g + 8 go, numbers of `type`; those beyond the item do not exist.
  __device__ __forceinline__ void Store(const AttendedRow (&to)[2], DType type, int head_dim) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float scale = OneOverSum(sum[r]);
#pragma unroll
      for (int j = 0; j < kDim / 8; ++j) {
        out[4 * j + 2 * r] *= scale;
        out[4 * j + 2 * r + 1] *= scale;
      }
      if (type == DType::kF32) {
        StorePairs(to[r], r, head_dim);
      } else if (type == DType::kF16) {
        StorePieces<HalfMath>(to[r], r, head_dim);
      } else {
        StorePieces<BfloatMath>(to[r], r, head_dim);
      }
    }
  }

  __device__ __forceinline__ void StorePairs(const AttendedRow& to, int r, int head_dim) const {
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      const int d = 8 * j + 2 * (threadIdx.x % 4);
      if (!to.exists() || d >= head_dim) continue;
      to.Store(d, out[4 * j + 2 * r], out[4 * j + 2 * r + 1]);
    }
  }

  // Four lanes exchange what they have of four pieces, so that each stores a whole one.
  template <typename Out>
  __device__ __forceinline__ void StorePieces(const AttendedRow& to, int r, int head_dim) const {
#pragma unroll
    for (int j = 0; j < kDim / 8; j += 4) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        words[i] = Out::Pack(out[4 * (j + i) + 2 * r], out[4 * (j + i) + 2 * r + 1]);
      }
      Exchange(1, &words[0], &words[1]);
      Exchange(1, &words[2], &words[3]);
      Exchange(2, &words[0], &words[2]);
      Exchange(2, &words[1], &words[3]);
      const int d = 8 * (j + threadIdx.x % 4);
      if (to.exists() && d < head_dim) to.Store8(d, words);
    }
  }

  // Of two lanes, the one without bit `mask` gives its second word for the other's first.
  static __device__ __forceinline__ void Exchange(int mask, uint32_t* first, uint32_t* second) {
    const bool upper = (threadIdx.x & mask) != 0;
    const uint32_t got = __shfl_xor_sync(0xFFFFFFFFu, upper ? *first : *second, mask);
    *first = upper ? got : *first;
    *second = upper ? *second : got;
  }
};

// The two warpgroups issue their products in turn, so that one has products under way while the
// other works out weights. `tiles`: turns of each.
class Turns {
 public:
  __device__ explicit Turns(int tiles)
      : group_(threadIdx.x / 128), left_(group_ == 0 ? tiles : tiles - 1) {
    if (group_ == 1) Arrive(0);
  }
  __device__ __forceinline__ void Await() const {
    NamedBarrier(kTurnBarrier + group_, kProductThreads);
  }
  __device__ __forceinline__ void Pass() {
    if (left_-- > 0) Arrive(1 - group_);
  }

 private:
  static __device__ __forceinline__ void Arrive(int group) {
    asm volatile("bar.arrive %0, %1;" ::"r"(kTurnBarrier + group), "n"(kProductThreads) : "memory");
  }
  const int group_;
  int left_;
};

template <kv::KvType kType, int kDim>
__device__ __forceinline__ void Attend(const PrefillArgs& a, const PrefillItem& item,
                                       const Walk& walk, const Ring& ring) {
  using Tile = WideTile<kType, kDim>;
  using Rows = WideRows<kType, kDim>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int head = blockIdx.x, group_position = item.position + kGroupRows * (warp / 4);
  Rows rows;
  const uint16_t* from[2];
  AttendedRow to[2];
  int position[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = 16 * warp + lane / 4 + 8 * r;
    const size_t at = static_cast<size_t>(item.token + row) * a.num_heads + head;
    position[r] = item.position + row;
    from[r] = row < item.rows ? a.queries + at * kDim : nullptr;
    if (row < item.rows) to[r] = AttendedRow(a, at);
  }
  rows.Start(from);
  const auto tile_of = [&](int n) { return ring.tiles + Ring::Slot(n) * Tile::kBytes; };
  const int tiles = walk.tiles();
  const auto await = [&](int n) {
    if (n >= tiles) return;
    BarrierWait(ring.full + Ring::Slot(n), Ring::Parity(n));
    const int count = walk.seen_end - (walk.begin + n) * Tile::kKeys;
    if (!Tile::kWidened && count < Tile::kKeys) ZeroValues<kType, kDim>(tile_of(n), count);
  };
  const auto weigh = [&](int n) {
    const int first = (walk.begin + n) * Tile::kKeys;
    const bool edge = first + Tile::kKeys - 1 > group_position ||
                      (a.window > 0 && first <= group_position + kGroupRows - 1 - a.window);
    if (edge) rows.Mask(first, position, a.window);
    rows.Weigh();
  };
  Turns turns(tiles);
  await(0);
  await(1);
  turns.Await();
  rows.Fence();
  rows.IssueScores(tile_of(0));
  turns.Pass();
  WgmmaWait<0>();
  WgmmaPin(rows.s);
  weigh(0);
  rows.PackWeights();
  for (int n = 1; n < tiles; ++n) {
    turns.Await();
    rows.Fence();
    rows.IssueScores(tile_of(n));
    rows.IssueValues(tile_of(n - 1));
    turns.Pass();
    WgmmaWait<1>();
    WgmmaPin(rows.s);
    weigh(n);
    WgmmaPin(rows.s);
    await(n + 1);  // its branches keep ptxas from making the weights behind the wait
    WgmmaWait<0>();
    WgmmaPin(rows.out);
    WgmmaPin(rows.s);  // and packed only when the weights before are no longer read
    if (lane == 0) BarrierArrive(ring.empty + Ring::Slot(n - 1));
    rows.Shrink();
    rows.PackWeights();
  }
  rows.Fence();
  rows.IssueValues(tile_of(tiles - 1));
  WgmmaWait<0>();
  WgmmaPin(rows.out);
  rows.Store(to, a.attended_type, a.head_dim);
}

// Grid: heads, tiles. Later tiles of a prompt see more keys and start first.
template <kv::KvType kType, int kDim>
__global__ __launch_bounds__(kThreads,
                             1) void PrefillWideKernel(const __grid_constant__ PrefillArgs a) {
  using Tile = WideTile<kType, kDim>;
  extern __shared__ uint8_t unaligned[];
  LetNextKernelStart();
  const uint32_t start = SharedAddress(unaligned);
  uint8_t* tiles =
      unaligned + ((start + kWideAlignment - 1) / kWideAlignment * kWideAlignment - start);
  uint8_t* raw = tiles + kWideStages * Tile::kBytes;
  uint64_t* full = reinterpret_cast<uint64_t*>(raw + kWideRawStages * Tile::kRawBytes);
  const Ring ring = {tiles, raw, full, full + kWideStages, full + 2 * kWideStages};
  if (threadIdx.x == 0) {
    for (int i = 0; i < kWideStages; ++i) {
      BarrierInit(ring.full + i, Tile::kWidened ? kFetchThreads / 32 : 1);
      BarrierInit(ring.empty + i, kProductThreads / 32);
    }
    for (int i = 0; i < kWideRawStages; ++i) BarrierInit(ring.raw_full + i, 1);
    BarrierInitFence();
  }
  __syncthreads();
  WaitForPreviousKernels();
  const int index = a.counts->prefill_items - 1 - static_cast<int>(blockIdx.y);
  if (index < 0) return;
  const PrefillItem item = a.items[index];
  if (!IsWanted(a.wanted, item)) return;
  const int seen_end = item.position + item.rows;
  const int first_seen = a.window == 0 ? 0 : max(0, item.position - a.window + 1);
  const Walk walk = {first_seen / Tile::kKeys, (seen_end + Tile::kKeys - 1) / Tile::kKeys,
                     seen_end};
  if (threadIdx.x < kProductThreads) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Tile::kProductRegisters));
    Attend<kType, kDim>(a, item, walk, ring);
    return;
  }
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Tile::kFetchRegisters));
  const Blocks<kType, kDim> blocks(a, item, walk);
  if constexpr (Tile::kWidened) {
    CopyAndWidenTiles<kDim>(blocks, walk, ring);
  } else if (threadIdx.x < kProductThreads + 32) {
    CopyTiles<kType, kDim>(blocks, walk, ring);
  }
}

template <int kDim, typename Visit>
cudaError_t VisitKernelOf(kv::KvType type, const Visit& visit) {
  switch (type) {
    case kv::KvType::kF16:
      return visit(PrefillWideKernel<kv::KvType::kF16, kDim>);
    case kv::KvType::kBF16:
      return visit(PrefillWideKernel<kv::KvType::kBF16, kDim>);
    case kv::KvType::kI8:
      return visit(PrefillWideKernel<kv::KvType::kI8, kDim>);
    case kv::KvType::kF32:
      break;
  }
  return cudaErrorInvalidValue;
}

template <typename Visit>
cudaError_t VisitKernel(kv::KvType type, int dim, const Visit& visit) {
  return dim == 64 ? VisitKernelOf<64>(type, visit) : VisitKernelOf<128>(type, visit);
}

}  // namespace

cudaError_t PreparePrefillWide(kv::KvType type, int dim, size_t shared_bytes) {
  return VisitKernel(type, dim, [&](auto kernel) { return ReserveShared(kernel, shared_bytes); });
}

cudaError_t LaunchPrefillWide(kv::KvType type, int dim, const PrefillArgs& args, int tiles,
                              size_t shared_bytes, cudaStream_t stream) {
  return VisitKernel(type, dim, [&](auto kernel) {
    return LaunchDependent(kernel, dim3(args.num_heads, tiles), dim3(kThreads), shared_bytes,
                           stream, args);
  });
}

}  // namespace fewbit::cuda
