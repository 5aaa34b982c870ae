// libcublas.so.13 of the emulated device: the entry points that kernels/cuda/cublas.cc looks up.
// Plain products with sums in double, as work of the emulated runtime's streams, which the program
// exports (cudart.cc). Matrices are column-major, as cuBLAS defines them; scalars are f32 of the
// host.
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

#include "tests/emulator/halves.h"

namespace {

using fewbit::emulator::Bf16;
using fewbit::emulator::F16;
using fewbit::emulator::ToBf16;
using fewbit::emulator::ToF16;
using fewbit::emulator::ToFloat;

// Numbers of cublas_api.h and library_types.h.
enum Status { kSuccess = 0, kNotInitialized = 1, kInvalidValue = 7, kNotSupported = 15 };
constexpr int kNoTranspose = 0, kConjugateTranspose = 2;
constexpr int kRealF32 = 0, kRealF16 = 2, kRealBf16 = 14;
constexpr int kCompute32F = 68, kCompute32FTf32 = 77;

// What the program exports; the stream is a cudaStream_t.
using Enqueue = int (*)(void* stream, void (*run)(void*), void* state, void (*destroy)(void*));
using Contains = bool (*)(const void* address, size_t bytes);

struct Handle {
  void* stream;
  Enqueue enqueue;
  Contains contains;
};

struct Matrix {
  int type;
  bool transposed;
  int64_t rows, cols;  // as it is stored
  int64_t stride;      // elements from column to column
  // Of the products of a batch: a device array of addresses, or begin and elements from one to the
  // next.
  const void* begin;
  const void* const* addresses;
  int64_t batch_stride;
};

struct Products {
  Contains contains;
  int64_t m, n, k;
  int batch;
  float alpha, beta;
  Matrix a, b, c;
};

constexpr int64_t kTileRows = 8, kTileCols = 4, kPanelCols = 64;

size_t BytesOf(int type) { return type == kRealF32 ? 4 : 2; }

float Load(const void* data, int type, int64_t i) {
  if (type == kRealF32) return static_cast<const float*>(data)[i];
  const uint16_t bits = static_cast<const uint16_t*>(data)[i];
  return type == kRealF16 ? ToFloat(F16{bits}) : ToFloat(Bf16{bits});
}

void Store(void* data, int type, int64_t i, float x) {
  if (type == kRealF32) {
    static_cast<float*>(data)[i] = x;
  } else {
    static_cast<uint16_t*>(data)[i] = type == kRealF16 ? ToF16(x).bits : ToBf16(x).bits;
  }
}

void CheckBytes(const Products& p, const char* what, const void* begin, size_t bytes) {
  if (p.contains(begin, bytes)) return;
  std::fprintf(stderr,
               "emulator: cuBLAS, product %ld x %ld x %ld: %s, %zu bytes at %p, is not in "
               "one allocation\n",
               p.m, p.n, p.k, what, bytes, begin);
  std::abort();
}

// Begin of a matrix of product `i`; stops the program if it is not all in an allocation.
const void* At(const Products& p, const Matrix& matrix, const char* what, int i) {
  const auto* begin = static_cast<const std::byte*>(matrix.begin);
  if (matrix.addresses != nullptr) {
    CheckBytes(p, "the array of addresses", matrix.addresses, sizeof(void*) * p.batch);
    begin = static_cast<const std::byte*>(matrix.addresses[i]);
  } else {
    begin += i * matrix.batch_stride * static_cast<int64_t>(BytesOf(matrix.type));
  }
  if (matrix.rows == 0 || matrix.cols == 0) return begin;
  const auto elements = static_cast<size_t>((matrix.cols - 1) * matrix.stride + matrix.rows);
  CheckBytes(p, what, begin, elements * BytesOf(matrix.type));
  return begin;
}

// Element (row, col) of op(matrix).
float Element(const Matrix& matrix, const void* data, int64_t row, int64_t col) {
  if (matrix.transposed) std::swap(row, col);
  return Load(data, matrix.type, col * matrix.stride + row);
}

// Rows [first, first + kTileRows) of op(a), k-major, zeros beyond the last.
void PackRows(const Products& p, const void* a, int64_t first, double* tile) {
  for (int64_t i = 0; i < kTileRows; ++i) {
    for (int64_t k = 0; k < p.k; ++k) {
      tile[k * kTileRows + i] = first + i < p.m ? Element(p.a, a, first + i, k) : 0.0;
    }
  }
}

// Columns [first, first + kPanelCols) of op(b), in tiles of kTileCols, each k-major.
void PackCols(const Products& p, const void* b, int64_t first, double* panel) {
  for (int64_t j = 0; j < kPanelCols; ++j) {
    double* tile = panel + j / kTileCols * kTileCols * p.k + j % kTileCols;
    for (int64_t k = 0; k < p.k; ++k) {
      tile[k * kTileCols] = first + j < p.n ? Element(p.b, b, k, first + j) : 0.0;
    }
  }
}

using Sums = std::array<std::array<double, kTileRows>, kTileCols>;

Sums MultiplyTile(int64_t depth, const double* a, const double* b) {
  Sums sums = {};
  for (int64_t k = 0; k < depth; ++k, a += kTileRows, b += kTileCols) {
    for (int64_t j = 0; j < kTileCols; ++j) {
      for (int64_t i = 0; i < kTileRows; ++i) sums[j][i] += a[i] * b[j];
    }
  }
  return sums;
}

void StoreTile(const Products& p, const Sums& sums, int64_t row, int64_t col, void* c) {
  for (int64_t j = 0; j < std::min(kTileCols, p.n - col); ++j) {
    for (int64_t i = 0; i < std::min(kTileRows, p.m - row); ++i) {
      const int64_t at = (col + j) * p.c.stride + row + i;
      double value = p.alpha * sums[j][i];
      if (p.beta != 0.0f) value += static_cast<double>(p.beta) * Load(c, p.c.type, at);
      Store(c, p.c.type, at, static_cast<float>(value));
    }
  }
}

void Multiply(const Products& p) {
  std::vector<double> tile(kTileRows * p.k), panel(kPanelCols * p.k);
  for (int batch = 0; batch < p.batch; ++batch) {
    const void* a = At(p, p.a, "the first factor", batch);
    const void* b = At(p, p.b, "the second factor", batch);
    void* c = const_cast<void*>(At(p, p.c, "the product", batch));
    for (int64_t first = 0; first < p.n; first += kPanelCols) {
      PackCols(p, b, first, panel.data());
      for (int64_t row = 0; row < p.m; row += kTileRows) {
        PackRows(p, a, row, tile.data());
        for (int64_t col = first; col < std::min(p.n, first + kPanelCols); col += kTileCols) {
          const Sums sums = MultiplyTile(p.k, tile.data(), panel.data() + (col - first) * p.k);
          StoreTile(p, sums, row, col, c);
        }
      }
    }
  }
}

bool IsValid(const Matrix& matrix) {
  return matrix.rows >= 0 && matrix.cols >= 0 && matrix.stride >= std::max<int64_t>(1, matrix.rows);
}

bool IsSupported(int type) { return type == kRealF32 || type == kRealF16 || type == kRealBf16; }

// The part of the arguments that all the entry points have.
struct Arguments {
  int of_a, of_b, m, n, k, batch;
  const void *alpha, *beta;
  int compute;
};

int Start(void* handle, const Arguments& arguments, Matrix a, Matrix b, Matrix c) {
  if (handle == nullptr) return kNotInitialized;
  const auto& [of_a, of_b, m, n, k, batch, alpha, beta, compute] = arguments;
  if (alpha == nullptr || beta == nullptr || batch < 0 || of_a < kNoTranspose ||
      of_a > kConjugateTranspose || of_b < kNoTranspose || of_b > kConjugateTranspose) {
    return kInvalidValue;
  }
  if (!IsSupported(a.type) || a.type != b.type || !IsSupported(c.type) ||
      (compute != kCompute32F && compute != kCompute32FTf32)) {
    std::fprintf(stderr, "emulator: cuBLAS: types %d, %d, %d with compute type %d\n", a.type,
                 b.type, c.type, compute);
    return kNotSupported;
  }
  a.transposed = of_a != kNoTranspose;
  b.transposed = of_b != kNoTranspose;
  a.rows = a.transposed ? k : m;
  a.cols = a.transposed ? m : k;
  b.rows = b.transposed ? n : k;
  b.cols = b.transposed ? k : n;
  c.transposed = false;
  c.rows = m;
  c.cols = n;
  if (!IsValid(a) || !IsValid(b) || !IsValid(c)) return kInvalidValue;
  const auto* state = static_cast<Handle*>(handle);
  auto* products = new Products{state->contains,
                                m,
                                n,
                                k,
                                batch,
                                *static_cast<const float*>(alpha),
                                *static_cast<const float*>(beta),
                                a,
                                b,
                                c};
  const int error = state->enqueue(
      state->stream, [](void* p) { Multiply(*static_cast<Products*>(p)); }, products,
      [](void* p) { delete static_cast<Products*>(p); });
  return error == 0 ? kSuccess : kInvalidValue;
}

Matrix One(const void* begin, int type, int64_t stride, int64_t batch_stride = 0) {
  return {type, false, 0, 0, stride, begin, nullptr, batch_stride};
}

Matrix Addressed(const void* const* addresses, int type, int64_t stride) {
  return {type, false, 0, 0, stride, nullptr, addresses, 0};
}

}  // namespace

