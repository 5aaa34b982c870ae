#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "kernels/cpu/linear.h"
#include "runtime/models/decoder.h"
#include "runtime/products/dense_linear.h"
#include "runtime/quantize/bit_allocation.h"
#include "runtime/quantize/bit_plan.h"
#include "runtime/quantize/calibration.h"
#include "runtime/quantize/drift_product.h"
#include "runtime/quantize/scratch_floats.h"
#include "runtime/quantize/sensitivity_probe.h"
#include "runtime/thread_team.h"
#include "tests/runtime/checkpoint_files.h"

namespace fewbit {
namespace {

using Choices = std::vector<std::vector<StorageChoice>>;

double LossOf(const Choices& choices, const std::vector<int>& chosen) {
  double loss = 0.0;
  for (size_t m = 0; m < choices.size(); ++m) loss += choices[m][chosen[m]].loss;
  return loss;
}

int64_t BytesOf(const Choices& choices, const std::vector<int>& chosen) {
  int64_t bytes = 0;
  for (size_t m = 0; m < choices.size(); ++m) bytes += choices[m][chosen[m]].bytes;
  return bytes;
}

// The least loss of all combinations within the budget.
double BestLoss(const Choices& choices, int64_t budget) {
  std::vector<int> chosen(choices.size(), 0);
  double best = std::numeric_limits<double>::infinity();
  while (true) {
    if (BytesOf(choices, chosen) <= budget) best = std::min(best, LossOf(choices, chosen));
    size_t m = 0;
    while (m < choices.size() && ++chosen[m] == static_cast<int>(choices[m].size())) {
      chosen[m++] = 0;
    }
    if (m == choices.size()) return best;
  }
}

TEST(ShareBytesTest, TakesTheSteepestStepsFirst) {
  const Choices choices = {{{0, 10, 5.0}, {8, 20, 1.0}}, {{0, 10, 3.0}, {8, 20, 2.0}}};
  EXPECT_EQ(ShareBytes(choices, 20), (std::vector<int>{0, 0}));
  EXPECT_EQ(ShareBytes(choices, 30), (std::vector<int>{1, 0}));
  EXPECT_EQ(ShareBytes(choices, 39), (std::vector<int>{1, 0}));
  EXPECT_EQ(ShareBytes(choices, 40), (std::vector<int>{1, 1}));
  EXPECT_EQ(ShareBytes(choices, 5), (std::vector<int>{0, 0}));  // nothing smaller exists
}

TEST(ShareBytesTest, SkipsChoicesAboveTheHull) {
  // The middle choice gains little; the whole way gains more per byte.
  const Choices choices = {{{0, 10, 10.0}, {4, 20, 9.0}, {8, 30, 0.0}}};
  EXPECT_EQ(ShareBytes(choices, 30), (std::vector<int>{2}));
  EXPECT_EQ(ShareBytes(choices, 25), (std::vector<int>{1}));
}

TEST(ShareBytesTest, NeverPaysForMoreLoss) {
  const Choices choices = {{{0, 10, 1.0}, {8, 20, 1.0}, {16, 30, 2.0}}};
  EXPECT_EQ(ShareBytes(choices, 100), (std::vector<int>{0}));
}

TEST(ShareBytesTest, IsCloseToTheBestOfAllCombinations) {
  std::mt19937 random(3);
  std::uniform_real_distribution<double> uniform(0.0, 1.0);
  for (int round = 0; round < 50; ++round) {
    Choices choices(6);
    int64_t smallest = 0, largest = 0;
    for (auto& of_matrix : choices) {
      const double scale = uniform(random) * 10;
      const int64_t step = 1 + static_cast<int64_t>(uniform(random) * 20);
      for (int i = 0; i < 4; ++i) of_matrix.push_back({i, step * (i + 2), scale * (3 - i)});
      smallest += of_matrix.front().bytes;
      largest += of_matrix.back().bytes;
    }
    const int64_t budget =
        smallest + static_cast<int64_t>(uniform(random) * static_cast<double>(largest - smallest));
    const std::vector<int> chosen = ShareBytes(choices, budget);
    ASSERT_LE(BytesOf(choices, chosen), budget);
    const double none = LossOf(choices, std::vector<int>(choices.size(), 0));
    const double best = BestLoss(choices, budget);
    EXPECT_GE(none - LossOf(choices, chosen), 0.8 * (none - best)) << round;
  }
}

TEST(SizeProbeTest, BoundsMemoryAndPasses) {
  // A small model: everything at once.
  ProbeSize size = SizeProbe(8, 512 * 512 * 4, 8);
  EXPECT_EQ(size.windows, 8);
  EXPECT_EQ(size.layers_per_pass, 8);
  // Llama-2-70B: fewer windows first, then passes.
  const int64_t window = int64_t{512} * 8192 * 4;
  size = SizeProbe(80, window, 8);
  EXPECT_EQ(size.windows, 1);
  EXPECT_GE(size.layers_per_pass, 1);
  EXPECT_LE(size.layers_per_pass * kNumLinearRoles * window, kProbeBytes);
  // Beyond any bound one layer at a time is still possible.
  EXPECT_EQ(SizeProbe(100, kProbeBytes, 4).layers_per_pass, 1);
}

TEST(ScratchFloatsTest, KeepWhatIsReleased) {
  const TempDirectory directory;
  constexpr size_t kCount = 10000;
  auto scratch = ScratchFloats::InDirectory(directory.path(), kCount);
  ASSERT_TRUE(scratch.ok()) << scratch.status();
  EXPECT_TRUE(std::filesystem::is_empty(directory.path())) << "it has no name";
  auto like = ScratchFloats::Like(*scratch);
  ASSERT_TRUE(like.ok()) << like.status();
  for (ScratchFloats* floats : {&*scratch, &*like}) {
    ASSERT_EQ(floats->size(), kCount);
    for (size_t i = 0; i < kCount; ++i) {
      ASSERT_EQ(floats->values()[i], 0.0f);
      floats->values()[i] = static_cast<float>(i);
    }
    for (const auto& [begin, count] :
         {std::pair<size_t, size_t>{0, kCount}, {5, 3}, {1024, 5000}}) {
      floats->Release(begin, count);
    }
    for (size_t i = 0; i < kCount; ++i) ASSERT_EQ(floats->values()[i], static_cast<float>(i));
  }
  ScratchFloats memory = ScratchFloats::InMemory(kCount);
  std::ranges::fill(memory.values(), 1.0f);
  memory.Release(0, kCount);
  memory.Drop(2048, 4096);  // whole pages of 1024
  for (size_t i = 0; i < kCount; ++i) {
    ASSERT_EQ(memory.values()[i], i < 2048 || i >= 2048 + 4096 ? 1.0f : 0.0f) << i;
  }
  ScratchFloats moved = *std::move(scratch);
  EXPECT_EQ(moved.values()[77], 77.0f);
  EXPECT_FALSE(ScratchFloats::InDirectory(directory / "absent", 1).ok());
  EXPECT_EQ(ScratchFloats::InDirectory(directory.path(), size_t{1} << 60).ok(), false);
}

class SensitivityProbeTest : public ::testing::Test {
 protected:
  SensitivityProbeTest()
      : model_(*LoadModel(GoldenDirectory("llama2"))),
        team_(2),
        products_(&team_),
        linear_(&products_, cpu::BestIsa()),
        probe_(model_->spec, model_->embedding, Windows(), &products_, cpu::BestIsa(),
               ScratchFloats::InMemory(Windows().tokens.size() * model_->spec.hidden_size)) {}

