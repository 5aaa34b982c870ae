// cuda_executor.h and tune_ops.h in a build without a CUDA toolkit.
#include "runtime/cuda/cuda_executor.h"
#include "runtime/cuda/tune_ops.h"

namespace fewbit {

absl::Status CheckCudaDevice(int /*device*/) {
  return absl::UnavailableError("this build has no CUDA");
}

absl::StatusOr<std::unique_ptr<Executor>> CreateCudaExecutor(const Model* /*model*/,
                                                             const CudaOptions& options) {
  return CheckCudaDevice(options.device);
}

absl::StatusOr<std::unique_ptr<tune::Ops>> tune::CreateCudaOps(int device, DType /*factors*/) {
  return CheckCudaDevice(device);
}

}  // namespace fewbit
