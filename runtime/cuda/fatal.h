// What happens when CUDA fails after start-up: the context is lost, so the process ends, and says
// in which operation of which step, and of what shape.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "kernels/cuda/step_view.h"
#include "runtime/cuda/op_clock.h"

namespace fewbit {

// Where the executor is; kept up to date while it enqueues a step.
struct StepPlace {
  uint64_t step = 0;  // counted from 1
  cuda::StepView view;
  int layer = -1;            // -1: outside the layers
  OpClock* clock = nullptr;  // told of every op that passed its check; null: nobody

  // "CUDA failed in OP, layer 3 of step 17 (8 tokens, 2 sequences, 2 rows, longest query 7): ERROR"
  std::string Describe(const char* op, const std::string& error) const;

  // After an op was enqueued. Writes Describe() to stderr and aborts if there is an error.
  void Check(cudaError_t error, const char* op) const;
  void Check(const std::string& error, const char* op) const;
};

}  // namespace fewbit
