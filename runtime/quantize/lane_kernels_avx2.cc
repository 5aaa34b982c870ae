#define FEWBIT_LANES lanes_avx2
#include "runtime/quantize/lane_kernels_body.inc"
