#include "tests/bench/cuda/tune.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <optional>
#include <random>
#include <sstream>
#include <utility>

#include "kernels/quant_pack.h"
#include "runtime/cuda/tune_ops.h"
#include "runtime/tune/trainer.h"
#include "tests/bench/clocked_ops.h"
#include "tests/bench/cuda/machine.h"
#include "tests/bench/cuda/random_model.h"
#include "tests/kernels/random_matrix.h"

namespace fewbit::bench {
namespace {

constexpr float kWeightRms = 0.02f;

// Memory of a pair of models of one shape, all of whose layers are the same.
class RandomPair {
 public:
  RandomPair(const ModelSpec& spec, const WeightMix& mix) {
    LayerWeights layer, packed_layer;
    for (int r = 0; r < kNumLinearRoles; ++r) {
      const fewbit::LinearShape shape = ShapeOf(spec, static_cast<LinearRole>(r));
      layer.linears[r] = Dense(shape.rows, shape.cols);
      const testing::PackedOptions options = {.rows = shape.rows,
                                              .cols = shape.cols,
                                              .share4 = mix.share4,
                                              .zero_points = mix.zero_points,
                                              .outlier_share = mix.outlier_share};
      packed_.push_back(quant::Pack(testing::RandomUnpacked(options, &rng_)));
      packed_layer.linears[r] = packed_.back().view();
    }
    for (LayerWeights* l : {&layer, &packed_layer}) {
      l->input_norm = l->post_attention_norm = std::vector<float>(spec.hidden_size, 1.0f);
      if (spec.qkv_bias) {
        l->q_bias = std::vector<float>(spec.q_size(), 0.01f);
        l->k_bias = l->v_bias = std::vector<float>(spec.kv_size(), 0.01f);
      }
      if (spec.qk_norm) l->q_norm = l->k_norm = std::vector<float>(spec.head_dim, 1.0f);
    }
    const Matrix ends = Dense(spec.vocab_size, spec.hidden_size);
    const std::vector<float> final_norm(spec.hidden_size, 1.0f);
    original = {spec, ends, ends, final_norm, [layer](int) { return layer; }};
    quantized = {spec, ends, ends, final_norm, [packed_layer](int) { return packed_layer; }};
  }

  tune::ModelSource original, quantized;

 private:
  // bf16; repeats a few million normal values.
  DenseMatrix Dense(int rows, int cols) {
    std::normal_distribution<float> normal(0.0f, kWeightRms);
    const size_t count = static_cast<size_t>(rows) * cols;
    constexpr size_t kDifferent = 4000037;
    std::vector<uint16_t> values(count);
    for (size_t i = 0; i < count; ++i) {
      values[i] = i < kDifferent
                      ? static_cast<uint16_t>(std::bit_cast<uint32_t>(normal(rng_)) >> 16)
                      : values[i - kDifferent];
    }
    dense_.push_back(std::move(values));
    return {dense_.back().data(), DType::kBF16, rows, cols};
  }

