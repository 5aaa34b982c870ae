// The operators of tuning on the GPU, but for matrix products (cublas.h): what runtime/tune/ops.h
// says of the operator of the same name holds here, shapes and sums included. Bound by memory, so
// each reads and writes its arrays once or twice and keeps nothing. No atomics: sums are taken in
// an order that depends on the shape alone. sm_80 and later; pointers are aligned to their element,
// `levels` and the arrays [N, K] beside them to 16 bytes. An error is that of the launch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/matrix.h"
#include "kernels/tune_args.h"

namespace fewbit::cuda {

// `scratch` of the launches below has this many bytes and is theirs until they have run.
inline constexpr size_t kTuneScratchBytes = size_t{8} << 20;

// The most columns that RmsNormBackward takes, and the most input channels of a ScaledMatrix.
inline constexpr int kMaxTuneNormCols = 1 << 16;
inline constexpr int kMaxTuneInputs = 1 << 17;

// tune_scales.cu
cudaError_t TuneWiden(const void* from, DType type, int64_t count, float* to, cudaStream_t stream);
cudaError_t TuneWeights(const tune::ScaledMatrix& matrix, float* weights, cudaStream_t stream);
cudaError_t TuneWeightGradients(const tune::ScaledMatrix& matrix, const float* d_weights,
                                const tune::ScaledMatrixGradients& gradients, cudaStream_t stream);

// tune_layer.cu
cudaError_t TuneAdd(const float* x, int64_t count, float* y, cudaStream_t stream);
cudaError_t TuneAddBias(const float* bias, int rows, int cols, float* y, cudaStream_t stream);
cudaError_t TuneRmsNorm(const float* x, const float* weight, float eps, int rows, int cols,
                        float* y, float* inverse_rms, cudaStream_t stream);
cudaError_t TuneRmsNormBackward(const float* x, const float* weight, const float* inverse_rms,
                                const float* dy, int rows, int cols, bool add, float* dx,
                                float* d_weight, void* scratch, cudaStream_t stream);
cudaError_t TuneRope(const tune::RopeArgs& args, bool inverse, float* x, cudaStream_t stream);
cudaError_t TuneSiluMul(const float* gate, const float* up, int64_t count, float* y,
                        cudaStream_t stream);
cudaError_t TuneSiluMulBackward(const float* dy, int64_t count, float* gate, float* up,
                                cudaStream_t stream);

// tune_softmax.cu
cudaError_t TuneCausalSoftmax(int64_t matrices, int context, int window, float* scores,
                              cudaStream_t stream);
cudaError_t TuneCausalSoftmaxBackward(int64_t matrices, int context, int window,
                                      const float* probabilities, float* gradients,
                                      cudaStream_t stream);
cudaError_t TuneKlDivergence(const float* teacher, int rows, int vocab, float scale, bool gradient,
                             float* student, tune::LossSums* sums, void* scratch,
                             cudaStream_t stream);

// tune_scales.cu
cudaError_t TuneAdam(const tune::AdamArgs& args, cudaStream_t stream);

// `to` [rows, cols] in bf16 = `from`, whose rows lie `row_stride` elements apart. cols is a
// multiple of 8 and the arrays are aligned to 16 bytes, rows of `from` too.
cudaError_t TuneRoundToBf16(const float* from, int64_t row_stride, int rows, int cols, void* to,
                            cudaStream_t stream);

// What cuBLAS takes for a batch whose matrices have no common distance: the addresses of
// `outer` x `inner` matrices. `addresses` [outer * inner] in device memory.
cudaError_t TuneAddresses(const float* data, int64_t outer_stride, int64_t inner_stride, int outer,
                          int inner, const void** addresses, cudaStream_t stream);

}  // namespace fewbit::cuda
