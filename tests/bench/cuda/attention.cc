#include "tests/bench/cuda/attention.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <numeric>
#include <random>
#include <sstream>

#include "kernels/cuda/attention_launch.h"
#include "kernels/cuda/linear_launch.h"
#include "tests/bench/cuda/bandwidth.h"
#include "tests/bench/cuda/random_layers.h"
#include "tests/bench/cuda/shapes.h"
#include "tests/bench/cuda/timing.h"

namespace fewbit::bench {
namespace {

using cuda::CheckCuda;
using cuda::DeviceBuffer;

constexpr int kHeadDim = 128;  // of every model in shapes.h
constexpr int kMostLayers = 32;
constexpr size_t kRotated = size_t{600} << 20;  // bytes of cache that a replay goes through

// One step of `batch` sequences with `context` tokens each, of which `query` are the step's, over
// several layers' caches full of random numbers.
class AttentionStep {
 public:
  // `o`: the matrix that takes the result.
  AttentionStep(const ModelShape& model, const RandomMatrix& o, kv::KvType type, int batch,
                int context, int query, const cuda::DeviceProps& props);

  // Microseconds of one layer.
  double Micros(int repeats);
  // Keys and values that a layer reads.
  double CacheBytes() const {
    return 1.0 * batch_ * context_ * plan_.cache.block_bytes() / kv::kBlockTokens;
  }
  double Flops() const {  // of the causal products
    const double seen = 1.0 * query_ * (context_ - query_) + 0.5 * query_ * (query_ + 1.0);
    return 4.0 * batch_ * seen * plan_.desc.num_heads * kHeadDim;
  }

 private:
  void MakeStep();
  void FillCache(size_t blocks);

  int batch_, context_, query_, layers_ = 1;
  cuda::AttentionPlan plan_;
  cuda::StepView step_;
  cuda::AttentionLayer layer_;
  cuda::LinearInput out_;
  const RandomMatrix& o_;
  std::vector<DeviceBuffer<int32_t>> arrays_;
  DeviceBuffer<double> frequencies_;
  DeviceBuffer<float> qkv_;
  DeviceBuffer<uint8_t> workspace_, cache_, staged_, plain_;
  size_t layer_bytes_ = 0;
};

AttentionStep::AttentionStep(const ModelShape& model, const RandomMatrix& o_matrix, kv::KvType type,
                             int batch, int context, int query, const cuda::DeviceProps& props)
    : batch_(batch), context_(context), query_(query), o_(o_matrix) {
  cuda::AttentionDesc d;
  d.num_heads = model.hidden / kHeadDim;
  d.num_kv_heads = (model.qkv_rows - model.hidden) / 2 / kHeadDim;
  d.head_dim = d.rotary_dim = kHeadDim;
  d.kv_type = type;
  plan_ = cuda::SelectAttention(d, {batch * query, batch, context}, props);
  if (!plan_.error.empty()) {
    std::fprintf(stderr, "%s\n", plan_.error.c_str());
    std::exit(1);
  }
  CheckCuda(cuda::PrepareAttention(plan_), "PrepareAttention");
  workspace_ = DeviceBuffer<uint8_t>(plan_.workspace_bytes);
  CheckCuda(cudaMemset(workspace_.get(), 0, workspace_.bytes()), "clear");
  MakeStep();
  const size_t blocks = size_t{1} * batch * ((context + kv::kBlockTokens - 1) / kv::kBlockTokens);
  layer_bytes_ = blocks * plan_.cache.block_bytes();
  layers_ = static_cast<int>(std::clamp<size_t>(kRotated / layer_bytes_, 2, kMostLayers));
  FillCache(blocks);
  std::vector<float> qkv(size_t{1} * batch * query * model.qkv_rows);
  std::mt19937 rng(3);
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < qkv.size(); ++i) {
    qkv[i] = i < (1 << 20) ? normal(rng) : qkv[i - (1 << 20)];
  }
  qkv_ = DeviceBuffer<float>(qkv);
  const int kv_size = d.num_kv_heads * kHeadDim;
  layer_.q = qkv_.get();
  layer_.k = qkv_.get() + model.hidden;
  layer_.v = qkv_.get() + model.hidden + kv_size;
  layer_.q_stride = layer_.k_stride = layer_.v_stride = model.qkv_rows;
  cuda::Desc o;
  o.shapes[0] = o_.shape();
  o.m = batch * query;
  const cuda::Plan o_plan = cuda::Select(o, props);
  cuda::DeviceGroup group;
  group.count = 1;
  group.parts[0] = o_.copy(0);
  staged_ = DeviceBuffer<uint8_t>(cuda::StagedBytes(o, o_plan));
  plain_ = DeviceBuffer<uint8_t>(o_plan.plain() ? 2 * size_t{1} * o.m * model.hidden : 0);
  out_ = cuda::InputOf(o, o_plan, group, staged_.get(), o_plan.plain() ? plain_.get() : nullptr);
}

void AttentionStep::MakeStep() {
  const int tokens = batch_ * query_, per = (context_ + kv::kBlockTokens - 1) / kv::kBlockTokens;
  std::vector<int32_t> sizes = {tokens, batch_, 0, per}, positions, sequence_of, q_start = {0};
  std::vector<int32_t> table(size_t{1} * batch_ * per);
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), std::mt19937(1));
  for (int s = 0; s < batch_; ++s) {
    for (int i = 0; i < query_; ++i) {
      positions.push_back(context_ - query_ + i);
      sequence_of.push_back(s);
    }
    q_start.push_back((s + 1) * query_);
  }
  for (const auto& array :
       {sizes, positions, sequence_of, q_start, std::vector<int32_t>(batch_, context_), table}) {
    arrays_.emplace_back(array);
  }
  step_.tokens = tokens;
  step_.sequences = batch_;
  step_.max_query = query_;
  step_.only_chunks = query_ > 1;
  step_.sizes = reinterpret_cast<const cuda::StepSizes*>(arrays_[0].get());
  step_.positions = arrays_[1].get();
  step_.sequence_of = arrays_[2].get();
  step_.q_start = arrays_[3].get();
  step_.kv_len = arrays_[4].get();
  step_.block_table = arrays_[5].get();
  std::vector<double> frequencies;
  for (int i = 0; i < kHeadDim / 2; ++i) {
    frequencies.push_back(std::pow(10000.0, -2.0 * i / kHeadDim));
  }
  frequencies_ = DeviceBuffer<double>(frequencies);
}

