// The executor that runs a model on one NVIDIA GPU. Everything is uploaded and allocated at the
// start; a step is one copy in, kernels on one stream (replayed from a CUDA graph when every
// sequence decodes one token), one copy out. In a build without CUDA the same functions exist and
// say so.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/kv_layout.h"
#include "runtime/executor.h"
#include "runtime/models/model.h"

namespace fewbit {

struct CudaOptions {
  int device = 0;
  int32_t max_sequences = 64;  // per step
  int32_t max_step_tokens = 2048;
  int32_t max_context = 0;          // tokens; 0: the model's
  int64_t kv_bytes = 0;             // budget; 0: what memory_utilization leaves
  int32_t num_blocks = 0;           // KV blocks; 0: from kv_bytes. Either way no more is taken than
                                    // max_sequences full contexts need
  double memory_utilization = 0.9;  // of the GPU's memory, for weights, buffers and KV cache
  kv::KvType kv_type = kv::KvType::kF16;
  int lm_head_bits = 0;  // 16, 8, 4; 0: as the checkpoint has it
  bool graphs = true;    // false: every step is launched kernel by kernel
  bool profile = false;  // one step in flight, no graphs, an event behind every launch: OpClock
};

// UNAVAILABLE with the reason if GPU `device` cannot run our kernels.
absl::Status CheckCudaDevice(int device);

// Uploads `model`, which may go once this returns. INVALID_ARGUMENT names option, value and what it
// must be; UNIMPLEMENTED a matrix that no kernel can take; RESOURCE_EXHAUSTED says how many bytes
// are needed for what and how many are free. A CUDA error after that ends the process with
// operation, shape and step in the message.
absl::StatusOr<std::unique_ptr<Executor>> CreateCudaExecutor(const Model* model,
                                                             const CudaOptions& options);

}  // namespace fewbit
