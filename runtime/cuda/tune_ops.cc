#include "runtime/cuda/tune_ops.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cublas.h"
#include "kernels/cuda/tune.h"
#include "runtime/cuda/cuda_executor.h"
#include "runtime/cuda/device_memory.h"

namespace fewbit::tune {
namespace {

// What cuBLAS asks for on Hopper; with less it may choose slower algorithms.
constexpr size_t kCublasWorkspaceBytes = size_t{64} << 20;

// Uploads go through pinned pieces, so that they queue up behind operators instead of waiting for
// them; there is room for the hidden states of a step of a 7B model.
constexpr int kPieces = 8;
constexpr size_t kPieceBytes = size_t{16} << 20;

// Writes what failed to stderr and aborts: after a CUDA error the context is of no use. An error
// inside a kernel shows up in a later call.
void Check(cudaError_t error, const char* op, int64_t rows = 0, int64_t cols = 0) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA failed in %s (%lld x %lld) or an operator before it: %s\n", op,
               static_cast<long long>(rows), static_cast<long long>(cols),
               cudaGetErrorString(error));
  std::abort();
}

// The matrices of a batch lie at equal distances.
bool EvenlySpaced(const Product& p) {
  const auto even = [&p](int64_t outer_stride, int64_t inner_stride) {
    return p.outer == 1 || p.inner == 1 || outer_stride == p.inner * inner_stride;
  };
  return even(p.a.outer_stride, p.a.inner_stride) && even(p.b.outer_stride, p.b.inner_stride) &&
         even(p.c_outer_stride, p.c_inner_stride);
}

cuda::FloatProducts::Operand OperandOf(const Operand& from, int inner) {
  return {.data = from.data,
          .row_stride = static_cast<int>(from.row_stride),
          .transposed = from.transposed,
          .stride = inner == 1 ? from.outer_stride : from.inner_stride};
}

// A matrix as it lies in memory.
struct StoredShape {
  int rows = 0, cols = 0;
  size_t bf16_bytes() const { return (size_t{2} * rows * cols + 255) / 256 * 256; }
};

StoredShape StoredShapeOf(const Operand& operand, int rows, int cols) {
  return operand.transposed ? StoredShape{cols, rows} : StoredShape{rows, cols};
}

// One product large in all dimensions: bf16 makes it faster by several times what rounding its
// operands takes.
bool PaysToRound(const Product& p) {
  constexpr int kLarge = 2048;
  const auto can = [](const Operand& operand, int rows, int cols) {
    return reinterpret_cast<uintptr_t>(operand.data) % 16 == 0 && operand.row_stride % 4 == 0 &&
           StoredShapeOf(operand, rows, cols).cols % 8 == 0;
  };
  return p.outer * p.inner == 1 && std::min({p.m, p.n, p.k}) >= kLarge && can(p.a, p.m, p.k) &&
         can(p.b, p.k, p.n);
}

class CudaOps final : public Ops {
 public:
  static absl::StatusOr<std::unique_ptr<Ops>> Create(int device, DType factors);
  ~CudaOps() override;

