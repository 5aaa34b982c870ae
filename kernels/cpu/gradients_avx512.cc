// The operators of gradients.h, compiled for AVX-512.
#include "kernels/cpu/gradients.h"

namespace fewbit::cpu {
namespace {

#include "kernels/cpu/gradients_body.h"

}  // namespace

const GradientTable<float> kAvx512Gradients = FEWBIT_GRADIENT_TABLE(float);

}  // namespace fewbit::cpu
