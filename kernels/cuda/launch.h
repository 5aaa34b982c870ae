// One way to launch a kernel of the token path: with programmatic dependent launch, so that its
// blocks may become resident while the kernel before it still runs. Such a kernel calls
// WaitForPreviousKernels() (device/async_copy.cuh) before it touches anything that an earlier
// kernel writes or still reads.
#pragma once

#include <cuda_runtime_api.h>

#include <utility>

namespace fewbit::cuda {

// Once for every kernel of the token path: the same split of the L1 cache for all, as much shared
// memory as there is. By default each kernel gets a split for its own shared memory, and a
// multiprocessor must drain before it changes, so that no kernel could start early.
template <typename Kernel>
cudaError_t PreferShared(Kernel* kernel) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                              cudaSharedmemCarveoutMaxShared);
}

template <typename... Parameters, typename... Arguments>
cudaError_t LaunchDependent(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                            size_t shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

}  // namespace fewbit::cuda