  const std::string& device() const override { return name_; }
  absl::StatusOr<void*> Allocate(size_t bytes) override;
  void Free(void* data) override;
  void Upload(const void* host, size_t bytes, void* device) override;
  void Download(const void* device, size_t bytes, void* host) override {
    const auto count = static_cast<int64_t>(bytes);
    Check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, Stream()), "Download", 1,
          count);
    Check(cudaStreamSynchronize(stream_), "Download", 1, count);
  }
  void Zero(void* device, size_t bytes) override {
    Check(cudaMemsetAsync(device, 0, bytes, Stream()), "Zero", 1, static_cast<int64_t>(bytes));
  }
  void Copy(const void* from, size_t bytes, void* to) override {
    Check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, Stream()), "Copy", 1,
          static_cast<int64_t>(bytes));
  }
  int64_t PeakBytes() const override { return peak_bytes_; }

  void Multiply(const Product& product) override;

  void Widen(const void* from, DType type, int64_t count, float* to) override {
    Check(cuda::TuneWiden(from, type, count, to, Stream()), "Widen", 1, count);
  }
  void Weights(const ScaledMatrix& matrix, float* weights) override {
    Check(cuda::TuneWeights(matrix, weights, Stream()), "Weights", matrix.rows, matrix.cols);
  }
  void WeightGradients(const ScaledMatrix& matrix, const float* d_weights,
                       const ScaledMatrixGradients& gradients) override {
    Check(cuda::TuneWeightGradients(matrix, d_weights, gradients, Stream()), "WeightGradients",
          matrix.rows, matrix.cols);
  }
  void Add(const float* x, int64_t count, float* y) override {
    Check(cuda::TuneAdd(x, count, y, Stream()), "Add", 1, count);
  }
  void AddBias(const float* bias, int rows, int cols, float* y) override {
    Check(cuda::TuneAddBias(bias, rows, cols, y, Stream()), "AddBias", rows, cols);
  }
  void RmsNorm(const float* x, const float* weight, float eps, int rows, int cols, float* y,
               float* inverse_rms) override {
    Check(cuda::TuneRmsNorm(x, weight, eps, rows, cols, y, inverse_rms, Stream()), "RmsNorm", rows,
          cols);
  }
  void RmsNormBackward(const float* x, const float* weight, const float* inverse_rms,
                       const float* dy, int rows, int cols, bool add, float* dx,
                       float* d_weight) override {
    Check(cuda::TuneRmsNormBackward(x, weight, inverse_rms, dy, rows, cols, add, dx, d_weight,
                                    scratch_.get(), Stream()),
          "RmsNormBackward", rows, cols);
  }
  void Rope(const RopeArgs& args, bool inverse, float* x) override {
    Check(cuda::TuneRope(args, inverse, x, Stream()), "Rope", args.rows,
          int64_t{args.heads} * args.head_dim);
  }
  void CausalSoftmax(int64_t matrices, int context, int window, float* scores) override {
    Check(cuda::TuneCausalSoftmax(matrices, context, window, scores, Stream()), "CausalSoftmax",
          matrices * context, context);
  }
  void CausalSoftmaxBackward(int64_t matrices, int context, int window, const float* probabilities,
                             float* gradients) override {
    Check(cuda::TuneCausalSoftmaxBackward(matrices, context, window, probabilities, gradients,
                                          Stream()),
          "CausalSoftmaxBackward", matrices * context, context);
  }
  void SiluMul(const float* gate, const float* up, int64_t count, float* y) override {
    Check(cuda::TuneSiluMul(gate, up, count, y, Stream()), "SiluMul", 1, count);
  }
  void SiluMulBackward(const float* dy, int64_t count, float* gate, float* up) override {
    Check(cuda::TuneSiluMulBackward(dy, count, gate, up, Stream()), "SiluMulBackward", 1, count);
  }
  void KlDivergence(const float* teacher, int rows, int vocab, float scale, bool gradient,
                    float* student, LossSums* sums) override {
    Check(cuda::TuneKlDivergence(teacher, rows, vocab, scale, gradient, student, sums,
                                 scratch_.get(), Stream()),
          "KlDivergence", rows, vocab);
  }
  void Adam(const AdamArgs& args) override {
    Check(cuda::TuneAdam(args, Stream()), "Adam", 1, args.count);
  }

 private:
  CudaOps(int index, std::string name, DType factors)
      : index_(index), name_(std::move(name)), factors_(factors) {}

  // Calls may come from any thread, one at a time; each thread has a current GPU of its own.
  cudaStream_t Stream() {
    Check(cudaSetDevice(index_), "cudaSetDevice", index_, 1);
    return stream_;
  }
  // `memory`, made larger if it has fewer bytes; its content is lost then.
  uint8_t* Room(size_t bytes, DeviceMemory* memory);
  void TakeAddresses(const Product& p, cuda::FloatProducts* products);
  void RoundOperands(const Product& p, cuda::FloatProducts* products);

  const int index_;
  const std::string name_;
  const DType factors_;
  cudaStream_t stream_ = nullptr;
  DeviceMemory scratch_, workspace_;
  DeviceMemory addresses_, rounded_;  // of the operands of the product at hand
  std::unique_ptr<cuda::Cublas> cublas_;
  PinnedMemory pinned_;  // [kPieces, kPieceBytes]
  cudaEvent_t copied_[kPieces] = {};
  int piece_ = 0;  // that is used next
  std::unordered_map<void*, size_t> allocated_;
  int64_t live_bytes_ = 0, peak_bytes_ = 0;
};

