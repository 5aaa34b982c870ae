// Between linear.cc and the per-instruction-set files: plain structs, constants and one table of
// functions per instruction set.
//
// Files compiled with -mavx2 or -mavx512* include this header, intrinsics and nothing else, and
// keep every function of theirs in an anonymous namespace: an inline function or template instance
// with vague linkage could otherwise be the copy that the linker keeps for the whole program, and
// would then fault on an older processor. For that reason there are no functions here, and every
// offset that these files need is computed by linear.cc.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fewbit::cpu {

// Tokens from which outliers are applied to 16 tokens at once, from a transposed copy of the 2-bit
// strips' activations.
inline constexpr int kTransposeMinTokens = 8;
inline constexpr int kTransposeTokens = 16;
inline constexpr int kInt8Block = 128;  // channels of an 8-bit block

// Stored halves are 64 * d and the kernels want d / 2; a power of two, so the product with a scale
// stays exact. The scale of a staged chunk carries it: scales[chunk] = max|x| / 127 * kHalfStep.
inline constexpr float kHalfStep = 1.0f / 128.0f;
inline constexpr float kMaxCode = 127.0f;
// A chunk whose largest magnitude is below this is staged as zeros (127 / max must not overflow).
inline constexpr uint32_t kMinMagnitudeBits = 0x0D000000u;  // about 3.9e-31
inline constexpr uint32_t kInfBits =
    0x7F800000u;  // from here: Inf or NaN, which makes the chunk's scale NaN

// One row block of tiles is section2 (tiles2 tiles of 2 bits), then the 4-bit tiles.
struct PackedView {
  const uint8_t* tiles;
  const uint16_t* strip_order;
  const uint32_t* outlier_start;  // null: no outliers
  const uint32_t* outliers;
  size_t row_block_bytes;
  size_t section2_bytes;
  int32_t rows, cols;
  int32_t chunks2, chunks4;
  int32_t tiles2, tiles4;
  bool zero_points;
};

struct Int8View {
  const uint8_t* codes;
  const float* scales;
  int32_t rows, cols, blocks;
};

enum class DenseType : uint8_t { kF32, kF16, kBF16 };

struct DenseView {
  const void* data;
  DenseType type;
  int32_t rows, cols;
};

// Staged activations. The record of token t begins at t * token_stride:
//   packed: chunks2 x (128 B int8 | 64 B sums), chunks4 x (64 B int8 | 32 B sums), then float
//   scales[chunks2 + chunks4] 8-bit:  blocks x 128 B int8 (zero beyond cols), then blocks x int32
//   bias, then float scales[blocks]
// The order of the int8 values inside a chunk and what the sums mean belong to the instruction set
// (and to whether tokens == 1). With outliers and tokens >= kTransposeMinTokens a float array
// [ceil(tokens / 16), 128 * chunks2, 16] follows at transposed_offset.
struct ActivationLayout {
  size_t token_stride;
  size_t chunk4_offset;
  size_t bias_offset;  // 8-bit only
  size_t scale_offset;
  size_t transposed_offset;  // 0: none
  size_t total;
};

inline constexpr int kChunk2Codes = 128, kChunk2Stride = 192;
inline constexpr int kChunk4Codes = 64, kChunk4Stride = 96;

struct StageCall {
  const float* x;
  size_t x_stride;
  int tokens, token_begin, token_end;
  uint8_t* activations;
  ActivationLayout layout;
};

struct LinearCall {
  const float* x;
  size_t x_stride;
  const uint8_t* activations;
  ActivationLayout layout;
  int tokens, row_begin, row_end;
  float* y;
  size_t y_stride;
};

struct LinearKernels {
  void (*stage_packed)(const PackedView& w, const StageCall& call);
  void (*stage_int8)(const Int8View& w, const StageCall& call);
  void (*packed)(const PackedView& w, const LinearCall& call);
  void (*int8)(const Int8View& w, const LinearCall& call);
  void (*dense)(const DenseView& w, const LinearCall& call);
};

extern const LinearKernels kPortableLinear;
extern const LinearKernels kAvx2Linear;
extern const LinearKernels kAvx512Linear;

}  // namespace fewbit::cpu
