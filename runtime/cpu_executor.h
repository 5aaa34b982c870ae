// The executor that runs a model on this machine's processors: decoder, KV cache and sampler on one
// thread team.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/cpu/linear.h"
#include "kernels/kv_layout.h"
#include "runtime/executor.h"
#include "runtime/models/model.h"

namespace fewbit {

struct CpuExecutorOptions {
  int threads = 0;             // 0: AvailableProcessors()
  int32_t max_sequences = 64;  // per step
  int32_t max_step_tokens = 512;
  int32_t max_context = 0;       // tokens; 0: the model's
  int64_t kv_bytes = 1ll << 30;  // budget; less is taken when max_sequences full contexts need less
  int32_t num_blocks = 0;        // KV blocks; 0: what kv_bytes gives
  kv::KvType kv_type = kv::KvType::kF16;
  std::optional<cpu::Isa> isa;  // empty: the best this machine has
};

// Thread rule: engine thread only.
class CpuExecutor : public Executor {
 public:
  // `model` outlives the executor. INVALID_ARGUMENT names the option, its value and what it must
  // be: numbers out of range, a context beyond the model's, a KV cache that cannot hold one
  // sequence of max_context tokens, an instruction set that this machine lacks. RESOURCE_EXHAUSTED
  // if the KV cache cannot be reserved.
  static absl::StatusOr<std::unique_ptr<CpuExecutor>> Create(const Model* model,
                                                             const CpuExecutorOptions& options);
  ~CpuExecutor() override;

  const ExecutorInfo& info() const override;
  // Runs the step to its end; Collect returns at once.
  StepHandle Launch(const ForwardBatch& batch) override;
  absl::Status Collect(StepHandle handle, StepResult* result) override;

 private:
  CpuExecutor();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fewbit