absl::StatusOr<std::unique_ptr<Ops>> CudaOps::Create(int device, DType factors) {
  if (absl::Status status = CheckCudaDevice(device); !status.ok()) return status;
  cudaDeviceProp properties;
  cudaError_t error = cudaSetDevice(device);
  if (error == cudaSuccess) error = cudaGetDeviceProperties(&properties, device);
  if (error != cudaSuccess) return absl::UnavailableError(cudaGetErrorString(error));
  std::unique_ptr<CudaOps> ops(
      new CudaOps(device, absl::StrCat("cuda:", device, " ", properties.name), factors));
  error = cudaStreamCreateWithFlags(&ops->stream_, cudaStreamNonBlocking);
  if (error != cudaSuccess) return absl::UnavailableError(cudaGetErrorString(error));

  auto scratch = DeviceMemory::Allocate(cuda::kTuneScratchBytes, "sums of tuning's operators");
  if (!scratch.ok()) return scratch.status();
  ops->scratch_ = *std::move(scratch);
  auto workspace = DeviceMemory::Allocate(kCublasWorkspaceBytes, "cuBLAS's workspace");
  if (!workspace.ok()) return workspace.status();
  ops->workspace_ = *std::move(workspace);
  auto pinned = PinnedMemory::Allocate(kPieces * kPieceBytes, "pinned memory for uploads");
  if (!pinned.ok()) return pinned.status();
  ops->pinned_ = *std::move(pinned);
  for (cudaEvent_t& event : ops->copied_) {
    error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    if (error != cudaSuccess) return absl::UnavailableError(cudaGetErrorString(error));
  }
  std::string message;
  ops->cublas_ = cuda::Cublas::Open(&message);
  if (ops->cublas_ == nullptr) return absl::UnavailableError(message);
  if (!ops->cublas_->SetWorkspace(ops->workspace_.get(), kCublasWorkspaceBytes)) {
    return absl::UnavailableError("cuBLAS refuses its workspace");
  }
  return std::unique_ptr<Ops>(std::move(ops));
}

CudaOps::~CudaOps() {
  cudaSetDevice(index_);
  if (stream_ != nullptr) cudaStreamSynchronize(stream_);
  for (const auto& [data, bytes] : allocated_) cudaFree(data);
  for (cudaEvent_t event : copied_) {
    if (event != nullptr) cudaEventDestroy(event);
  }
  cublas_.reset();
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

absl::StatusOr<void*> CudaOps::Allocate(size_t bytes) {
  Stream();
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, std::max<size_t>(bytes, 1));
  if (error != cudaSuccess) {
    (void)cudaGetLastError();
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    return absl::ResourceExhaustedError(absl::StrCat("cannot allocate ", bytes, " bytes on ", name_,
                                                     ": ", free, " of ", total, " are free (",
                                                     cudaGetErrorString(error), ")"));
  }
  allocated_[data] = bytes;
  live_bytes_ += static_cast<int64_t>(bytes);
  peak_bytes_ = std::max(peak_bytes_, live_bytes_);
  return data;
}

void CudaOps::Free(void* data) {
  const auto found = allocated_.find(data);
  if (found == allocated_.end()) return;
  Check(cudaStreamSynchronize(Stream()), "Free", 1, static_cast<int64_t>(found->second));
  Check(cudaFree(data), "Free", 1, static_cast<int64_t>(found->second));
  live_bytes_ -= static_cast<int64_t>(found->second);
  allocated_.erase(found);
}

