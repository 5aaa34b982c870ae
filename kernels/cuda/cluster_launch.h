// What the kernels on warpgroups have in common on the host: shared memory for every instance, and
// launches in clusters.
#pragma once

#include <array>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear.h"

namespace fewbit::cuda {

// Once for all instances of a kernel of sm_90: as much shared memory per block as the device has.
template <typename Kernel, size_t kCount>
cudaError_t PrepareInstances(const std::array<Kernel, kCount>& kernels, const DeviceProps& props) {
  if (props.major != 9) return cudaSuccess;
  for (Kernel kernel : kernels) {
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             props.shared_per_block);
    if (error == cudaSuccess) error = PreferShared(kernel);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

// Clusters of a launch; blocks have `threads` threads and `shared_bytes` of dynamic shared memory.
struct ClusterGeometry {
  int blocks = 1;  // of a cluster
  int clusters = 0;
  int threads = 0;
  int shared_bytes = 0;
};

// With attributes[0] and, for an early start, attributes[1], which must outlive the result.
inline cudaLaunchConfig_t ClusterConfig(const ClusterGeometry& geometry, bool early_start,
                                        cudaLaunchAttribute (&attributes)[2]) {
  attributes[0] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = geometry.blocks;
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  attributes[1] = {};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(geometry.blocks * geometry.clusters);
  config.blockDim = dim3(geometry.threads);
  config.dynamicSmemBytes = geometry.shared_bytes;
  config.attrs = attributes;
  config.numAttrs = early_start ? 2 : 1;
  return config;
}

// How many such clusters, of at most geometry.clusters, may be resident at once.
template <typename Kernel>
cudaError_t CountResidentClusters(Kernel* kernel, const ClusterGeometry& geometry, int* clusters) {
  cudaLaunchAttribute attributes[2];
  const cudaLaunchConfig_t config = ClusterConfig(geometry, false, attributes);
  return cudaOccupancyMaxActiveClusters(clusters, kernel, &config);
}

template <typename Args>
cudaError_t LaunchClusters(void (*kernel)(Args), const ClusterGeometry& geometry, bool early_start,
                           cudaStream_t stream, const Args& args) {
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config = ClusterConfig(geometry, early_start, attributes);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, args);
}

}  // namespace fewbit::cuda
