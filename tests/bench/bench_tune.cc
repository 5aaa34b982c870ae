// Forward and backward passes of tuning on the CPU: a layer and the loss of a model of 29 million
// parameters (E 512, F 1536, 8 heads on 4, V 8192), windows of 512 tokens. Arguments: threads,
// windows, whether products are of bfloat16. Items are tokens; the counters say what part of the
// time an operator takes.
#include <cmath>
#include <deque>
#include <memory>
#include <random>
#include <vector>

#include "benchmark/benchmark.h"
#include "runtime/tune/cpu_ops.h"
#include "runtime/tune/device_array.h"
#include "runtime/tune/layer_tape.h"
#include "tests/bench/clocked_ops.h"

namespace fewbit {
namespace {

constexpr int kContext = 512;
constexpr int kHeadRows = 1024;

ModelSpec Spec() {
  ModelSpec spec;
  spec.hidden_size = 512;
  spec.ffn_size = 1536;
  spec.num_heads = 8;
  spec.num_kv_heads = 4;
  spec.head_dim = 64;
  spec.vocab_size = 8192;
  spec.rope.rotary_dim = 64;
  return spec;
}

class DropGradients final : public tune::WeightGradientSink {
 public:
  void OnWeightGradient(LinearRole, const float*) override {}
};

struct Bench {
  explicit Bench(benchmark::State& benchmark_state)
      : state(benchmark_state),
        windows(static_cast<int>(state.range(1))),
        cpu(tune::CreateCpuOps(static_cast<int>(state.range(0)), cpu::BestIsa(),
                               state.range(2) != 0 ? TileType::kBFloat16 : TileType::kFloat32)),
        ops(cpu.get()) {
    for (int role = 0; role < kNumLinearRoles; ++role) {
      const LinearShape shape = ShapeOf(spec, static_cast<LinearRole>(role));
      params.linears[role] =
          Random(static_cast<int64_t>(shape.rows) * shape.cols, 1.0f / std::sqrt(shape.cols));
    }
    params.input_norm = Random(spec.hidden_size, 1.0f);
    params.post_attention_norm = Random(spec.hidden_size, 1.0f);
    norms.input_norm = Random(spec.hidden_size, 0.0f);
    norms.post_attention_norm = Random(spec.hidden_size, 0.0f);
  }

  float* Random(int64_t size, float deviation) {
    std::normal_distribution<float> normal(0.0f, deviation);
    std::vector<float> values(size);
    for (float& x : values) x = deviation == 0.0f ? 0.0f : normal(engine);
    arrays.push_back(tune::DeviceArray<float>::Upload(&ops, values).value());
    return arrays.back().data();
  }

  int rows() const { return windows * kContext; }
  int64_t floats() const { return static_cast<int64_t>(rows()) * spec.hidden_size; }

  void Report(int64_t tokens_per_iteration) {
    double total = 0.0;
    for (const auto& [name, seconds] : ops.seconds()) total += seconds;
    for (const auto& [name, seconds] : ops.seconds()) state.counters[name] = seconds / total;
    state.SetItemsProcessed(state.iterations() * tokens_per_iteration);
  }

  benchmark::State& state;
  const ModelSpec spec = Spec();
  const int windows;
  const std::unique_ptr<tune::Ops> cpu;
  testing::ClockedOps ops;
  std::mt19937 engine{1};
  std::deque<tune::DeviceArray<float>> arrays;
  tune::LayerParams params;
  tune::NormGradients norms;
};

void LayerForward(benchmark::State& state) {
  Bench bench(state);
  const auto tape =
      tune::LayerTape::Create(bench.spec, &bench.ops, bench.windows, kContext).value();
  float* hidden = bench.Random(bench.floats(), 1.0f);
  bench.ops.Reset();
  for (auto _ : state) tape->Forward(bench.params, hidden);
  bench.Report(bench.rows());
}

// With the forward pass that it runs again.
void LayerBackward(benchmark::State& state) {
  Bench bench(state);
  const auto tape =
      tune::LayerTape::Create(bench.spec, &bench.ops, bench.windows, kContext).value();
  const float* input = bench.Random(bench.floats(), 1.0f);
  float* d_hidden = bench.Random(bench.floats(), 1e-3f);
  DropGradients sink;
  bench.ops.Reset();
  for (auto _ : state) tape->Backward(bench.params, input, d_hidden, bench.norms, &sink);
  bench.Report(bench.rows());
}

void Loss(benchmark::State& state) {
  Bench bench(state);
  const auto loss = tune::HeadLoss::Create(bench.spec, &bench.ops, kHeadRows).value();
  const float* teacher = bench.Random(bench.floats(), 1.0f);
  const float* student = bench.Random(bench.floats(), 1.0f);
  float* d_hidden = bench.Random(bench.floats(), 0.0f);
  const int64_t head_size = static_cast<int64_t>(bench.spec.vocab_size) * bench.spec.hidden_size;
  const tune::HeadParams head = {bench.Random(bench.spec.hidden_size, 1.0f),
                                 bench.Random(head_size, 0.05f)};
  float* d_norm = bench.Random(bench.spec.hidden_size, 0.0f);
  tune::LossSums sums;
  bench.ops.Reset();
  for (auto _ : state) {
    loss->Run(head, teacher, head, student, bench.rows(), 1e-3f, &sums, d_hidden, d_norm);
  }
  bench.Report(bench.rows());
}

void Shapes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"threads", "windows", "bfloat16"})->UseRealTime()->Unit(benchmark::kMillisecond);
  for (const int threads : {1, 2}) {
    bench->Args({threads, 2, 0});
    if (HasBFloat16Products()) bench->Args({threads, 2, 1});
  }
}

BENCHMARK(LayerForward)->Apply(Shapes);
BENCHMARK(LayerBackward)->Apply(Shapes);
BENCHMARK(Loss)->Apply(Shapes);

}  // namespace
}  // namespace fewbit

BENCHMARK_MAIN();
