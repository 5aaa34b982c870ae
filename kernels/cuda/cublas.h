// cuBLAS opened at run time, so that no program of ours links it: it is large, its static TLS
// breaks threads with small stacks, and a machine without it still serves small batches.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>

#include "kernels/matrix.h"

namespace fewbit::cuda {

// c = alpha * a b + beta * c for `batch` matrices, row-major: a [m, k], b [k, n], c [m, n] of
// float32, a and b of `type`: kBF16, or kF32, rounded to TF32 (10 bits of mantissa). A transposed
// operand is stored as the transpose of what is multiplied. `row_stride`: elements between rows as
// stored; `stride`: between matrices, 0: the same for all.
struct FloatProducts {
  struct Operand {
    const void* data = nullptr;
    int row_stride = 0;
    bool transposed = false;
    int64_t stride = 0;
    const void* const* addresses = nullptr;  // [batch], in device memory: instead of data, stride
  };
  int m = 0, n = 0, k = 0;
  int batch = 1;
  DType type = DType::kF32;
  Operand a, b;
  float* c = nullptr;
  int c_row_stride = 0;
  int64_t c_stride = 0;
  void* const* c_addresses = nullptr;  // given for all three operands or for none
  float alpha = 1.0f, beta = 0.0f;
};

// One handle of one device; one thread at a time.
class Cublas {
 public:
  // Null with `error` set if the library or a symbol of it is missing.
  static std::unique_ptr<Cublas> Open(std::string* error);
  ~Cublas();
  Cublas(const Cublas&) = delete;
  Cublas& operator=(const Cublas&) = delete;

  // y[m, rows] = x[m, cols] w[rows, cols]^T, plus what y holds if `add`, all row-major, x and w of
  // `type` (kF16 or kBF16), y of y_type (the same or kF32), float sums. Workspace of the handle is
  // set once with SetWorkspace, as graphs need. False if cuBLAS reports an error.
  bool Gemm(DType type, int m, int rows, int cols, const void* x, int64_t x_stride, const void* w,
            bool add, void* y, DType y_type, int64_t y_stride, cudaStream_t stream);
  bool SetWorkspace(void* device_memory, size_t bytes);

  // With float sums. The same bits for the same products on the same kind of device. False if
  // cuBLAS reports an error.
  bool Multiply(const FloatProducts& products, cudaStream_t stream);

 private:
  struct Symbols;
  Cublas(std::unique_ptr<Symbols> symbols, void* handle);
  std::unique_ptr<Symbols> symbols_;
  void* handle_;
};

}  // namespace fewbit::cuda
