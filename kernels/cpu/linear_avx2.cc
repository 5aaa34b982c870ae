// The AVX2 row of the instance table (with FMA and F16C: Haswell, Zen and later).
#include "kernels/cpu/linear_avx2.h"

namespace fewbit::cpu {

const LinearKernels kAvx2Linear = {avx2::StagePacked, avx2::StageInt8, avx2::Packed, avx2::Int8,
                                   avx2::Dense};

}  // namespace fewbit::cpu