  static CalibrationWindows Windows() {
    CalibrationWindows windows;
    windows.context = 16;
    for (int i = 0; i < 48; ++i) windows.tokens.push_back(TokenId{1 + 37 * i % 300});
    return windows;
  }

  // Layer 0 with one matrix times `factor`.
  LayerWeights Scaled(float factor, LinearRole role = LinearRole::kDown) {
    const LayerWeights& original = model_->layers[0];
    const Matrix& matrix = original[role];
    dense_.emplace_back(static_cast<size_t>(MatrixRows(matrix)) * MatrixCols(matrix));
    for (int r = 0; r < MatrixRows(matrix); ++r) {
      cpu::DequantizeRow(matrix, r,
                         dense_.back().data() + static_cast<size_t>(r) * MatrixCols(matrix));
    }
    for (float& w : dense_.back()) w *= factor;
    LayerWeights altered = original;
    altered[role] = DenseMatrix{.data = dense_.back().data(),
                                .dtype = DType::kF32,
                                .rows = MatrixRows(matrix),
                                .cols = MatrixCols(matrix)};
    return altered;
  }

  std::vector<double> Finish() {
    for (const LayerWeights& layer : model_->layers) probe_.Advance(layer);
    return probe_.Divergences(model_->final_norm, model_->head);
  }

