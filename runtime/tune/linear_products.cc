#include "runtime/tune/linear_products.h"

namespace fewbit::tune {

Product LinearOutput(const float* x, const float* w, int m, LinearShape shape, float beta,
                     float* y) {
  Product p;
  p.m = m;
  p.n = shape.rows;
  p.k = shape.cols;
  p.a = {.data = x, .row_stride = shape.cols};
  p.b = {.data = w, .row_stride = shape.cols, .transposed = true};
  p.c = y;
  p.c_row_stride = shape.rows;
  p.beta = beta;
  return p;
}

Product LinearInputGradient(const float* dy, const float* w, int m, LinearShape shape, float beta,
                            float* dx) {
  Product p;
  p.m = m;
  p.n = shape.cols;
  p.k = shape.rows;
  p.a = {.data = dy, .row_stride = shape.rows};
  p.b = {.data = w, .row_stride = shape.cols};
  p.c = dx;
  p.c_row_stride = shape.cols;
  p.beta = beta;
  return p;
}

Product LinearWeightGradient(const float* dy, const float* x, int m, LinearShape shape, float* dw) {
  Product p;
  p.m = shape.rows;
  p.n = shape.cols;
  p.k = m;
  p.a = {.data = dy, .row_stride = shape.rows, .transposed = true};
  p.b = {.data = x, .row_stride = shape.cols};
  p.c = dw;
  p.c_row_stride = shape.cols;
  return p;
}

}  // namespace fewbit::tune
