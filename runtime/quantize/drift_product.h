// W D of a weight matrix W and the drift D of its inputs: what quantization has changed in the
// matrix' outputs, as far as its inputs tell.
#pragma once

#include "kernels/matrix.h"
#include "runtime/products/team_products.h"
#include "runtime/quantize/hessian.h"

namespace fewbit {

// Hessian::misses from Hessian::drift; with `drop` that is given back while the product grows.
// Factors are rounded to bfloat16 where W is bfloat16 and the processor multiplies such.
ScratchFloats DriftProduct(const Matrix& matrix, bool drop, ScratchFloats* drift,
                           TeamProducts* products);

}  // namespace fewbit
