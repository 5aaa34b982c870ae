// What holds for the decoder on any model: results depend on a token's own sequence only, packed
// weights mean what they say, and the layer by layer way gives what the whole gives.
#include "runtime/models/decoder.h"

#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/model_runner.h"
#include "tests/runtime/random_model.h"

namespace fewbit {
namespace {

using ::testing::ElementsAre;
using testing::ModelRunner;
using testing::OwnedModel;
using testing::PackedModel;
using testing::RandomModel;
using testing::SmallSpec;

std::vector<int32_t> Prompt(int length, int seed) {
  std::vector<int32_t> out;
  for (int i = 0; i < length; ++i) out.push_back((seed * 31 + i * 17 + i * i * 3) % 128);
  return out;
}

// Logits of every token of a prompt, `chunk` tokens at a time.
std::vector<float> LogitsOf(const Model& model, const std::vector<int32_t>& prompt, int chunk,
                            const ModelRunner::Options& options = {}) {
  ModelRunner runner(model, options);
  const int i = runner.Add(prompt);
  while (runner.sequence(i).computed < static_cast<int>(prompt.size())) runner.Step({{i, chunk}});
  return runner.sequence(i).logits;
}

ModelSpec Spec(const std::string& name) {
  ModelSpec spec = SmallSpec();
  if (name == "heads_of_20") {
    spec.head_dim = 20;
    spec.rope.rotary_dim = 20;
    spec.num_heads = 6;
  } else if (name == "window") {
    spec.sliding_window = 21;
  } else if (name == "bias_partial_interleaved") {
    spec.qkv_bias = true;
    spec.rope.rotary_dim = 8;
    spec.rope.interleaved = true;
  } else if (name == "norms_one_kv_head") {
    spec.qk_norm = true;
    spec.num_heads = 8;
    spec.num_kv_heads = 1;
  } else if (name == "llama3_scaling") {
    spec.rope.scaling = RopeScaling::kLlama3;
    spec.rope.factor = 8.0;
    spec.rope.original_max_positions = 64;
  } else if (name == "odd_ffn_and_vocab") {
    spec.ffn_size = 90;
    spec.vocab_size = 131;
  }
  return spec;
}

class AnySpec : public ::testing::TestWithParam<const char*> {};

TEST_P(AnySpec, ChunksThreadsAndNeighboursDoNotMatter) {
  const auto owned = RandomModel(Spec(GetParam()), 1);
  const std::vector<int32_t> prompt = Prompt(90, 1);
  const std::vector<float> whole = LogitsOf(owned->model, prompt, 90);
  for (const int threads : {1, 2, 3, 5}) {
    for (const int chunk : {1, 2, 7, 16, 64}) {
      ModelRunner::Options options;
      options.threads = threads;
      EXPECT_EQ(LogitsOf(owned->model, prompt, chunk, options), whole)
          << threads << " threads, chunks of " << chunk;
    }
  }
  ModelRunner runner(owned->model);
  const int i = runner.Add(prompt), a = runner.Add(Prompt(70, 2)), b = runner.Add(Prompt(50, 3));
  runner.Step({{a, 33}, {i, 20}});
  runner.Step({{b, 1}, {i, 1}, {a, 1}});
  runner.Step({{i, 40}, {a, 36}, {b, 48}});
  runner.Step({{b, 1}, {i, 90}});
  EXPECT_EQ(runner.sequence(i).logits, whole);
}

TEST_P(AnySpec, RowsNobodyWantsDoNotMatter) {
  const auto owned = RandomModel(Spec(GetParam()), 2);
  const size_t v = owned->model.spec.vocab_size;
  const std::vector<int32_t> prompt = Prompt(60, 4);
  const std::vector<float> whole = LogitsOf(owned->model, prompt, 60);
  const auto row = [&](int t) {
    return std::vector<float>(whole.begin() + t * v, whole.begin() + (t + 1) * v);
  };
  ModelRunner runner(owned->model);
  const int i = runner.Add(prompt), other = runner.Add(Prompt(70, 5));
  // The last row of each chunk, of one or of several sequences, in steps of 2, 16 and 40 tokens.
  std::vector<float> want;
  int at = 0;
  for (const int chunk : {2, 16, 1, 1, 40}) {
    if (chunk == 16) {
      runner.Step({{other, 33}, {i, chunk}}, true);
    } else {
      runner.Step({{i, chunk}}, true);
    }
    at += chunk;
    const std::vector<float> last = row(at - 1);
    want.insert(want.end(), last.begin(), last.end());
  }
  EXPECT_EQ(runner.sequence(i).logits, want);
}

TEST_P(AnySpec, LayerByLayerIsTheSame) {
  const auto owned = RandomModel(Spec(GetParam()), 3);
  const Model& model = owned->model;
  const ModelSpec& spec = model.spec;
  const std::vector<int32_t> q_start = {0, 33, 34, 90};
  std::vector<float> want;
  std::vector<TokenId> ids;
  for (int s = 0; s < 3; ++s) {
    const std::vector<int32_t> prompt = Prompt(q_start[s + 1] - q_start[s], s);
    for (const int32_t id : prompt) ids.push_back(TokenId(id));
    const std::vector<float> logits = LogitsOf(model, prompt, 1000);
    want.insert(want.end(), logits.begin(), logits.end());
  }
  for (const int threads : {1, 3}) {
    ThreadTeam team(threads);
    std::vector<float> hidden(ids.size() * spec.hidden_size), logits(want.size());
    EmbedTokens(model.embedding, ids, hidden.data());
    LayerByLayer runner(spec, &team, cpu::BestIsa());
    for (const LayerWeights& w : model.layers) runner.Run(w, q_start, hidden.data(), nullptr);
    ComputeLogits(spec, model.final_norm, model.head, hidden.data(), static_cast<int>(ids.size()),
                  &team, cpu::BestIsa(), logits.data());
    EXPECT_EQ(logits, want) << threads;
  }
}

INSTANTIATE_TEST_SUITE_P(Specs, AnySpec,
                         ::testing::Values("plain", "heads_of_20", "window",
                                           "bias_partial_interleaved", "norms_one_kv_head",
                                           "llama3_scaling", "odd_ffn_and_vocab"),
                         [](const auto& info) { return std::string(info.param); });

// A window that ends a sequence's view must change the logits beyond it and none before.
TEST(Decoder, WindowStartsToMatterAtItsLength) {
  ModelSpec spec = SmallSpec();
  auto full = RandomModel(spec, 4);
  const std::vector<int32_t> prompt = Prompt(40, 1);
  const std::vector<float> want = LogitsOf(full->model, prompt, 40);
  full->model.spec.sliding_window = 25;
  const std::vector<float> got = LogitsOf(full->model, prompt, 40);
  const size_t v = spec.vocab_size;
  EXPECT_TRUE(std::equal(got.begin(), got.begin() + 25 * v, want.begin()));
  EXPECT_FALSE(std::equal(got.begin() + 25 * v, got.begin() + 26 * v, want.begin() + 25 * v));
}

double RelativeError(const std::vector<float>& got, const std::vector<float>& want) {
  double error = 0.0, power = 0.0;
  for (size_t i = 0; i < want.size(); ++i) {
    error += (got[i] - want[i]) * (got[i] - want[i]);
    power += want[i] * want[i];
  }
  return std::sqrt(error / power);
}

// Packed weights against their own dequantized values: all that differs is the 8-bit staging of
// activations.
TEST(Decoder, PackedWeightsMatchTheirDequantizedTwin) {
  const std::string directory = std::string(FEWBIT_SOURCE_DIR) + "/tests/golden/llama3";
  const auto source = LoadModel(directory);
  ASSERT_TRUE(source.ok()) << source.status();
  const auto packed = PackedModel(**source, false);
  const auto dense = PackedModel(**source, true);
  const std::vector<int32_t> prompt = Prompt(80, 6);
  const std::vector<float> want = LogitsOf(dense->model, prompt, 80);
  const std::vector<float> got = LogitsOf(packed->model, prompt, 80);
  EXPECT_LT(RelativeError(got, want), 0.03);
  EXPECT_GT(RelativeError(got, want), 0.0);  // else the packed path did not run
  // The rounding itself is far larger, so the bound above means something.
  EXPECT_GT(RelativeError(LogitsOf(**source, prompt, 80), want), 0.06);
}

TEST(Decoder, PackedWeightsGiveTheSameBitsHoweverTheyAreRun) {
  const auto source = RandomModel(SmallSpec(), 7);
  const auto packed = PackedModel(source->model, false);
  // An 8-bit head, so that no dense matrix product is left.
  std::vector<uint8_t> codes(128 * 64);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(1 + i * 7919 % 255);
  const std::vector<float> scales(128, 0.01f);
  packed->model.head = Int8Matrix{codes.data(), scales.data(), 128, 64};
  const std::vector<int32_t> prompt = Prompt(90, 1);
  const std::vector<float> whole = LogitsOf(packed->model, prompt, 90);
  for (const cpu::Isa isa : {cpu::Isa::kPortable, cpu::Isa::kAvx2, cpu::Isa::kAvx512}) {
    if (!cpu::IsaSupported(isa)) continue;
    for (const int chunk : {1, 2, 7, 90}) {
      ModelRunner::Options options;
      options.isa = isa;
      options.threads = 3;
      EXPECT_EQ(LogitsOf(packed->model, prompt, chunk, options), whole)
          << cpu::IsaName(isa) << ", chunks of " << chunk;
    }
  }
}

class Recorder : public LinearInputObserver {
 public:
  struct Input {
    LinearRole role;
    int tokens, cols;
    std::vector<float> x;
  };
  void OnInput(LinearRole role, const float* x, int tokens, int cols) override {
    inputs.push_back({role, tokens, cols, std::vector<float>(x, x + tokens * cols)});
  }
  std::vector<Input> inputs;
};

std::vector<double> Multiply(const Matrix& w, const std::vector<float>& x, int tokens) {
  const int rows = MatrixRows(w), cols = MatrixCols(w);
  const float* data = static_cast<const float*>(std::get<DenseMatrix>(w).data);
  std::vector<double> y(static_cast<size_t>(tokens) * rows, 0.0);
  for (int t = 0; t < tokens; ++t) {
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < cols; ++c) {
        y[t * rows + r] += static_cast<double>(x[t * cols + c]) * data[r * cols + c];
      }
    }
  }
  return y;
}

