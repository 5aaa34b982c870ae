// What the server has to know of the model it serves: facts for validation, defaults for requests,
// and numbers for GetModelInfo. Filled once by main.cc (tests fill it by hand). Immutable.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/executor.h"
#include "runtime/models/model_spec.h"
#include "runtime/weights/canary.h"
#include "scheduler/request.h"

namespace fewbit {

// A part of the way from main() to the open port.
struct StartupPhase {
  std::string name;
  double seconds = 0.0;
};

struct ServedModel {
  std::string name;
  ModelSpec spec;
  ExecutorInfo device;  // the context a request may use is device.max_context
  SamplingParams
      default_sampling;  // for fields that a request leaves unset (seed and logit_bias apart)
  int32_t default_max_new_tokens = 0;  // for a request that sets no limit
  std::string quantization_method;     // empty: not quantized
  double average_bits = 16.0;          // over the linear layers
  double embedding_bits = 16.0;
  std::vector<StartupPhase> startup_phases;  // for /metrics
  std::optional<CanaryDistances> canary;     // likewise; absent: it has none
};

}  // namespace fewbit
