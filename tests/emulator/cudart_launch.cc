// The functions of the CUDA runtime that bring kernels into it and launch them: those that the code
// that nvcc writes calls, and the public ones. Names and arguments are nvcc 13.0's.
#include <cuda_runtime_api.h>

#include <vector>

#include "tests/emulator/runtime.h"

using fewbit::emulator::Remember;
using fewbit::emulator::Runtime;

namespace {

// Of kernel<<<...>>>: pushed, then taken by the kernel's stub.
struct Configuration {
  dim3 grid, block;
  size_t dynamic_shared_bytes;
  cudaStream_t stream;
};

std::vector<Configuration>& Pushed() {
  static thread_local std::vector<Configuration> pushed;
  return pushed;
}

cudaError_t Launch(const void* function, const cudaLaunchConfig_t& config, void** arguments) {
  Runtime& runtime = Runtime::Get();
  const auto lock = runtime.lock();
  return Remember(runtime.Launch(function, config, arguments));
}

}  // namespace

extern "C" {

// What the object files bring for a device is not looked at: kernels come from PTX beside them.
void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}

void __cudaRegisterFunction(void**, const char* function, char*, const char* entry, int, uint3*,
                            uint3*, dim3*, dim3*, int*) {
  Runtime& runtime = Runtime::Get();
  const auto lock = runtime.lock();
  runtime.AddFunction(function, entry);
}

// Variables of the device are the module's; the host reaches none of them.
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

char __cudaInitModule(void**) { return 0; }

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t dynamic_shared_bytes,
                                     CUstream_st* stream) {
  Pushed().push_back({grid, block, dynamic_shared_bytes, stream});
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* dynamic_shared_bytes,
                                       void* stream) {
  if (Pushed().empty()) return Remember(cudaErrorMissingConfiguration);
  const Configuration& last = Pushed().back();
  *grid = last.grid;
  *block = last.block;
  *dynamic_shared_bytes = last.dynamic_shared_bytes;
  *static_cast<cudaStream_t*>(stream) = last.stream;
  Pushed().pop_back();
  return cudaSuccess;
}

// A kernel's handle is here the host function's address itself.
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments,
                             size_t dynamic_shared_bytes, cudaStream_t stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = dynamic_shared_bytes;
  config.stream = stream;
  return Launch(function, config, arguments);
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                               size_t dynamic_shared_bytes, cudaStream_t stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, dynamic_shared_bytes, stream);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function,
                                void** arguments) {
  return Launch(function, *config, arguments);
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  Runtime& runtime = Runtime::Get();
  const auto lock = runtime.lock();
  return Remember(runtime.SetAttribute(function, attribute, value));
}

cudaError_t cudaOccupancyMaxActiveClusters(int* count, const void* function,
                                           const cudaLaunchConfig_t* config) {
  Runtime& runtime = Runtime::Get();
  const auto lock = runtime.lock();
  return Remember(runtime.MaxActiveClusters(function, *config, count));
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* count, const void* function,
                                                          int threads,
                                                          size_t dynamic_shared_bytes) {
  Runtime& runtime = Runtime::Get();
  const auto lock = runtime.lock();
  return Remember(runtime.MaxActiveBlocks(function, threads, dynamic_shared_bytes, count));
}

}  // extern "C"
