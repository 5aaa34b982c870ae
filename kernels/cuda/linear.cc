// The one entry point of all paths, and what the device is asked for at start.
#include <array>
#include <utility>

#include "kernels/cuda/dequantize.h"
#include "kernels/cuda/linear_launch.h"
#include "kernels/cuda/linear_small.h"
#include "kernels/cuda/linear_stream.h"
#include "kernels/cuda/linear_wide.h"

namespace fewbit::cuda {
namespace {

// y = x W^T with 16-bit weights in scratch memory.
std::string ThroughScratch(const Desc& desc, int part, const DeviceMatrix& w, const LinearInput& in,
                           void* y, int64_t y_stride, const LinearWorkspace& workspace,
                           cudaStream_t stream) {
  const quant::PackedShape& shape = w.shape;
  const cudaError_t error = Dequantize(w, desc.x_type, workspace.scratch, stream);
  if (error != cudaSuccess) return std::string("Dequantize: ") + cudaGetErrorString(error);
  if (!workspace.cublas->Gemm(desc.x_type, desc.m, shape.rows, shape.cols, in.plain, shape.cols,
                              workspace.scratch, y, desc.y_type, y_stride, stream)) {
    return "cuBLAS refuses m " + std::to_string(desc.m) + ", rows " + std::to_string(shape.rows) +
           ", cols " + std::to_string(shape.cols) + " of part " + std::to_string(part);
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
  return CountWideClusters(*props, &props->wide_clusters);
}

cudaError_t PrepareLinearKernels(const DeviceProps& props) {
  cudaError_t error = PrepareSmallKernels(props);
  if (error == cudaSuccess) error = PrepareStreamKernels(props);
  if (error == cudaSuccess) error = PrepareWideKernels(props);
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
    const cudaError_t error = LaunchWide(desc, plan.wide, group, in, out, stream);
    return error == cudaSuccess ? "" : std::string("LaunchWide: ") + cudaGetErrorString(error);
  }
  for (int p = 0; p < desc.count; ++p) {
    void* y = static_cast<uint8_t*>(out.y) +
              out.column[p] * static_cast<int64_t>(desc.y_type == DType::kF32 ? 4 : 2);
    if (plan.path == Path::kDequantize) {
      const std::string error =
          ThroughScratch(desc, p, group.parts[p], in, y, out.stride, workspace, stream);
      if (!error.empty()) return error;
      continue;
    }
    const cudaError_t error = LaunchSmall(plan.small[p], desc.m, group.parts[p], in.parts[p], y,
                                          desc.y_type, out.stride, stream);
    if (error != cudaSuccess) return std::string("LaunchSmall: ") + cudaGetErrorString(error);
  }
  return "";
}

}  // namespace fewbit::cuda
