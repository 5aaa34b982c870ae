// Linear layers on the CPU: y[T, N] = x[T, K] W^T for the three kinds of weight matrix, each on any
// range of output rows, so that the caller shares rows out among threads. Weights are read where
// they lie; no dense copy is ever made.
//
// Order of summation, part of the contract: a result depends on its own row of x and its own row of
// W only, never on T, on the rows computed beside it, on the thread or on the batch. For packed and
// 8-bit weights it does not depend on the instruction set either, bit for bit: per chunk (packed)
// or per 128 channels (8-bit) an exact int32 sum, then one fused multiply-add in float per chunk in
// chunk order, then the outliers in list order. Dense weights are summed in 16 float lanes (channel
// modulo 16) and one fixed tree; the two vector instruction sets agree bit for bit, the portable
// one does without fused multiply-add. A NaN or Inf in a chunk of x makes that token's outputs NaN.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/matrix.h"

namespace fewbit::cpu {

// A row of the instance table, best last. Chosen once at start-up from what the processor has.
enum class Isa : uint8_t { kPortable, kAvx2, kAvx512 };
bool IsaSupported(Isa isa);
Isa BestIsa();
const char* IsaName(Isa isa);

// Scratch that PrepareActivations fills for T tokens and one matrix, in bytes (0 for dense
// weights). 64-byte aligned by the caller.
size_t ActivationBytes(const Matrix& w, int tokens);

// Steps of this many tokens or more stage fastest in shares that begin at multiples of it: such a
// group is transposed whole, and two threads in one group would write the same cache lines.
inline constexpr int kStageTokens = 16;

// Stages x [T, K] (float, row stride x_stride elements) for `w`: permuted into strip order and
// quantized to int8 with one float scale per token and chunk (packed) or per 128 channels (8-bit).
// A no-op for dense weights. Tokens are independent: [token_begin, token_end) of a scratch sized
// for `tokens` may be staged by different threads.
// What is staged is private to `isa`, `w` and `tokens`: the Linear that follows must be given the
// same.
void PrepareActivations(Isa isa, const Matrix& w, const float* x, size_t x_stride, int tokens,
                        int token_begin, int token_end, void* activations);

// y[t, r] for every t < tokens and r in [row_begin, row_end). y has row stride y_stride elements;
// row r lands at y[t * y_stride + r]. REQUIRES: row_begin is a multiple of 16; row_end is one too,
// or is N. `x` is used for dense weights, and for packed weights with outliers; `activations` for
// the others.
void Linear(Isa isa, const Matrix& w, const float* x, size_t x_stride, const void* activations,
            int tokens, int row_begin, int row_end, float* y, size_t y_stride);

// Row r of W as floats [K]: embedding lookup, and the reference of the tests. For packed weights
// this dequantizes one row.
void DequantizeRow(const Matrix& w, int row, float* out);

}  // namespace fewbit::cpu