  std::unique_ptr<Model> model_;
  ThreadTeam team_;
  TeamProducts products_;
  DenseLinear linear_;
  std::vector<std::vector<float>> dense_;
  SensitivityProbe probe_;
};

TEST_F(SensitivityProbeTest, DivergenceGrowsWithTheChange) {
  for (const float factor : {1.0f, 1.1f, 1.5f}) ASSERT_TRUE(probe_.Branch(Scaled(factor)).ok());
  const std::vector<double> divergences = Finish();
  ASSERT_EQ(divergences.size(), 3u);
  EXPECT_NEAR(divergences[0], 0.0, 1e-6);
  EXPECT_GT(divergences[1], 1e-6);
  EXPECT_GT(divergences[2], 4.0 * divergences[1]);
}

TEST_F(SensitivityProbeTest, AMarkedPlaceGivesTheSameAgain) {
  ASSERT_TRUE(probe_.Mark().ok());
  ASSERT_TRUE(probe_.Branch(Scaled(1.5f)).ok());
  const std::vector<double> first = Finish();
  probe_.ReturnToMark();
  ASSERT_TRUE(probe_.Branch(Scaled(1.5f)).ok());
  EXPECT_EQ(Finish(), first);
}

// The inputs of one role.
class InputRecorder : public LinearInputObserver {
 public:
  explicit InputRecorder(LinearRole role) : role_(role) {}
  void OnInput(LinearRole role, const float* x, int tokens, int cols) override {
    if (role != role_) return;
    cols_ = cols;
    inputs_.insert(inputs_.end(), x, x + static_cast<size_t>(tokens) * cols);
  }
  int cols() const { return cols_; }
  int tokens() const { return static_cast<int>(inputs_.size()) / cols_; }
  float at(int token, int channel) const {
    return inputs_[static_cast<size_t>(token) * cols_ + channel];
  }

 private:
  const LinearRole role_;
  int cols_ = 0;
  std::vector<float> inputs_;
};

// Of what two models make of the same text: inputs x and z of down_proj in layer 1, whose layer 0
// differs.
class DriftTest : public SensitivityProbeTest {
 protected:
  DriftTest() : altered_(Scaled(1.5f)) {
    for (InputRecorder* recorder : {&seen_, &original_}) {
      const CalibrationWindows windows = Windows();
      std::vector<float> hidden(windows.tokens.size() * model_->spec.hidden_size);
      EmbedTokens(model_->embedding, windows.tokens, hidden.data());
      LayerByLayer runner(model_->spec, &team_, cpu::BestIsa(), &linear_);
      RunWindows(model_->spec, recorder == &seen_ ? altered_ : model_->layers[0], windows.context,
                 hidden, &runner, nullptr);
      RunWindows(model_->spec, model_->layers[1], windows.context, hidden, &runner, recorder);
    }
  }

  // What is multiplied is bfloat16 where the processor has such products.
  static float Rounded(float value) {
    if (!HasBFloat16Products()) return value;
    const auto bits = std::bit_cast<uint32_t>(value);
    return std::bit_cast<float>((bits + 0x7FFFu + (bits >> 16 & 1u)) & 0xFFFF0000u);
  }
  float Input(int token, int channel) const { return Rounded(seen_.at(token, channel)); }
  float Difference(int token, int channel) const {
    return Rounded(original_.at(token, channel) - seen_.at(token, channel));
  }
  // A Calibration behind the altered layer.
  std::unique_ptr<Calibration> Behind() {
    auto calibration = std::make_unique<Calibration>(model_->spec, model_->embedding, Windows(),
                                                     &products_, cpu::BestIsa(), true);
    EXPECT_TRUE(calibration->AdvanceOriginal(model_->layers[0], nullptr).ok());
    EXPECT_TRUE(calibration->Advance(altered_, nullptr).ok());
    return calibration;
  }

