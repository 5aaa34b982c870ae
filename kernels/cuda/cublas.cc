#include "kernels/cuda/cublas.h"

#include <dlfcn.h>

#include <utility>

namespace fewbit::cuda {

// The few entry points that are used, declared here so that the library's headers are not needed.
// Numbers are those of cublas_api.h and library_types.h, which are stable.
struct Cublas::Symbols {
  int (*create)(void**);
  int (*destroy)(void*);
  int (*set_stream)(void*, cudaStream_t);
  int (*set_workspace)(void*, void*, size_t);
  int (*gemm)(void*, int, int, int, int, int, const void*, const void*, int, int, const void*, int,
              int, const void*, void*, int, int, int, int);
  int (*gemm_strided)(void*, int, int, int, int, int, const void*, const void*, int, int, int64_t,
                      const void*, int, int, int64_t, const void*, void*, int, int, int64_t, int,
                      int, int);
  int (*gemm_addresses)(void*, int, int, int, int, int, const void*, const void* const*, int, int,
                        const void* const*, int, int, const void*, void* const*, int, int, int, int,
                        int);
};

namespace {

constexpr int kNoTranspose = 0, kTranspose = 1;
constexpr int kRealF32 = 0, kRealF16 = 2, kRealBf16 = 14;
constexpr int kCompute32F = 68, kCompute32FTf32 = 77, kDefaultAlgorithm = -1;

int RealType(DType type) {
  return type == DType::kF32 ? kRealF32 : type == DType::kF16 ? kRealF16 : kRealBf16;
}

template <typename T>
bool Find(void* library, const char* name, T* symbol) {
  *symbol = reinterpret_cast<T>(dlsym(library, name));
  return *symbol != nullptr;
}

}  // namespace

std::unique_ptr<Cublas> Cublas::Open(std::string* error) {
  void* library = nullptr;
  for (const char* name : {"libcublas.so.13", "libcublas.so.12", "libcublas.so"}) {
    library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) break;
  }
  if (library == nullptr) {
    *error = "libcublas.so.13 or .12 cannot be opened; add its folder to LD_LIBRARY_PATH";
    return nullptr;
  }
  auto s = std::make_unique<Symbols>();
  if (!Find(library, "cublasCreate_v2", &s->create) ||
      !Find(library, "cublasDestroy_v2", &s->destroy) ||
      !Find(library, "cublasSetStream_v2", &s->set_stream) ||
      !Find(library, "cublasSetWorkspace_v2", &s->set_workspace) ||
      !Find(library, "cublasGemmEx", &s->gemm) ||
      !Find(library, "cublasGemmStridedBatchedEx", &s->gemm_strided) ||
      !Find(library, "cublasGemmBatchedEx", &s->gemm_addresses)) {
    *error = "libcublas lacks a symbol that is needed";
    return nullptr;
  }
  void* handle = nullptr;
  if (const int status = s->create(&handle); status != 0) {
    *error = "cublasCreate fails with status " + std::to_string(status);
    return nullptr;
  }
  return std::unique_ptr<Cublas>(new Cublas(std::move(s), handle));
}

Cublas::Cublas(std::unique_ptr<Symbols> symbols, void* handle)
    : symbols_(std::move(symbols)), handle_(handle) {}

Cublas::~Cublas() { symbols_->destroy(handle_); }

bool Cublas::SetWorkspace(void* device_memory, size_t bytes) {
  return symbols_->set_workspace(handle_, device_memory, bytes) == 0;
}

bool Cublas::Gemm(DType type, int m, int rows, int cols, const void* x, int64_t x_stride,
                  const void* w, bool add, void* y, DType y_type, int64_t y_stride,
                  cudaStream_t stream) {
  const float one = 1.0f, beta = add ? 1.0f : 0.0f;
  if (symbols_->set_stream(handle_, stream) != 0) return false;
  // Column-major for cuBLAS: y^T [rows, m] = w [rows, cols] x^T [cols, m].
  return symbols_->gemm(handle_, kTranspose, kNoTranspose, rows, m, cols, &one, w, RealType(type),
                        cols, x, RealType(type), static_cast<int>(x_stride), &beta, y,
                        RealType(y_type), static_cast<int>(y_stride), kCompute32F,
                        kDefaultAlgorithm) == 0;
}

bool Cublas::Multiply(const FloatProducts& p, cudaStream_t stream) {
  if (symbols_->set_stream(handle_, stream) != 0) return false;
  // Column-major for cuBLAS: c^T [n, m] = b^T [n, k] a^T [k, m].
  const int of_b = p.b.transposed ? kTranspose : kNoTranspose;
  const int of_a = p.a.transposed ? kTranspose : kNoTranspose;
  const int type = RealType(p.type);
  const int compute = p.type == DType::kF32 ? kCompute32FTf32 : kCompute32F;
  if (p.c_addresses != nullptr) {
    return symbols_->gemm_addresses(handle_, of_b, of_a, p.n, p.m, p.k, &p.alpha, p.b.addresses,
                                    type, p.b.row_stride, p.a.addresses, type, p.a.row_stride,
                                    &p.beta, p.c_addresses, kRealF32, p.c_row_stride, p.batch,
                                    compute, kDefaultAlgorithm) == 0;
  }
  return symbols_->gemm_strided(handle_, of_b, of_a, p.n, p.m, p.k, &p.alpha, p.b.data, type,
                                p.b.row_stride, p.b.stride, p.a.data, type, p.a.row_stride,
                                p.a.stride, &p.beta, p.c, kRealF32, p.c_row_stride, p.c_stride,
                                p.batch, compute, kDefaultAlgorithm) == 0;
}

}  // namespace fewbit::cuda
