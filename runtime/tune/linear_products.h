// A linear layer y [m, n] = x [m, k] w^T, w [n, k] of `shape`, forward and backward, as products.
#pragma once

#include "runtime/models/model.h"
#include "runtime/tune/ops.h"

namespace fewbit::tune {

// y = x w^T + beta y
Product LinearOutput(const float* x, const float* w, int m, LinearShape shape, float beta,
                     float* y);
// dx = dy w + beta dx
Product LinearInputGradient(const float* dy, const float* w, int m, LinearShape shape, float beta,
                            float* dx);
// dw = dy^T x
Product LinearWeightGradient(const float* dy, const float* x, int m, LinearShape shape, float* dw);

}  // namespace fewbit::tune
