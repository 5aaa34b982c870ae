// cuda_executor.h in a build without a CUDA toolkit.
#include "runtime/cuda/cuda_executor.h"

namespace fewbit {

absl::Status CheckCudaDevice(int /*device*/) {
  return absl::UnavailableError("this build has no CUDA");
}

absl::StatusOr<std::unique_ptr<Executor>> CreateCudaExecutor(const Model* /*model*/,
                                                             const CudaOptions& options) {
  return CheckCudaDevice(options.device);
}

}  // namespace fewbit
