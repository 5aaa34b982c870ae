// The AVX-512 files among themselves: declarations only, see linear_kernels.h for why.
//
// Two orders of the staged int8 values of a packed chunk (natural order: 16 * strip + channel):
//   direct, tokens == 1: 32 bytes per bit field of a code byte (2 bits: [strip & 1][khi], 4 bits:
//   [khi]), and within them one dword
//     per [unit][strip pair or strip of the unit][t >> 1], its bytes [t & 1][e].  sums: int32
//     [fields with khi = 0][8 dwords].
//   expanded, tokens > 1: dword 4 * strip + t, its bytes [khi][e].  sums: 2 bits: one int32; 4
//   bits: int32 [strip][t >> 1].
// The sums are what the integer accumulators start from, see the two kernels.
#pragma once

#include "kernels/cpu/linear_kernels.h"

namespace fewbit::cpu::avx512 {

void StagePacked(const PackedView& w, const StageCall& call);
void StageInt8(const Int8View& w, const StageCall& call);

// tokens == 1, weights decoded in registers; and tokens > 1, weights expanded to bytes once for all
// tokens. Rows in whole blocks of 16.
void PackedDirect(const PackedView& w, const LinearCall& call);
void PackedExpanded(const PackedView& w, const LinearCall& call);

// Outliers: floats of the 2-bit strips as [position, 16 tokens] for tokens [begin, end) of the
// group that starts at `first`, a multiple of 16 (other tokens of the group belong to other
// callers); and the corrections of one row block, added to finished outputs.
void StageTransposed(const PackedView& w, const StageCall& call, int first, int begin, int end);
void AddOutliers(const PackedView& w, const LinearCall& call, int row_begin);

void Int8(const Int8View& w, const LinearCall& call);
void Dense(const DenseView& w, const LinearCall& call);

}  // namespace fewbit::cpu::avx512
