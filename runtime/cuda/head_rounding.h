// An LM head rounded to 4 bits as it is uploaded: every strip at 4 bits, each weight to the nearest
// level, scales from the largest weight of a strip. Host code; works in every build.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/matrix.h"

namespace fewbit {

// REQUIRES: cols is a multiple of 16.
quant::PackedShape RoundedHeadShape(int32_t rows, int32_t cols);

// Strips in their own order.
std::vector<uint16_t> HeadStripOrder(const quant::PackedShape& shape);

// Writes row block `block` of `head` [shape.row_block_bytes()], in the layout of quant_layout.h.
void RoundRowBlock(const Matrix& head, const quant::PackedShape& shape, int block, uint8_t* out);

}  // namespace fewbit