extern "C" {

int cublasCreate_v2(void** handle) {
  const auto enqueue = reinterpret_cast<Enqueue>(dlsym(RTLD_DEFAULT, "fewbit_emulator_enqueue"));
  const auto contains = reinterpret_cast<Contains>(dlsym(RTLD_DEFAULT, "fewbit_emulator_contains"));
  if (enqueue == nullptr || contains == nullptr) {
    std::fprintf(stderr, "emulator: cuBLAS: the program does not export the emulated runtime\n");
    return kNotInitialized;
  }
  *handle = new Handle{nullptr, enqueue, contains};
  return kSuccess;
}

int cublasDestroy_v2(void* handle) {
  delete static_cast<Handle*>(handle);
  return kSuccess;
}

int cublasSetStream_v2(void* handle, void* stream) {
  static_cast<Handle*>(handle)->stream = stream;
  return kSuccess;
}

// No workspace is needed; its address must be what cuBLAS wants.
int cublasSetWorkspace_v2(void*, void* workspace, size_t) {
  return reinterpret_cast<uintptr_t>(workspace) % 256 == 0 ? kSuccess : kInvalidValue;
}

int cublasGemmEx(void* handle, int of_a, int of_b, int m, int n, int k, const void* alpha,
                 const void* a, int a_type, int a_stride, const void* b, int b_type, int b_stride,
                 const void* beta, void* c, int c_type, int c_stride, int compute, int) {
  return Start(handle, {of_a, of_b, m, n, k, 1, alpha, beta, compute}, One(a, a_type, a_stride),
               One(b, b_type, b_stride), One(c, c_type, c_stride));
}

int cublasGemmStridedBatchedEx(void* handle, int of_a, int of_b, int m, int n, int k,
                               const void* alpha, const void* a, int a_type, int a_stride,
                               int64_t a_batch_stride, const void* b, int b_type, int b_stride,
                               int64_t b_batch_stride, const void* beta, void* c, int c_type,
                               int c_stride, int64_t c_batch_stride, int batch, int compute, int) {
  return Start(handle, {of_a, of_b, m, n, k, batch, alpha, beta, compute},
               One(a, a_type, a_stride, a_batch_stride), One(b, b_type, b_stride, b_batch_stride),
               One(c, c_type, c_stride, c_batch_stride));
}

int cublasGemmBatchedEx(void* handle, int of_a, int of_b, int m, int n, int k, const void* alpha,
                        const void* const* a, int a_type, int a_stride, const void* const* b,
                        int b_type, int b_stride, const void* beta, void* const* c, int c_type,
                        int c_stride, int batch, int compute, int) {
  return Start(handle, {of_a, of_b, m, n, k, batch, alpha, beta, compute},
               Addressed(a, a_type, a_stride), Addressed(b, b_type, b_stride),
               Addressed(c, c_type, c_stride));
}

}  // extern "C"
