// Whole models forward and backward, and the loss, on a real device against the CPU, for what the
// families differ in.
#include <string>

#include "tests/gpu/tune_compare.h"
#include "tests/runtime/random_model.h"
#include "tests/runtime/tape_runner.h"

namespace fewbit::testing {
namespace {

// Factors are rounded to TF32 on the GPU, through two layers and back.
constexpr double kTolerance = 5e-3;

struct Family {
  const char* name;
  int heads, kv_heads, head_dim, rotary_dim, sliding_window;
  bool interleaved, qkv_bias, qk_norm;

  ModelSpec Spec() const {
    ModelSpec spec = SmallSpec();
    spec.hidden_size = 80;
    spec.ffn_size = 112;
    spec.vocab_size = 301;
    spec.num_heads = heads;
    spec.num_kv_heads = kv_heads;
    spec.head_dim = head_dim;
    spec.rope.rotary_dim = rotary_dim;
    spec.rope.interleaved = interleaved;
    spec.sliding_window = sliding_window;
    spec.qkv_bias = qkv_bias;
    spec.qk_norm = qk_norm;
    return spec;
  }
};

constexpr Family kFamilies[] = {
    {"llama", 4, 4, 16, 16, 0, false, false, false},
    {"grouped", 6, 2, 24, 24, 0, false, false, false},
    {"sliding", 4, 2, 16, 16, 7, false, false, false},
    {"bias", 4, 1, 16, 16, 0, false, true, false},
    {"qk_norm", 4, 2, 32, 32, 0, false, false, true},
    {"glm", 4, 2, 16, 8, 0, true, true, false},
};

class TuneGpuModel : public TuneGpu, public ::testing::WithParamInterface<Family> {
 protected:
  static constexpr int kWindows = 3, kContext = 37, kHeadRows = 20;

  static TapeResult RunOn(tune::Ops* ops, const ModelSpec& spec, int64_t score_bytes) {
    const DoubleModel student(RandomModel(spec, 1)->model), teacher(RandomModel(spec, 2)->model);
    std::mt19937 rng(3);
    const auto draw = [&] {
      const auto x = RandomFloats(size_t{kWindows} * kContext * spec.hidden_size, &rng);
      return Doubles(x.begin(), x.end());
    };
    const Doubles hidden = draw(), teacher_hidden = draw();
    TapeRunner runner(student, ops, kWindows, kContext, kHeadRows, score_bytes);
    return runner.Run(hidden, teacher, teacher_hidden, 0.125f);
  }

  static void ExpectClose(const TapeResult& gpu, const TapeResult& cpu) {
    EXPECT_LE(RelativeError(gpu.hidden, cpu.hidden), kTolerance);
    EXPECT_LE(RelativeError(gpu.d_hidden, cpu.d_hidden), kTolerance);
    EXPECT_NEAR(gpu.sums.kl, cpu.sums.kl, kTolerance * cpu.sums.kl);
    ASSERT_EQ(gpu.gradients.size(), cpu.gradients.size());
    for (const auto& [name, gradient] : cpu.gradients) {
      const auto found = gpu.gradients.find(name);
      ASSERT_NE(found, gpu.gradients.end()) << name;
      EXPECT_LE(RelativeError(found->second, gradient), kTolerance) << name;
    }
  }
};

TEST_P(TuneGpuModel, AsOnTheCpu) {
  const ModelSpec spec = GetParam().Spec();
  const int64_t all = tune::LayerTape::kScoreBytes;
  const TapeResult cpu = RunOn(cpu_.get(), spec, all);
  const TapeResult gpu = RunOn(gpu_.get(), spec, all);
  ExpectClose(gpu, cpu);
  // Attention window by window.
  ExpectClose(RunOn(gpu_.get(), spec, 1), cpu);

  const TapeResult again = RunOn(gpu_.get(), spec, all);
  EXPECT_TRUE(SameBits(gpu.hidden, again.hidden));
  EXPECT_TRUE(SameBits(gpu.d_hidden, again.d_hidden));
  EXPECT_EQ(gpu.sums.kl, again.sums.kl);
  for (const auto& [name, gradient] : gpu.gradients) {
    EXPECT_TRUE(SameBits(gradient, again.gradients.at(name))) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Families, TuneGpuModel, ::testing::ValuesIn(kFamilies),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace fewbit::testing
