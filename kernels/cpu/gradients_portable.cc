// The operators of gradients.h as the compiler makes them for any processor, and in double.
#include "kernels/cpu/gradients.h"

namespace fewbit::cpu {
namespace {

#include "kernels/cpu/gradients_body.h"

}  // namespace

const GradientTable<float> kPortableGradients = FEWBIT_GRADIENT_TABLE(float);
const GradientTable<double> kPortableDoubleGradients = FEWBIT_GRADIENT_TABLE(double);

}  // namespace fewbit::cpu