  std::mt19937 rng_{1};
  std::deque<std::vector<uint16_t>> dense_;
  std::deque<quant::PackedStorage> packed_;
};

absl::StatusOr<tune::TuningText> RandomText(const ModelSpec& spec, int windows, int context,
                                            std::vector<TokenId>* ids) {
  std::mt19937 rng(2);
  ids->clear();
  for (int64_t i = 0; i < int64_t{4} * windows * context + 4 * context; ++i) {
    ids->push_back(TokenId{static_cast<int32_t>(rng() % spec.vocab_size)});
  }
  return tune::TuningText::Create(
      *ids, {}, {.context = context, .held_out = windows, .vocab_size = spec.vocab_size});
}

tune::StepRates RatesOf(int step) {
  tune::StepRates rates;
  for (double& rate : rates.of) rate = 1e-3;
  rates.step = step;
  return rates;
}

absl::Status Measure(const TuneBenchOptions& options, const RandomPair& models, int windows,
                     const std::string& factors) {
  const auto created = tune::CreateCudaOps(0, factors == "bf16" ? DType::kBF16 : DType::kF32);
  if (!created.ok()) return created.status();
  tune::Ops* ops = created->get();
  std::vector<TokenId> ids;
  const auto text = RandomText(models.original.spec, windows, options.context, &ids);
  if (!text.ok()) return text.status();
  absl::StatusOr<void*> word = ops->Allocate(sizeof(float));
  if (!word.ok()) return word.status();
  testing::ClockedOps clocked(ops, *word);
  tune::Ops* with = options.profile ? static_cast<tune::Ops*>(&clocked) : ops;
  const auto trainer = tune::Trainer::Create(
      models.original, models.quantized, *text, with,
      {.batch = windows, .context = options.context, .stream = options.low_memory});
  if (!trainer.ok()) return trainer.status();
  if (const auto first = (*trainer)->Step(RatesOf(1)); !first.ok()) return first.status();
  clocked.Reset();
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < options.steps; ++i) {
    if (const auto loss = (*trainer)->Step(RatesOf(i + 2)); !loss.ok()) return loss.status();
  }
  const std::chrono::duration<double, std::milli> total = std::chrono::steady_clock::now() - start;
  const double ms = total.count() / options.steps;
  const double tokens_per_s = 1e3 * windows * options.context / ms;
  const double gib = static_cast<double>(ops->PeakBytes()) / (int64_t{1} << 30);
  if (options.profile) {
    for (const auto& [name, seconds] : clocked.seconds()) {
      std::printf("%-28s %9.2f ms\n", name.c_str(), 1e3 * seconds / options.steps);
    }
  }
  if (options.csv) {
    std::printf("%s,%s,%s,%s,%d,%s,%s,%d,%d,%.1f,%.0f,%.1f\n", GpuName().c_str(), Today().c_str(),
                FEWBIT_COMMIT, options.shape.c_str(), models.original.spec.num_layers,
                factors.c_str(), options.low_memory ? "low" : "all", windows, options.context, ms,
                tokens_per_s, gib);
  } else {
    std::printf(
        "%s, %d layers, %s, %d x %d tokens: %.1f ms a step, %.0f tokens/s, peak %.1f GiB, %d "
        "windows at once\n",
        options.shape.c_str(), models.original.spec.num_layers, factors.c_str(), windows,
        options.context, ms, tokens_per_s, gib, (*trainer)->windows_at_once());
  }
  std::fflush(stdout);
  ops->Free(*word);
  return absl::OkStatus();
}

}  // namespace

bool ParseTune(const std::string& argument, TuneBenchOptions* o) {
  const size_t equals = argument.find('=');
  const std::string name = argument.substr(0, equals);
  const char* value = equals == std::string::npos ? "" : argument.c_str() + equals + 1;
  if (name == "--shape") return o->shape = value, true;
  if (name == "--factors") {
    o->factors.clear();
    std::stringstream list(value);
    for (std::string item; std::getline(list, item, ',');) {
      if (item != "tf32" && item != "bf16") return false;
      o->factors.push_back(item);
    }
    return !o->factors.empty();
  }
  if (name == "--context") return (o->context = std::atoi(value)) > 0;
  if (name == "--steps") return (o->steps = std::atoi(value)) > 0;
  if (name == "--layers") return (o->layers = std::atoi(value)) > 0;
  if (argument == "--low_memory") return o->low_memory = true;
  if (argument == "--csv") return o->csv = true;
  if (argument == "--profile") return o->profile = true;
  return false;
}

int RunTune(const TuneBenchOptions& options) {
  std::optional<ModelSpec> spec = FindModel(options.shape);
  if (!spec) {
    std::fprintf(stderr, "no shape %s; there are %s\n", options.shape.c_str(),
                 KnownModels().c_str());
    return 2;
  }
  if (options.layers > 0) spec->num_layers = std::min(spec->num_layers, options.layers);
  const RandomPair models(*spec, options.mix);
  if (options.csv) {
    std::printf(
        "gpu,date,commit,shape,layers,factors,memory,windows,context,ms_per_step,tokens_per_s,"
        "peak_gib\n");
  }
  for (const int windows : options.windows) {
    for (const std::string& factors : options.factors) {
      const absl::Status status = Measure(options, models, windows, factors);
      if (status.ok()) continue;
      std::fprintf(stderr, "%d windows: %s\n", windows, std::string(status.message()).c_str());
      return 1;
    }
  }
  return 0;
}

}  // namespace fewbit::bench
