#include "tests/gpu/runtime/gpu_model.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>

#include "gtest/gtest.h"
#include "kernels/cpu/linear.h"
#include "kernels/cuda/linear_launch.h"
#include "nlohmann/json.hpp"
#include "runtime/cuda/upload.h"
#include "tests/npy.h"
#include "tests/runtime/step_driver.h"

namespace fewbit::testing {
namespace {

std::string FromEnvironment(const char* name, const char* below_source) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : std::string(FEWBIT_SOURCE_DIR) + below_source;
}

}  // namespace

std::string GoldenDirectory() { return FromEnvironment("FEWBIT_GOLDEN_DIR", "/tests/golden"); }

std::string ModelDirectory() {
  return FromEnvironment("FEWBIT_MODEL_DIR", "/deploy/models/fewbit-demo-29m");
}

std::unique_ptr<Model> LoadTestModel(const std::string& directory) {
  auto model = LoadModel(directory);
  EXPECT_TRUE(model.ok()) << model.status();
  return model.ok() ? *std::move(model) : nullptr;
}

DenseTwin::DenseTwin(const Model& packed) {
  model.spec = packed.spec;
  model.embedding = packed.embedding;
  model.head = packed.head;
  model.final_norm = packed.final_norm;
  model.layers = packed.layers;
  for (LayerWeights& layer : model.layers) {
    for (Matrix& w : layer.linears) {
      const int rows = MatrixRows(w), cols = MatrixCols(w);
      std::vector<float>& to = values.emplace_back(static_cast<size_t>(rows) * cols);
      for (int r = 0; r < rows; ++r) {
        cpu::DequantizeRow(w, r, &to[static_cast<size_t>(r) * cols]);
      }
      w = DenseMatrix{to.data(), DType::kF32, rows, cols};
    }
  }
}

Golden LoadGolden(const std::string& name) {
  const std::string directory = GoldenDirectory() + "/" + name;
  Golden golden;
  golden.model = LoadTestModel(directory);
  if (golden.model == nullptr) return golden;
  std::ifstream in(directory + "/golden.json");
  const nlohmann::json json = nlohmann::json::parse(in);
  for (const int32_t id : json["prompt_ids"]) golden.prompt.push_back(TokenId(id));
  golden.greedy = json["greedy_ids"].get<std::vector<int32_t>>();
  golden.top2_margins = json["top2_margin"].get<std::vector<float>>();
  golden.logits = ReadNpy<float>(directory + "/logits.npy").values;
  return golden;
}

CudaOptions SmallCudaOptions() {
  CudaOptions options;
  options.max_sequences = 8;
  options.max_step_tokens = 512;
  options.max_context = 512;
  return options;
}

std::unique_ptr<CudaExecutor> MakeCuda(const Model& model, const CudaOptions& options) {
  cuda::DeviceProps props;
  EXPECT_EQ(cuda::ReadDeviceProps(options.device, &props), cudaSuccess);
  const auto plan = PlanModel(model, options.lm_head_bits, props);
  EXPECT_TRUE(plan.ok()) << plan.status();
  if (!plan.ok()) return nullptr;
  auto uploaded = UploadModel(model, *plan);
  EXPECT_TRUE(uploaded.ok()) << uploaded.status();
  if (!uploaded.ok()) return nullptr;
  auto executor = CudaExecutor::Create(*std::move(uploaded), options);
  EXPECT_TRUE(executor.ok()) << executor.status();
  return executor.ok() ? *std::move(executor) : nullptr;
}

std::unique_ptr<CpuExecutor> MakeCpu(const Model& model, int32_t max_context) {
  CpuExecutorOptions options;
  options.max_sequences = 8;
  options.max_context = max_context;
  options.kv_type = kv::KvType::kF32;
  auto executor = CpuExecutor::Create(&model, options);
  EXPECT_TRUE(executor.ok()) << executor.status();
  return executor.ok() ? *std::move(executor) : nullptr;
}

Request ScoredRequest(std::vector<TokenId> prompt, int new_tokens) {
  Request request;
  request.id = RequestId(1);
  request.prompt = std::move(prompt);
  request.max_new_tokens = new_tokens;
  request.want_prompt_logprobs = true;
  request.want_logprobs = true;
  return request;
}

RequestRun RunRequest(CudaExecutor* executor, const Request& request, int chunk) {
  StepDriver driver(executor);
  driver.Add(request);
  RequestRun run;
  const int prompt = static_cast<int>(request.prompt.size());
  while (!driver.Done()) {
    const int before = driver.sequence(0).computed;
    const absl::Status status = driver.Step(chunk);
    EXPECT_TRUE(status.ok()) << status;
    if (!status.ok()) return run;
    if (before >= prompt) continue;
    const std::vector<float> rows = executor->Logits(driver.sequence(0).computed - before);
    run.logits.insert(run.logits.end(), rows.begin(), rows.end());
  }
  run.sampled = driver.sequence(0).sampled;
  run.scored = driver.sequence(0).scored;
  return run;
}

Difference Compare(const std::vector<float>& a, const std::vector<float>& b, int vocab) {
  Difference d;
  if (a.size() != b.size()) return {INFINITY, INFINITY};
  double error = 0.0, norm = 0.0;
  for (size_t begin = 0; begin < b.size(); begin += vocab) {
    double mean = 0.0;
    for (int i = 0; i < vocab; ++i) mean += b[begin + i] / static_cast<double>(vocab);
    for (int i = 0; i < vocab; ++i) {
      const double e = static_cast<double>(a[begin + i]) - b[begin + i];
      if (!(std::fabs(e) <= d.largest)) d.largest = static_cast<float>(std::fabs(e));
      error += e * e;
      norm += (b[begin + i] - mean) * (b[begin + i] - mean);
    }
  }
  d.relative = std::sqrt(error / norm);
  return d;
}

}  // namespace fewbit::testing
