// What the kernel before a linear layer leaves for it. Packed matrices take their activations as
// fixed point in the strip order of the matrix (the staged form); the producer - a norm, the
// attention, an activation function - writes it itself through StageToken (device/stage_token.cuh),
// so that no kernel of its own stands between two layers. Plain data, passed to kernels by value.
//
// With one or two tokens a launch costs more than making the input again in every block of the
// linear layer: there the producer is the layer itself, and what is left for it is a RowSource.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/matrix.h"

namespace fewbit::cuda {

// Matrices that share an input: query, key and value, or gate and up.
inline constexpr int kMostParts = 3;

// How staged activations lie in memory. The numbers are the same in both integer forms: x = v *
// scale, 15 bits, one scale per (token, tile), see device_tile.h.
enum class StagedForm : uint8_t {
  // Token groups of `group_tokens`, group_bytes each. In a group: {float scale, int32 bias}
  // [tiles][group_tokens rounded up to even], then [quads][group_tokens]{64 high bytes, 64 low
  // bytes}: 4 strips of 16 channels. bias = -excess * (sum of v), what the bytes of the weights are
  // too large by.
  kColumns,
  // See wide_tile.h.
  kSlabs,
  // Not fixed point but fp16; see half_tile.h.
  kHalves,
};

// The staged input of one matrix.
struct StageTarget {
  StagedForm form = StagedForm::kColumns;
  quant::PackedShape shape;
  const uint16_t* strip_order = nullptr;
  uint8_t* staged = nullptr;  // 16-byte aligned
  int group_tokens = 0;
  size_t group_bytes = 0;
};

// What a linear layer makes its input from. Rows of floats, 16-byte aligned.
enum class RowKind : uint8_t {
  kStaged,   // nothing: the producer staged it
  kRows,     // first[t]
  kNorm,     // RMSNorm(first[from]) * weight, as LaunchAddNorm (ops.h)
  kSiluMul,  // silu(first[t]) * second[t], as LaunchSiluMul
};
struct RowSource {
  RowKind kind = RowKind::kStaged;
  const float* first = nullptr;
  const float* second = nullptr;
  int64_t stride = 0;  // of both, in elements
  // kNorm: from = rows ? rows[t] : t; first[from] is copied to hidden_out [tokens, cols], if that
  // is not null, which must not be `first`.
  const int32_t* rows = nullptr;
  const float* weight = nullptr;
  float eps = 0;
  float* hidden_out = nullptr;
};

// Everything that the producer of a layer's input has to write, for every token of the step.
struct LinearInput {
  int count = 0;  // staged forms
  StageTarget parts[kMostParts];
  // Also, if not null: the same activations as they are, [T, cols] of plain_type (kF16, kBF16 or
  // kF32), 16-byte aligned; for dense matrices and large batches.
  void* plain = nullptr;
  DType plain_type = DType::kF16;
  // Instead of all that, if the plan makes its input itself (Plan::makes_input()).
  RowSource source;
};

}  // namespace fewbit::cuda
