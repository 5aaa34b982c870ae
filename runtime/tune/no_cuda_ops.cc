// cuda_ops.h in a build without a CUDA toolkit.
#include "runtime/tune/cuda_ops.h"

namespace fewbit::tune {

absl::StatusOr<std::unique_ptr<Ops>> CreateCudaOps(int /*device*/) {
  return absl::UnavailableError("this build has no CUDA");
}

}  // namespace fewbit::tune
