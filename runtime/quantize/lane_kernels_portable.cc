#define FEWBIT_LANES lanes_portable
#include "runtime/quantize/lane_kernels_body.inc"
