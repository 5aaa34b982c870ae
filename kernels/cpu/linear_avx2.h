// The AVX2 files among themselves: declarations only, see linear_kernels.h for why.
//
// Order of the staged int8 values of a packed chunk, the same for any number of tokens: 32 bytes
// per bit field of a code byte (2 bits: [strip & 1][khi], 4 bits: [khi]) with bytes [t: 0 2 1
// 3][unit][strip pair or strip of the unit][e]. sums: int16 [fields with khi = 0][t: 0 2 1
// 3][unit][..], what each 16-bit accumulator starts from.
#pragma once

#include "kernels/cpu/linear_kernels.h"

namespace fewbit::cpu::avx2 {

void StagePacked(const PackedView& w, const StageCall& call);
void StageInt8(const Int8View& w, const StageCall& call);
void Packed(const PackedView& w, const LinearCall& call);
void Int8(const Int8View& w, const LinearCall& call);
void Dense(const DenseView& w, const LinearCall& call);

}  // namespace fewbit::cpu::avx2
