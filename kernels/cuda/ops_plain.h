// What ops.h launches where nothing is staged: many tokens, on their way to 16-bit products. The
// same arithmetic as for staged rows, so that a token's numbers are the same bits.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/ops.h"

namespace fewbit::cuda {

cudaError_t PreparePlainOps();

// As LaunchSiluMul; out.count is 0.
cudaError_t LaunchPlainSiluMul(const SiluArgs& args, const LinearInput& out, cudaStream_t stream);

}  // namespace fewbit::cuda
