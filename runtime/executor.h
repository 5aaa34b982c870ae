// The device side of a step. Implemented by CpuExecutor and by the tests' FakeExecutor (and by a
// CUDA executor later).
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "runtime/batch.h"

namespace fewbit {

struct ExecutorInfo {
  std::string device;           // "cpu: AVX-512, 2 threads"
  std::string pci_bus_id = {};  // of the GPU, as CUDA names it ("0000:18:00.0"); empty: none
  int32_t vocab_size = 0;
  int32_t max_context = 0;      // tokens, prompt and output together
  int32_t max_step_tokens = 0;  // T never exceeds this
  int32_t max_sequences = 0;    // S never exceeds this
  int32_t block_tokens = 0;     // tokens per KV block
  int32_t num_blocks = 0;       // KV blocks in all
  int64_t kv_bytes = 0;         // memory of the whole KV cache
  int64_t weight_bytes = 0;
  // Steps that may be launched and not yet collected. From 2 on the engine plans a decoding
  // sequence ahead of its unknown token (kLastSampled), so that the device never waits for the
  // host.
  int32_t max_steps_in_flight = 1;
};

enum class StepHandle : uint64_t {};

// Thread rule: engine thread only.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual const ExecutorInfo& info() const = 0;

  // Starts the step; the device runs steps in the order of their launch. REQUIRES: every limit of
  // info() kept, fewer than max_steps_in_flight steps launched and not collected. `batch` stays
  // unchanged until its Collect, and so do the requests and the tokens it points to.
  virtual StepHandle Launch(const ForwardBatch& batch) = 0;

  // Waits for the oldest step that is not collected, which `handle` must name, and fills `result`.
  // An error is fatal to every request, not to the process. The engine then collects what else is
  // in flight, whatever comes of it, and launches nothing more.
  virtual absl::Status Collect(StepHandle handle, StepResult* result) = 0;
};

}  // namespace fewbit
