// What the end-to-end GPU tests run on: the golden checkpoints, the bundled model, executors for
// them. Folders come from the environment (run.sh sets it), else from the source tree.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "runtime/cpu_executor.h"
#include "runtime/cuda/device_executor.h"
#include "runtime/models/model.h"
#include "scheduler/request.h"

namespace fewbit::testing {

std::string GoldenDirectory();  // FEWBIT_GOLDEN_DIR
std::string ModelDirectory();   // FEWBIT_MODEL_DIR

struct Golden {
  std::unique_ptr<Model> model;
  std::vector<TokenId> prompt;
  std::vector<int32_t> greedy;      // what follows greedily
  std::vector<float> top2_margins;  // of the reference, at each of them
  std::vector<float> logits;        // [prompt, V]
};
// Fails the test and leaves `model` null if it cannot be read.
Golden LoadGolden(const std::string& name);

// Fails the test and returns null if it cannot be read.
std::unique_ptr<Model> LoadTestModel(const std::string& directory);

// The same model with float32 linear layers that hold the packed ones' values: what it computes has
// no rounding but float's.
struct DenseTwin {
  explicit DenseTwin(const Model& packed);
  Model model;
  std::deque<std::vector<float>> values;
};

// Small limits; fails the test and returns null on an error.
CudaOptions SmallCudaOptions();
std::unique_ptr<CudaExecutor> MakeCuda(const Model& model, const CudaOptions& options);
std::unique_ptr<CpuExecutor> MakeCpu(const Model& model, int32_t max_context);

// Greedy, with every prompt row wanted, so that its logits are made.
Request ScoredRequest(std::vector<TokenId> prompt, int new_tokens);

// The logits [prompt, V] of `request`, `chunk` (at most 64) tokens per step, and the tokens drawn
// after them. Fails the test on an error.
struct RequestRun {
  std::vector<float> logits;
  std::vector<SampledToken> sampled, scored;
};
RequestRun RunRequest(CudaExecutor* executor, const Request& request, int chunk);

struct Difference {
  double relative = 0.0;  // ||a - b|| / ||b - mean(b) per row||
  float largest = 0.0f;
};
Difference Compare(const std::vector<float>& a, const std::vector<float>& b, int vocab);

}  // namespace fewbit::testing
