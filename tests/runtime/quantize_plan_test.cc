#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <random>
#include <vector>

#include "kernels/cpu/linear.h"
#include "runtime/models/decoder.h"
#include "runtime/quantize/bit_allocation.h"
#include "runtime/quantize/bit_plan.h"
#include "runtime/quantize/calibration.h"
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
        probe_(model_->spec, model_->embedding, Windows(), &team_, cpu::BestIsa(),
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

using DriftTest = SensitivityProbeTest;

TEST_F(DriftTest, IsTheMeanOfWhatTheInputsMissTimesThemselves) {
  const auto windows = Windows();
  const LayerWeights altered = Scaled(1.5f);
  Calibration calibration(model_->spec, model_->embedding, windows, &team_, cpu::BestIsa(), true);
  const auto observe = [&](int layer) {
    const absl::Status status =
        calibration.Observe(model_->layers[layer], true, Calibration::Then::kStay, nullptr);
    EXPECT_TRUE(status.ok()) << status;
  };
  observe(0);
  for (const float value : calibration.hessian(LinearRole::kDown).drift) ASSERT_EQ(value, 0.0f);
  ASSERT_TRUE(calibration.Advance(altered, nullptr).ok());
  observe(1);

  InputRecorder seen(LinearRole::kDown), original(LinearRole::kDown);
  for (InputRecorder* recorder : {&seen, &original}) {
    std::vector<float> hidden(windows.tokens.size() * model_->spec.hidden_size);
    EmbedTokens(model_->embedding, windows.tokens, hidden.data());
    RunWindows(model_->spec, recorder == &seen ? altered : model_->layers[0], windows.context,
               hidden, &team_, cpu::BestIsa(), nullptr);
    RunWindows(model_->spec, model_->layers[1], windows.context, hidden, &team_, cpu::BestIsa(),
               recorder);
  }
  const std::vector<float>& drift = calibration.hessian(LinearRole::kDown).drift;
  ASSERT_EQ(drift.size(), static_cast<size_t>(seen.cols()) * seen.cols());
  double largest = 0.0, worst = 0.0;
  for (int i = 0; i < seen.cols(); ++i) {
    for (int j = 0; j < seen.cols(); ++j) {
      double sum = 0.0;
      for (int t = 0; t < seen.tokens(); ++t) {
        sum += static_cast<double>(original.at(t, i) - seen.at(t, i)) * seen.at(t, j);
      }
      const double expected = sum / seen.tokens();
      largest = std::max(largest, std::abs(expected));
      worst = std::max(worst, std::abs(expected - drift[i * seen.cols() + j]));
    }
  }
  EXPECT_GT(largest, 0.0);
  EXPECT_LT(worst, 1e-4 * largest);
}

TEST_F(DriftTest, OneInputAtATimeSeesTheMatricesBeforeIt) {
  const LayerWeights& layer = model_->layers[0];
  Calibration at_once(model_->spec, model_->embedding, Windows(), &team_, cpu::BestIsa(), true);
  ASSERT_TRUE(at_once.Observe(layer, true, Calibration::Then::kStay, nullptr).ok());
  Calibration one(model_->spec, model_->embedding, Windows(), &team_, cpu::BestIsa(), true);
  const auto observe = [&](LinearRole role, const LayerWeights& altered) {
    const absl::Status status = one.ObserveInput(role, layer, altered, nullptr);
    EXPECT_TRUE(status.ok()) << status;
    return one.hessian(role);
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
    const Hessian seen = observe(role, altered);
    EXPECT_EQ(seen.diagonal == at_once.hessian(role).diagonal, before);
    EXPECT_EQ(seen.matrix == at_once.hessian(role).matrix, before);
    EXPECT_EQ(std::all_of(seen.drift.begin(), seen.drift.end(), [](float d) { return d == 0.0f; }),
              before);
  }
  // The layer is behind the original model now, and not behind the windows.
  ASSERT_TRUE(one.Advance(layer, nullptr).ok());
  ASSERT_TRUE(at_once.Advance(layer, nullptr).ok());
  for (Calibration* calibration : {&one, &at_once}) {
    ASSERT_TRUE(
        calibration->Observe(model_->layers[1], true, Calibration::Then::kStay, nullptr).ok());
  }
  EXPECT_EQ(one.hessian(LinearRole::kDown).matrix, at_once.hessian(LinearRole::kDown).matrix);
  for (const float d : one.hessian(LinearRole::kDown).drift) ASSERT_EQ(d, 0.0f);
}

}  // namespace
}  // namespace fewbit