// Random elements in [-2, 2] or so, whatever the type: 16-bit patterns with few exponents serve as
// f16 and bf16 numbers, as pairs of bytes, and as scales.
void AttentionStep::FillCache(size_t blocks) {
  std::vector<uint16_t> pattern(size_t{1} << 20);
  std::mt19937 rng(9);
  const uint16_t base = plan_.cache.type == kv::KvType::kBF16 ? 0x3E80 : 0x3000;
  for (uint16_t& v : pattern) {
    const uint32_t bits = rng();
    v = static_cast<uint16_t>((base + (bits & 0x07FF)) | (bits >> 16 & 0x8000));
  }
  cache_ = DeviceBuffer<uint8_t>(layers_ * blocks * plan_.cache.block_bytes());
  const size_t bytes = std::min(cache_.bytes(), 2 * pattern.size());
  CheckCuda(cudaMemcpy(cache_.get(), pattern.data(), bytes, cudaMemcpyHostToDevice), "fill");
  for (size_t at = bytes; at < cache_.bytes();) {
    const size_t n = std::min(cache_.bytes() - at, at);
    CheckCuda(cudaMemcpy(cache_.get() + at, cache_.get(), n, cudaMemcpyDeviceToDevice), "fill");
    at += n;
  }
}

double AttentionStep::Micros(int repeats) {
  CheckCuda(cuda::LaunchAttentionStep(plan_, step_, frequencies_.get(), workspace_.get(), nullptr),
            "LaunchAttentionStep");
  CheckCuda(cudaDeviceSynchronize(), "LaunchAttentionStep");
  const double all = MedianReplayMicros(
      [&](cudaStream_t stream) {
        for (int i = 0; i < layers_; ++i) {
          layer_.cache = cache_.get() + i * layer_bytes_;
          CheckCuda(cuda::LaunchAttention(plan_, step_, layer_, workspace_.get(), out_, {}, stream),
                    "LaunchAttention");
        }
      },
      repeats);
  return all / layers_;
}