void CudaOps::Upload(const void* host, size_t bytes, void* device) {
  const cudaStream_t stream = Stream();
  const auto count = static_cast<int64_t>(bytes);
  for (size_t begin = 0; begin < bytes; begin += kPieceBytes) {
    const size_t size = std::min(kPieceBytes, bytes - begin);
    uint8_t* piece = pinned_.get() + piece_ * kPieceBytes;
    Check(cudaEventSynchronize(copied_[piece_]), "Upload", 1, count);
    std::memcpy(piece, static_cast<const uint8_t*>(host) + begin, size);
    Check(cudaMemcpyAsync(static_cast<uint8_t*>(device) + begin, piece, size,
                          cudaMemcpyHostToDevice, stream),
          "Upload", 1, count);
    Check(cudaEventRecord(copied_[piece_], stream), "Upload", 1, count);
    piece_ = (piece_ + 1) % kPieces;
  }
}

uint8_t* CudaOps::Room(size_t bytes, DeviceMemory* memory) {
  if (bytes > memory->bytes()) {
    Check(cudaStreamSynchronize(stream_), "Multiply", 1, static_cast<int64_t>(bytes));
    *memory = DeviceMemory();
    auto larger = DeviceMemory::Allocate(bytes, "a product's operands");
    Check(larger.ok() ? cudaSuccess : cudaErrorMemoryAllocation, "Multiply", 1,
          static_cast<int64_t>(bytes));
    *memory = *std::move(larger);
  }
  return memory->get();
}

void CudaOps::TakeAddresses(const Product& p, cuda::FloatProducts* products) {
  const int batch = products->batch;
  const auto** of_a = reinterpret_cast<const void**>(Room(3 * sizeof(void*) * batch, &addresses_));
  const void** of_b = of_a + batch;
  const void** of_c = of_b + batch;
  const auto fill = [&](const float* data, int64_t outer_stride, int64_t inner_stride,
                        const void** to) {
    Check(cuda::TuneAddresses(data, outer_stride, inner_stride, p.outer, p.inner, to, stream_),
          "Multiply", p.outer, p.inner);
  };
  fill(p.a.data, p.a.outer_stride, p.a.inner_stride, of_a);
  fill(p.b.data, p.b.outer_stride, p.b.inner_stride, of_b);
  fill(p.c, p.c_outer_stride, p.c_inner_stride, of_c);
  products->a.addresses = of_a;
  products->b.addresses = of_b;
  products->c_addresses = const_cast<void* const*>(of_c);
}

void CudaOps::RoundOperands(const Product& p, cuda::FloatProducts* products) {
  const StoredShape a = StoredShapeOf(p.a, p.m, p.k), b = StoredShapeOf(p.b, p.k, p.n);
  uint8_t* of_a = Room(a.bf16_bytes() + b.bf16_bytes(), &rounded_);
  uint8_t* of_b = of_a + a.bf16_bytes();
  const auto round = [&](const Operand& from, const StoredShape& shape, void* to,
                         cuda::FloatProducts::Operand* operand) {
    Check(cuda::TuneRoundToBf16(from.data, from.row_stride, shape.rows, shape.cols, to, stream_),
          "Multiply", shape.rows, shape.cols);
    operand->data = to;
    operand->row_stride = shape.cols;
  };
  round(p.a, a, of_a, &products->a);
  round(p.b, b, of_b, &products->b);
  products->type = DType::kBF16;
}

void CudaOps::Multiply(const Product& p) {
  const cudaStream_t stream = Stream();
  cuda::FloatProducts products{.m = p.m,
                               .n = p.n,
                               .k = p.k,
                               .batch = p.outer * p.inner,
                               .a = OperandOf(p.a, p.inner),
                               .b = OperandOf(p.b, p.inner),
                               .c = p.c,
                               .c_row_stride = static_cast<int>(p.c_row_stride),
                               .c_stride = p.inner == 1 ? p.c_outer_stride : p.c_inner_stride,
                               .alpha = p.alpha,
                               .beta = p.beta};
  if (!EvenlySpaced(p)) TakeAddresses(p, &products);
  if (factors_ == DType::kBF16 && PaysToRound(p)) RoundOperands(p, &products);
  const bool ok = cublas_->Multiply(products, stream);
  Check(ok ? cudaGetLastError() : cudaErrorUnknown, "Multiply", p.m, p.n);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Ops>> CreateCudaOps(int device, DType factors) {
  return CudaOps::Create(device, factors);
}

}  // namespace fewbit::tune
