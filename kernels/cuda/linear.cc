// The one entry point of all paths, and what the device is asked for at start.
#include <array>
#include <utility>

#include "kernels/cuda/dequantize.h"
#include "kernels/cuda/linear_cluster.h"
#include "kernels/cuda/linear_half.h"
#include "kernels/cuda/linear_launch.h"
#include "kernels/cuda/linear_small.h"
#include "kernels/cuda/linear_stream.h"
#include "kernels/cuda/linear_wide.h"

namespace fewbit::cuda {
namespace {

// y = x W^T with 16-bit weights in scratch memory, one product for neighbouring columns of y.
std::string ThroughScratch(const Desc& desc, const DeviceGroup& group, const LinearInput& in,
                           const LinearOutput& out, const LinearWorkspace& workspace,
                           cudaStream_t stream) {
  const int cols = desc.shapes[0].cols;
  for (int first = 0, end; first < desc.count; first = end) {
    int rows = 0;
    DeviceGroup side_by_side;
    for (end = first; end < desc.count && out.column[end] == out.column[first] + rows; ++end) {
      side_by_side.parts[side_by_side.count++] = group.parts[end];
      rows += desc.shapes[end].rows;
    }
    const cudaError_t error = Dequantize(side_by_side, desc.x_type, workspace.scratch, stream);
    if (error != cudaSuccess) return std::string("Dequantize: ") + cudaGetErrorString(error);
    void* y = static_cast<uint8_t*>(out.y) +
              out.column[first] * static_cast<int64_t>(desc.y_type == DType::kF32 ? 4 : 2);
    if (!workspace.cublas->Gemm(desc.x_type, desc.m, rows, cols, in.plain, cols, workspace.scratch,
                                out.add != nullptr, y, desc.y_type, out.stride, stream)) {
      return "cuBLAS refuses m " + std::to_string(desc.m) + ", rows " + std::to_string(rows) +
             ", cols " + std::to_string(cols);
    }
  }
  return "";
}

}  // namespace

cudaError_t ReadDeviceProps(int device, DeviceProps* props) {
  const std::array<std::pair<cudaDeviceAttr, int*>, 5> wanted = {{
      {cudaDevAttrComputeCapabilityMajor, &props->major},
      {cudaDevAttrComputeCapabilityMinor, &props->minor},
      {cudaDevAttrMultiProcessorCount, &props->multiprocessors},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, &props->shared_per_multiprocessor},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, &props->shared_per_block},
  }};
  for (const auto& [attribute, value] : wanted) {
    const cudaError_t error = cudaDeviceGetAttribute(value, attribute, device);
    if (error != cudaSuccess) return error;
  }
  props->wide_teams = props->major == 9 ? props->multiprocessors / kSegments : 0;
  const cudaError_t error = CountHalfClusters(*props, &props->half_clusters);
  return error != cudaSuccess ? error : CountClusters(*props, &props->wide_clusters);
}

cudaError_t PrepareLinearKernels(const DeviceProps& props) {
  cudaError_t error = PrepareSmallKernels(props);
  if (error == cudaSuccess) error = PrepareStreamKernels(props);
  if (error == cudaSuccess) error = PrepareClusterKernels(props);
  if (error == cudaSuccess) error = PrepareWideKernels(props);
  if (error == cudaSuccess) error = PrepareHalfKernels(props);
  if (error == cudaSuccess) error = PrepareDequantize();
  if (error == cudaSuccess) error = PrepareStaging();
  return error;
}

std::string LaunchLinear(const Desc& desc, const Plan& plan, const DeviceGroup& group,
                         const LinearInput& in, const LinearOutput& out,
                         const LinearWorkspace& workspace, cudaStream_t stream) {
  if (plan.path == Path::kStream) {
    const cudaError_t error = LaunchStream(desc, plan.stream, group, in, out, stream);
    return error == cudaSuccess ? "" : std::string("LaunchStream: ") + cudaGetErrorString(error);
  }
  if (plan.path == Path::kWide) {
    const cudaError_t error =
        plan.wide.clustered
            ? LaunchCluster(desc, plan.wide, group, in, out, workspace.exchange, stream)
            : LaunchWide(desc, plan.wide, group, in, out, workspace.exchange, stream);
    return error == cudaSuccess ? "" : std::string("LaunchWide: ") + cudaGetErrorString(error);
  }
  if (plan.path == Path::kHalf) {
    const cudaError_t error =
        LaunchHalf(desc, plan.half, group, in, out, workspace.exchange, stream);
    return error == cudaSuccess ? "" : std::string("LaunchHalf: ") + cudaGetErrorString(error);
  }
  if (plan.path == Path::kDequantize) {
    return ThroughScratch(desc, group, in, out, workspace, stream);
  }
  for (int p = 0; p < desc.count; ++p) {
    void* y = static_cast<uint8_t*>(out.y) +
              out.column[p] * static_cast<int64_t>(desc.y_type == DType::kF32 ? 4 : 2);
    const cudaError_t error = LaunchSmall(plan.small[p], desc.m, group.parts[p], in.parts[p], y,
                                          desc.y_type, out.stride, stream);
    if (error != cudaSuccess) return std::string("LaunchSmall: ") + cudaGetErrorString(error);
  }
  return "";
}

}  // namespace fewbit::cuda
