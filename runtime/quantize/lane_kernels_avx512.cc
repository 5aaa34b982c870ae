#define FEWBIT_LANES lanes_avx512
#include "runtime/quantize/lane_kernels_body.inc"
