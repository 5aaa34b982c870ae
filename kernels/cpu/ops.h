// The operations of a decoder that are not linear layers, on float32 rows. Every result is the
// same, bit for bit, for every Isa: sums run in 16 fixed lanes that are folded in one fixed tree,
// multiply-adds are fused where the code says so and nowhere else, and exp is our own. NaN in gives
// NaN out. No alignment is required.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/linear.h"
#include "kernels/kv_layout.h"

namespace fewbit::cpu {

// out[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i]. `out` may be `x`.
void RmsNorm(Isa isa, const float* x, const float* weight, float eps, int n, float* out);

// x[i] += delta[i]
void AddRow(Isa isa, float* x, const float* delta, int n);

// gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i]
void SiluMul(Isa isa, float* gate, const float* up, int n);

// Turns the first rotary_dim elements of one head by the angles whose cosines and sines are given
// [rotary_dim / 2]. Pair i is (2i, 2i + 1) if interleaved, else (i, i + rotary_dim / 2).
void Rotate(Isa isa, float* head, const float* cosines, const float* sines, int rotary_dim,
            bool interleaved);

// Writes one token's key and value [D] of one head into a block; f16 elements are rounded to
// nearest even and clamped to +-65504.
void StoreKeyValue(Isa isa, const kv::BlockShape& shape, void* block, int head, int token,
                   const float* key, const float* value);

// Some query rows of one sequence against the keys and values of one kv head.
struct AttentionTile {
  const float* queries = nullptr;      // [rows, padded D], normed, turned and scaled; padding 0
  const int32_t* positions = nullptr;  // [rows]; a row sees keys position - window + 1 .. position
  int32_t rows = 0;                    // at most kMaxTileRows
  int32_t window = 0;                  // 0: from key 0
  const uint8_t* layer = nullptr;      // the layer's block 0
  const void* blocks = nullptr;        // the sequence's block table: 32-bit block numbers
  kv::BlockShape shape;
  int32_t head = 0;      // kv head
  float* out = nullptr;  // [rows, padded D]
};
inline constexpr int kMaxTileRows = 64;

// Scratch of Attend, per thread.
size_t AttentionScratchBytes(int padded_dim);

// out[r] = softmax(queries[r] . keys) values. Keys are taken in groups of 64 by absolute index with
// a running maximum (online softmax, Milakov and Gimelshein 2018), so that a row's result depends
// neither on the rows beside it nor on how the prompt was cut. Memory beyond a tile's last key is
// never used in a sum.
void Attend(Isa isa, const AttentionTile& tile, void* scratch);

// What a sampler must know of a row of logits.
struct RowStats {
  float max = 0.0f;
  int32_t argmax = 0;   // the lowest index of the maximum
  bool finite = false;  // no NaN, no +inf, and some element above -inf
};
RowStats ScanRow(Isa isa, const float* x, int n);

// Sum over i of exp((x[i] - max) * factor), each term also written to out[i] if out is not null.
// Terms below exp(-87) are 0.
double ExpSum(Isa isa, const float* x, int n, float max, float factor, float* out);

}  // namespace fewbit::cpu
