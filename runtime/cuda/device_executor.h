// CudaExecutor: two steps in flight on one stream, each one copy in, launches (a replayed graph
// when every sequence runs one token), one copy out. Only for code that links CUDA; everybody else
// goes through cuda_executor.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/cuda/cuda_executor.h"
#include "runtime/cuda/device_model.h"
#include "runtime/cuda/op_clock.h"

namespace fewbit {

// Bytes of device memory.
struct DeviceMemoryUse {
  int64_t weights = 0;
  int64_t buffers = 0;
  int64_t kv = 0;
};

// Thread rule: engine thread only.
class CudaExecutor : public Executor {
 public:
  // As CreateCudaExecutor, of weights that are on the device already. REQUIRES: options.device is
  // the current device.
  static absl::StatusOr<std::unique_ptr<CudaExecutor>> Create(std::unique_ptr<DeviceModel> model,
                                                              const CudaOptions& options);
  ~CudaExecutor() override;

  const ExecutorInfo& info() const override;
  StepHandle Launch(const ForwardBatch& batch) override;
  absl::Status Collect(StepHandle handle, StepResult* result) override;

  const DeviceMemoryUse& memory() const;
  OpClock* clock() const;  // null without CudaOptions::profile

  // Time that the device spent inside steps, from the first launch of each to its copy out, of all
  // steps collected so far. Thread-safe.
  double device_seconds() const;

  // For tests and evaluation: the logits [rows, V] of the step that was collected last. REQUIRES:
  // no step in flight, at most 64 rows in that step.
  std::vector<float> Logits(int32_t rows) const;

 private:
  CudaExecutor();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fewbit