  const LayerWeights altered_;
  InputRecorder seen_{LinearRole::kDown}, original_{LinearRole::kDown};
};

// Whether numbers that expected(i, j) counts out are in `values` at i * stride + j, relative to the
// largest.
template <typename Fn>
void ExpectClose(std::span<const float> values, int rows, int cols, int stride,
                 const Fn& expected) {
  double largest = 0.0, worst = 0.0;
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < cols; ++j) {
      const double wanted = expected(i, j);
      largest = std::max(largest, std::abs(wanted));
      worst = std::max(worst, std::abs(wanted - values[static_cast<size_t>(i) * stride + j]));
    }
  }
  EXPECT_GT(largest, 0.0);
  EXPECT_LT(worst, 1e-4 * largest);
}

TEST_F(DriftTest, IsTheMeanOfWhatTheInputsMissTimesThemselves) {
  Calibration start(model_->spec, model_->embedding, Windows(), &products_, cpu::BestIsa(), true);
  ASSERT_TRUE(start.Observe(model_->layers[0], true, Calibration::Then::kStay, nullptr).ok());
  for (const float value : start.hessian(LinearRole::kDown)->drift.values()) {
    ASSERT_EQ(value, 0.0f);
  }
  const auto calibration = Behind();
  ASSERT_TRUE(
      calibration->Observe(model_->layers[1], true, Calibration::Then::kStay, nullptr).ok());
  const Hessian& hessian = *calibration->hessian(LinearRole::kDown);
  const int cols = seen_.cols(), tokens = seen_.tokens();
  const auto mean = [&](const auto& of_token) {
    double sum = 0.0;
    for (int t = 0; t < tokens; ++t) sum += of_token(t);
    return sum / tokens;
  };
  ASSERT_EQ(hessian.drift.size(), static_cast<size_t>(cols) * cols);
  ExpectClose(hessian.drift.values(), cols, cols, cols, [&](int i, int j) {
    return mean([&](int t) { return static_cast<double>(Input(t, i)) * Difference(t, j); });
  });
  ASSERT_EQ(hessian.matrix.size(), cols);
  std::vector<float> matrix;
  for (int i = 0; i < cols; ++i) {
    for (int j = 0; j < cols; ++j) matrix.push_back(hessian.matrix.at(i, j));
  }
  ExpectClose(matrix, cols, cols, cols, [&](int i, int j) {
    return mean([&](int t) { return static_cast<double>(Input(t, i)) * Input(t, j); });
  });
}

// For a matrix with fewer rows than columns the drift is never made, only what it would do.
TEST_F(DriftTest, MissesAreTheMatrixTimesTheDrift) {
  const LayerWeights& layer = model_->layers[1];
  const auto calibration = Behind();
  ASSERT_TRUE(calibration->ObserveInput(LinearRole::kDown, layer, layer, nullptr, nullptr).ok());
  const Hessian& hessian = *calibration->hessian(LinearRole::kDown);
  EXPECT_TRUE(hessian.drift.empty());
  const Matrix& down = layer[LinearRole::kDown];
  const int rows = MatrixRows(down), cols = MatrixCols(down), panel_rows = PanelRows(cols);
  ASSERT_LT(rows, cols);
  ScratchFloats drift = ScratchFloats::InMemory(static_cast<size_t>(cols) * cols);
  for (int i = 0; i < cols; ++i) {
    for (int j = 0; j < cols; ++j) {
      double sum = 0.0;
      for (int t = 0; t < seen_.tokens(); ++t) {
        sum += static_cast<double>(Input(t, i)) * Difference(t, j);
      }
      drift.values()[static_cast<size_t>(i) * cols + j] = static_cast<float>(sum / seen_.tokens());
    }
  }
  std::vector<float> weights(static_cast<size_t>(rows) * cols);
  for (int r = 0; r < rows; ++r) {
    cpu::DequantizeRow(down, r, weights.data() + static_cast<size_t>(r) * cols);
  }
  const ScratchFloats product = DriftProduct(down, false, &drift, &products_);
  ASSERT_EQ(product.size(), hessian.misses.size());
  // Both round twice on their way: to the eighth binary digit, but not together.
  double largest = 0.0, apart = 0.0;
  for (int r = 0; r < rows; ++r) {
    for (int k = 0; k < cols; ++k) {
      double wanted = 0.0;
      for (int j = 0; j < cols; ++j) {
        wanted += static_cast<double>(weights[static_cast<size_t>(r) * cols + j]) *
                  drift.values()[static_cast<size_t>(k) * cols + j];
      }
      const size_t at = (static_cast<size_t>(r / panel_rows) * cols + k) * panel_rows +
                        static_cast<size_t>(r % panel_rows);
      largest = std::max(largest, std::abs(wanted));
      apart = std::max({apart, std::abs(wanted - product.values()[at]),
                        std::abs(wanted - hessian.misses.values()[at])});
    }
  }
  EXPECT_GT(largest, 0.0);
  EXPECT_LT(apart, largest / 256.0);
}