bool ReadNumbers(const char* text, std::vector<int>* numbers) {
  numbers->clear();
  std::stringstream list(text);
  for (std::string item; std::getline(list, item, ',');) {
    numbers->push_back(std::atoi(item.c_str()));
    if (numbers->back() <= 0) return false;
  }
  return true;
}

bool ReadTypes(const char* text, std::vector<kv::KvType>* types) {
  types->clear();
  std::stringstream list(text);
  for (std::string item; std::getline(list, item, ',');) {
    bool known = false;
    for (kv::KvType type : {kv::KvType::kF16, kv::KvType::kBF16, kv::KvType::kI8}) {
      if (item != kv::KvTypeName(type)) continue;
      types->push_back(type);
      known = true;
    }
    if (!known) return false;
  }
  return !types->empty();
}

std::string GpuName() {
  cudaDeviceProp prop;
  CheckCuda(cudaGetDeviceProperties(&prop, 0), "device properties");
  return prop.name;
}

}  // namespace

bool ParseAttention(const std::string& argument, AttentionOptions* o) {
  const auto value = [&](const std::string& name) {
    const std::string prefix = "--" + name + "=";
    return argument.rfind(prefix, 0) == 0 ? argument.c_str() + prefix.size() : nullptr;
  };
  if (const char* v = value("shape")) return o->shape = v, true;
  if (const char* v = value("batch")) return ReadNumbers(v, &o->batch);
  if (const char* v = value("context")) return ReadNumbers(v, &o->context);
  if (const char* v = value("prefill")) return ReadNumbers(v, &o->prefill);
  if (const char* v = value("kv")) return ReadTypes(v, &o->kv);
  if (const char* v = value("repeats")) return (o->repeats = std::atoi(v)) > 0;
  if (argument == "--csv") return o->csv = true;
  return false;
}

int RunAttention(const AttentionOptions& o) {
  const auto model = std::find_if(std::begin(kModelShapes), std::end(kModelShapes),
                                  [&](const ModelShape& s) { return s.name == o.shape; });
  if (model == std::end(kModelShapes)) {
    std::fprintf(stderr, "unknown --shape %s\n", o.shape.c_str());
    return 2;
  }
  cuda::DeviceProps props;
  CheckCuda(cuda::ReadDeviceProps(0, &props), "device properties");
  const RandomMatrix o_matrix(model->hidden, model->hidden, WeightMix{}, 1, 7);
  const double bandwidth = ReadBytesPerMicro();
  const std::string gpu = GpuName();
  char date[16];
  const std::time_t now = std::time(nullptr);
  std::strftime(date, sizeof(date), "%Y-%m-%d", std::gmtime(&now));
  if (o.csv) {
    std::printf(
        "gpu,date,commit,shape,batch,context,query,kv,us_per_layer,gb_per_s,pct_bandwidth,"
        "tflop_per_s\n");
  } else {
    std::printf("%s on %s, read bandwidth %.2f TB/s\n", o.shape.c_str(), gpu.c_str(),
                bandwidth / 1e6);
  }
  const auto print = [&](int batch, int context, int query, kv::KvType type) {
    AttentionStep step(*model, o_matrix, type, batch, context, query, props);
    const double micros = step.Micros(o.repeats), rate = step.CacheBytes() / micros;
    std::printf(o.csv ? "%s,%s,%s,%s,%d,%d,%d,%s,%.3f,%.1f,%.1f,%.2f\n"
                      : "%.0s%.0s%.0s%.0s  batch %3d  context %6d  query %5d  %-4s %9.2f us  %7.1f "
                        "GB/s  %5.1f %% of bandwidth  %6.2f TFLOP/s\n",
                gpu.c_str(), date, FEWBIT_COMMIT, o.shape.c_str(), batch, context, query,
                kv::KvTypeName(type), micros, rate / 1e3, 100 * rate / bandwidth,
                step.Flops() / micros / 1e6);
    std::fflush(stdout);
  };
  for (kv::KvType type : o.kv) {
    for (int batch : o.batch) {
      for (int context : o.context) print(batch, context, 1, type);
    }
    for (int tokens : o.prefill) print(1, tokens, tokens, type);
  }
  return 0;
}

}  // namespace fewbit::bench
