// What the warps of the persistent small-batch kernel (linear_stream.cu) share: parameters, the
// map of a row block's tiles, the block's shared memory and its barriers.
#pragma once

#include "kernels/cuda/device/async_copy.cuh"
#include "kernels/cuda/stream_plan.h"

namespace fewbit::cuda {

struct StreamPart {
  const uint8_t* tiles;
  const uint32_t* outlier_start;
  const uint32_t* outliers;  // null: none
  StageTarget x;
  int64_t column;
  int rows, row_blocks;
  // Of the grid. Every block has `share` row blocks or, the first `larger` ones, one more.
  int first_block, share, larger;
  uint32_t row_block_bytes, section2_bytes;
  int num_tiles, tiles2;
  int last2, last4;  // chunks of the last tile of each width
  int quads2;        // in 2-bit tiles
  int segment_begin[kSegments + 1];
};

struct StreamArgs {
  StreamPart part[kMostParts];
  int count;
  void* y;
  const float* add;  // null: nothing
  int64_t y_stride;
  DType y_type;
  int m;
  int stages, stage_tiles, term_slots;
  bool lets_next;
  int cols;
  RowSource source;
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
    first_row_block = id * p.share + min(id, p.larger);
    row_blocks = p.share + (id < p.larger ? 1 : 0);
  }
};

// One tile to multiply, as the producer works it out for the consumers. Places are byte offsets in
// shared memory.
struct alignas(16) TileWork {
  uint32_t data;
  uint32_t planes;  // of the activations: the tile's first quad
  uint32_t meta;    // {scale, bias} of its tokens
  uint32_t terms;   // place | kFlags

  static constexpr uint32_t kPlaceBits = 18;
  static constexpr uint32_t kChunksShift = 18, kSlotShift = 21;  // 3 bits each
  static constexpr uint32_t kWide = 1u << 24;                    // 4-bit codes
  static constexpr uint32_t kWait = 1u << 25;                    // for the term slot, phase kParity
  static constexpr uint32_t kParity = 1u << 26;
};
static_assert(kMostTermSlots <= 8);

// Barriers behind each other in shared memory, by address.
struct BarrierArray {
  uint32_t first;
  __device__ __forceinline__ uint32_t operator[](int i) const { return first + 8 * i; }
};

// A block's shared memory and barriers: `full` and `empty` of every ring stage, `ready` and `free`
// of every term slot.
struct StreamBlock {
  uint8_t* shared;
  uint32_t address;  // of `shared`
  TileWork* works;   // [stages][stage_tiles]
  BarrierArray full, empty, ready, free;

  __device__ __forceinline__ StreamBlock(const StreamArgs& a, uint8_t* memory)
      : shared(memory),
        address(SharedAddress(memory)),
        works(reinterpret_cast<TileWork*>(memory + a.layout.works)),
        full{address + a.layout.barriers},
        empty{full[a.stages]},
        ready{empty[a.stages]},
        free{ready[a.term_slots]} {}
  // By one warp. `finished`: arrivals that complete a row block's terms.
  __device__ __forceinline__ void InitBarriers(const StreamArgs& a, int finished, int lane) const {
    if (lane < a.stages) {
      BarrierInit(full[lane], 1);
      BarrierInit(empty[lane], a.stage_tiles);
    }
    if (lane < a.term_slots) {
      BarrierInit(ready[lane], finished);
      BarrierInit(free[lane], 1);
    }
    BarrierInitFence();
    __syncwarp();
  }
};

// The same pointer; what is made of it is made anew, and it is not taken apart again.
template <typename T>
__device__ __forceinline__ T* Opaque(T* p) {
  asm volatile("" : "+l"(p));
  return p;
}

// The thread's number in its warp, in a register of its own: it is read there instead of from the
// thread's index each time, and what is made of it before is not kept.
__device__ __forceinline__ int OpaqueLane() {
  int lane = threadIdx.x % 32;
  asm volatile("" : "+r"(lane));
  __builtin_assume(lane >= 0 && lane < 32);
  return lane;
}

// A place in a ring of `size` slots, with the parity of its present phase.
struct RingPlace {
  int slot = 0;
  uint32_t parity = 0;

  // by <= size.
  __device__ __forceinline__ void Advance(int by, int size) {
    slot += by;
    if (slot >= size) {
      slot -= size;
      parity ^= 1;
    }
  }
};

}  // namespace fewbit::cuda
