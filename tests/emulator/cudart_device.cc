// The functions of the CUDA runtime that tell about the device and name errors.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstring>

#include "tests/emulator/runtime.h"

using namespace fewbit::emulator;  // NOLINT: constants of the device

namespace {

constexpr char kBusId[] = "0000:00:00.0";
constexpr int kL2Bytes = 50 << 20;

struct ErrorText {
  cudaError_t error;
  const char *name, *text;
};

// Those that this runtime returns.
constexpr ErrorText kErrors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {cudaErrorMissingConfiguration, "cudaErrorMissingConfiguration", "missing configuration"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorIllegalState, "cudaErrorIllegalState", "not permitted in this state"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress",
     "an illegal memory access was encountered"},
    {cudaErrorLaunchOutOfResources, "cudaErrorLaunchOutOfResources",
     "too many resources requested for launch"},
    {cudaErrorInvalidClusterSize, "cudaErrorInvalidClusterSize", "invalid cluster size"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "an earlier error ended the capture"},
    {cudaErrorStreamCaptureMerge, "cudaErrorStreamCaptureMerge",
     "the call would merge two captures"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched",
     "the capture began on another stream"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation",
     "a capture cannot depend on work outside of it"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit",
     "the default stream would depend on a capture"},
    {cudaErrorStreamCaptureWrongThread, "cudaErrorStreamCaptureWrongThread",
     "another thread began the capture"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent", "the event was recorded in a capture"},
    {cudaErrorUnknown, "cudaErrorUnknown", "unknown error"},
};

const ErrorText& TextOf(cudaError_t error) {
  for (const ErrorText& known : kErrors) {
    if (known.error == error) return known;
  }
  static constexpr ErrorText kOther = {cudaErrorUnknown, "unrecognized error code",
                                       "unrecognized error code"};
  return kOther;
}

cudaError_t CheckDevice(int device) {
  return Remember(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}

}  // namespace

extern "C" {

const char* cudaGetErrorString(cudaError_t error) { return TextOf(error).text; }

const char* cudaGetErrorName(cudaError_t error) { return TextOf(error).name; }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) { return CheckDevice(device); }

cudaError_t cudaDeviceGetPCIBusId(char* text, int bytes, int device) {
  if (bytes < static_cast<int>(sizeof(kBusId))) return Remember(cudaErrorInvalidValue);
  std::snprintf(text, static_cast<size_t>(bytes), "%s", kBusId);
  return CheckDevice(device);
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  Runtime& runtime = Runtime::Get();
  const auto lock = runtime.lock();
  *free_bytes = kDeviceBytes - runtime.memory().allocated_bytes();
  *total_bytes = kDeviceBytes;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = Runtime::Get().multiprocessors();
      return CheckDevice(device);
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(Runtime::Get().device().shared_per_multiprocessor);
      return CheckDevice(device);
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(Runtime::Get().device().shared_per_block);
      return CheckDevice(device);
    case cudaDevAttrComputeCapabilityMajor:
      *value = static_cast<int>(Runtime::Get().device().compute / 10);
      return CheckDevice(device);
    case cudaDevAttrComputeCapabilityMinor:
      *value = static_cast<int>(Runtime::Get().device().compute % 10);
      return CheckDevice(device);
    default:
      std::fprintf(stderr, "emulator: device attribute %d is not known\n",
                   static_cast<int>(attribute));
      return Remember(cudaErrorInvalidValue);
  }
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  const Device& d = Runtime::Get().device();
  *p = {};
  std::snprintf(p->name, sizeof(p->name), "%s", d.name);
  p->totalGlobalMem = kDeviceBytes;
  p->sharedMemPerBlock = kSharedPerBlock;
  p->sharedMemPerBlockOptin = d.shared_per_block;
  p->sharedMemPerMultiprocessor = d.shared_per_multiprocessor;
  p->reservedSharedMemPerBlock = kReservedShared;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->warpSize = 32;
  p->maxThreadsPerBlock = kThreadsPerBlock;
  p->maxThreadsPerMultiProcessor = kThreadsPerMultiprocessor;
  p->maxBlocksPerMultiProcessor = 32;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = kThreadsPerBlock;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 0x7fffffff;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->totalConstMem = 64 << 10;
  p->major = static_cast<int>(d.compute / 10);
  p->minor = static_cast<int>(d.compute % 10);
  p->multiProcessorCount = Runtime::Get().multiprocessors();
  p->l2CacheSize = kL2Bytes;
  p->persistingL2CacheMaxSize = kL2Bytes / 2;
  p->memoryBusWidth = 5120;  // bits
  p->concurrentKernels = p->unifiedAddressing = p->cooperativeLaunch = 1;
  p->clusterLaunch = p->major >= 9;
  p->asyncEngineCount = 3;
  return CheckDevice(device);
}

}  // extern "C"