TEST_F(DriftTest, OneInputAtATimeSeesTheMatricesBeforeIt) {
  const LayerWeights& layer = model_->layers[0];
  Calibration at_once(model_->spec, model_->embedding, Windows(), &products_, cpu::BestIsa(), true);
  ASSERT_TRUE(at_once.Observe(layer, true, Calibration::Then::kStay, nullptr).ok());
  Calibration one(model_->spec, model_->embedding, Windows(), &products_, cpu::BestIsa(), true);
  const auto observe = [&](LinearRole role, const LayerWeights& altered) {
    const absl::Status status = one.ObserveInput(role, layer, altered, nullptr, nullptr);
    EXPECT_TRUE(status.ok()) << status;
    return one.hessian(role);
  };
  const auto same = [](const Hessian& a, const Hessian& b) {
    for (int i = 0; i < a.matrix.size(); ++i) {
      if (!std::equal(a.matrix.row(i), a.matrix.row(i) + i + 1, b.matrix.row(i))) return false;
    }
    return a.matrix.size() == b.matrix.size();
  };
  const auto none = [](const Hessian& hessian) {
    const auto zero = [](float value) { return value == 0.0f; };
    return std::ranges::all_of(hessian.drift.values(), zero) &&
           std::ranges::all_of(hessian.misses.values(), zero);
  };
  std::vector<LinearRole> first;
  for (int r = 0; r < kNumLinearRoles; ++r) {
    const auto role = static_cast<LinearRole>(r);
    if (Calibration::IsFirstWithItsInput(role)) first.push_back(role);
  }
  EXPECT_EQ(first, (std::vector<LinearRole>{LinearRole::kQ, LinearRole::kO, LinearRole::kGate,
                                            LinearRole::kDown}));
  const LayerWeights altered = Scaled(1.5f, LinearRole::kO);
  for (const LinearRole role : first) {
    SCOPED_TRACE(LinearRoleName(role));
    const bool before = role <= LinearRole::kO;  // what it sees does not come through o_proj
    const Hessian& seen = *observe(role, altered);
    EXPECT_EQ(seen.diagonal == at_once.hessian(role)->diagonal, before);
    EXPECT_EQ(same(seen, *at_once.hessian(role)), before);
    EXPECT_EQ(none(seen), before);
  }
  // The layer is behind the original model now, and not behind the windows.
  ASSERT_TRUE(one.Advance(layer, nullptr).ok());
  ASSERT_TRUE(at_once.Advance(layer, nullptr).ok());
  for (Calibration* calibration : {&one, &at_once}) {
    ASSERT_TRUE(
        calibration->Observe(model_->layers[1], true, Calibration::Then::kStay, nullptr).ok());
  }
  EXPECT_TRUE(same(*one.hessian(LinearRole::kDown), *at_once.hessian(LinearRole::kDown)));
  EXPECT_TRUE(none(*one.hessian(LinearRole::kDown)));
}

}  // namespace
}  // namespace fewbit
