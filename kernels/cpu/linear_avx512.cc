// The AVX-512 row of the instance table (F, BW, VL, DQ, VNNI, VBMI: Ice Lake, Zen 4 and later).
#include "kernels/cpu/linear_avx512.h"

namespace fewbit::cpu {
namespace {

void Packed(const PackedView& w, const LinearCall& call) {
  if (call.tokens == 1) {
    avx512::PackedDirect(w, call);
  } else {
    avx512::PackedExpanded(w, call);
  }
}

}  // namespace

const LinearKernels kAvx512Linear = {avx512::StagePacked, avx512::StageInt8, Packed, avx512::Int8,
                                     avx512::Dense};

}  // namespace fewbit::cpu
