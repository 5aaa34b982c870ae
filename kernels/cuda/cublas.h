// cuBLAS opened at run time, so that no program of ours links it: it is large, its static TLS
// breaks threads with small stacks, and a machine without it still serves small batches.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>

#include "kernels/matrix.h"

namespace fewbit::cuda {

// One handle of one device; one thread at a time.
class Cublas {
 public:
  // Null with `error` set if the library or a symbol of it is missing.
  static std::unique_ptr<Cublas> Open(std::string* error);
  ~Cublas();
  Cublas(const Cublas&) = delete;
  Cublas& operator=(const Cublas&) = delete;

  // y[m, rows] = x[m, cols] w[rows, cols]^T, all row-major, x and w of `type` (kF16 or kBF16), y of
  // y_type (the same or kF32), float sums. Workspace of the handle is set once with SetWorkspace,
  // as graphs need. False if cuBLAS reports an error.
  bool Gemm(DType type, int m, int rows, int cols, const void* x, int64_t x_stride, const void* w,
            void* y, DType y_type, int64_t y_stride, cudaStream_t stream);
  bool SetWorkspace(void* device_memory, size_t bytes);

 private:
  struct Symbols;
  Cublas(std::unique_ptr<Symbols> symbols, void* handle);
  std::unique_ptr<Symbols> symbols_;
  void* handle_;
};

}  // namespace fewbit::cuda
