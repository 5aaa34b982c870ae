#include "kernels/cuda/device_tile.h"
#include "kernels/cuda/repack.h"
#include "kernels/quant_access.h"

namespace fewbit::cuda {
namespace {

struct TilePlace {
  int bits;
  int chunks;
  size_t offset;
};

__device__ TilePlace PlaceOfTile(const quant::PackedShape& s, int tile) {
  const int bits = tile < s.tiles(2) ? 2 : 4;
  const int of_width = bits == 2 ? tile : tile - s.tiles(2);
  return {bits, s.tile_chunks(bits, of_width), s.tile_offset(bits, of_width)};
}

__device__ uint32_t Word(const uint8_t* p) { return *reinterpret_cast<const uint32_t*>(p); }

__device__ uint32_t Field(const uint8_t* base, quant::CodePlace place, int bits) {
  return (Word(base + place.offset) >> place.shift) & ((1u << bits) - 1u);
}

// Code word `w` of lane 4g + t: see device_tile.h.
__device__ uint32_t CodeWord(const uint8_t* chunk, int bits, int g, int t, int w) {
  const int row = g + 8 * (w & 1), strip = bits == 2 ? 4 * (w >> 1) + t : t;
  uint32_t word = 0;
  for (int c = 0; c < quant::kStripChannels; ++c) {
    uint32_t code = Field(chunk, quant::PlaceOfCode(bits, row, strip, c), bits);
    if (bits == 4) code = (w >> 1) == 0 ? code >> 2 : code & 3u;
    word |= code << (8 * (c & 3) + 2 * (c >> 2));
  }
  return word;
}

// One block per tile, one warp per chunk.
__global__ void RepackKernel(quant::PackedShape shape, const uint8_t* from, uint8_t* to) {
  const TilePlace tile = PlaceOfTile(shape, blockIdx.y);
  const size_t at = blockIdx.x * shape.row_block_bytes() + tile.offset;
  const int chunk = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int bits = tile.bits, scale_bytes = quant::ChunkScaleBytes(bits);
  const int record = RecordBytes(bits, shape.zero_points);
  if (chunk >= tile.chunks) return;
  const uint8_t* codes = from + at + chunk * quant::kChunkCodeBytes;
  const uint8_t* all_scales = from + at + tile.chunks * quant::kChunkCodeBytes;
  const uint8_t* scales = all_scales + chunk * scale_bytes;
  const uint8_t* all_zeros = all_scales + tile.chunks * scale_bytes;
  const uint8_t* zeros = all_zeros + chunk * quant::ChunkZeroBytes(shape.zero_points);
  uint8_t* out = to + at + chunk * record;
  for (int w = 0; w < 4; ++w) {
    reinterpret_cast<uint32_t*>(out + 16 * lane)[w] = CodeWord(codes, bits, g, t, w);
  }
  uint32_t scale_field = 0, zero_field = 0;
  for (int i = 0; i < (bits == 2 ? 4 : 2); ++i) {
    const int row = g + 8 * (i & 1), strip = bits == 2 ? 4 * (i >> 1) + t : t;
    scale_field |= Field(scales, quant::PlaceOfSubScale(bits, row, strip), 4) << (4 * i);
    if (shape.zero_points) {
      zero_field |= Field(zeros, quant::PlaceOfZero(bits, row, strip), bits) << (bits * i);
    }
  }
  uint8_t* out_scales = out + quant::kChunkCodeBytes;
  if (bits == 2) {
    reinterpret_cast<uint16_t*>(out_scales)[lane] = static_cast<uint16_t>(scale_field);
  } else {
    out_scales[lane] = static_cast<uint8_t>(scale_field);
  }
  if (shape.zero_points) out_scales[scale_bytes + lane] = static_cast<uint8_t>(zero_field);
  if (chunk == 0 && lane < quant::kSecondOrderBytes / 4) {
    const uint8_t* d = all_zeros + tile.chunks * quant::ChunkZeroBytes(shape.zero_points);
    reinterpret_cast<uint32_t*>(to + at + tile.chunks * record)[lane] = Word(d + 4 * lane);
  }
}

}  // namespace

cudaError_t Repack(const quant::PackedShape& shape, const uint8_t* from, uint8_t* to,
                   cudaStream_t stream) {
  const dim3 grid(shape.row_blocks(), NumTiles(shape));
  RepackKernel<<<grid, 32 * quant::kTileChunks, 0, stream>>>(shape, from, to);
  return cudaGetLastError();
}

}  // namespace fewbit::cuda
