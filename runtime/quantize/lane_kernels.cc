#include "runtime/quantize/lane_kernels.h"

namespace fewbit {

namespace lanes_portable {
extern const LaneKernels kKernels;
}
#ifdef FEWBIT_LANES_X86
namespace lanes_avx2 {
extern const LaneKernels kKernels;
}
namespace lanes_avx512 {
extern const LaneKernels kKernels;
}
#endif

const LaneKernels& LaneKernelsFor([[maybe_unused]] cpu::Isa isa) {
#ifdef FEWBIT_LANES_X86
  if (isa == cpu::Isa::kAvx512) return lanes_avx512::kKernels;
  if (isa == cpu::Isa::kAvx2) return lanes_avx2::kKernels;
#endif
  return lanes_portable::kKernels;
}

}  // namespace fewbit