// The observer must see exactly what the linear layers saw: redo them from its records.
TEST(LayerByLayer, ObserverSeesTheInputsOfTheLinearLayers) {
  const auto owned = RandomModel(SmallSpec(), 8);
  const ModelSpec& spec = owned->model.spec;
  const LayerWeights& w = owned->model.layers[0];
  const int tokens = 12, e = spec.hidden_size;
  std::vector<float> hidden(tokens * e);
  for (size_t i = 0; i < hidden.size(); ++i) hidden[i] = std::sin(static_cast<float>(i));
  const std::vector<float> before = hidden;
  ThreadTeam team(2);
  Recorder recorder;
  LayerByLayer(spec, &team, cpu::BestIsa())
      .Run(w, std::vector<int32_t>{0, 5, 12}, hidden.data(), &recorder);
  ASSERT_EQ(recorder.inputs.size(), 4u);
  std::vector<LinearRole> roles;
  for (const auto& input : recorder.inputs) {
    roles.push_back(input.role);
    EXPECT_EQ(input.tokens, tokens);
  }
  EXPECT_THAT(roles,
              ElementsAre(LinearRole::kQ, LinearRole::kO, LinearRole::kGate, LinearRole::kDown));
  const auto& q = recorder.inputs[0];
  ASSERT_EQ(q.cols, e);
  for (int t = 0; t < tokens; ++t) {
    double squares = 0.0;
    for (int i = 0; i < e; ++i) squares += before[t * e + i] * before[t * e + i];
    for (int i = 0; i < e; ++i) {
      EXPECT_NEAR(q.x[t * e + i],
                  before[t * e + i] / std::sqrt(squares / e + spec.rms_eps) * w.input_norm[i],
                  1e-5);
    }
  }
  const auto& gate = recorder.inputs[2];
  const auto& down = recorder.inputs[3];
  const auto gates = Multiply(w[LinearRole::kGate], gate.x, tokens);
  const auto ups = Multiply(w[LinearRole::kUp], gate.x, tokens);
  ASSERT_EQ(down.cols, spec.ffn_size);
  for (size_t i = 0; i < gates.size(); ++i) {
    EXPECT_NEAR(down.x[i], gates[i] / (1.0 + std::exp(-gates[i])) * ups[i], 1e-4);
  }
  const auto attention = Multiply(w[LinearRole::kO], recorder.inputs[1].x, tokens);
  const auto mlp = Multiply(w[LinearRole::kDown], down.x, tokens);
  for (size_t i = 0; i < hidden.size(); ++i) {
    EXPECT_NEAR(hidden[i], before[i] + attention[i] + mlp[i], 1e-4);
  }
}

}  // namespace
}  // namespace fewbit
