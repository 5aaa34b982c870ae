// The devices a model can run on, one row of a table each: from a --device text to an Executor.
// The only place that knows both executors.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/executor.h"
#include "runtime/models/model.h"

namespace fewbit {

struct DeviceOptions {
  std::string device = "auto";  // "cpu", "cuda" (the first GPU), "cuda:N", or "auto": cuda where
                                // this build and machine have it, else cpu
  int32_t max_sequences = 64;   // per step
  int32_t max_step_tokens = 512;
  int32_t max_context = 0;  // tokens; 0: the model's
  int64_t kv_bytes = 0;     // budget; 0: on a GPU what gpu_memory_utilization leaves, on the CPU a
                            // quarter of the memory; never more than max_sequences full contexts
  int32_t num_blocks = 0;   // KV blocks; 0: from kv_bytes
  std::string kv_type = "f16";          // cpu: "f16", "f32"; cuda: "f16", "bf16", "i8"
  int threads = 0;                      // cpu only; 0: one per processor
  double gpu_memory_utilization = 0.9;  // cuda only: of the GPU's memory, weights and buffers
                                        // included
  int lm_head_bits = 0;  // cuda only: 16, 8 or 4 rounds the head to so many bits when it is
                         // uploaded; 0: as the checkpoint has it
};

// INVALID_ARGUMENT if `device` is none of the texts above.
absl::Status CheckDeviceName(std::string_view device);

// "cpu" or "cuda:N": what `device` means on this machine. UNAVAILABLE says why a GPU that was asked
// for cannot be had: this build has no CUDA, no driver, no such GPU, or one that its kernels do not
// run on. "auto" never fails.
absl::StatusOr<std::string> ResolveDevice(std::string_view device);

// `model` outlives the executor. Errors: those of ResolveDevice and of the executor's Create.
absl::StatusOr<std::unique_ptr<Executor>> CreateExecutor(const Model* model,
                                                         const DeviceOptions& options);

}  // namespace fewbit
