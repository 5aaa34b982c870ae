#include "kernels/cpu/gradients.h"

namespace fewbit::cpu {

const GradientTable<float>& FloatGradients(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kAvx512:
      return kAvx512Gradients;
    case Isa::kAvx2:
      return kAvx2Gradients;
    case Isa::kPortable:
      break;
  }
#else
  (void)isa;
#endif
  return kPortableGradients;
}

const GradientTable<double>& DoubleGradients() { return kPortableDoubleGradients; }

}  // namespace fewbit::cpu
