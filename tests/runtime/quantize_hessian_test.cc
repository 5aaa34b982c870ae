// The Hessian in its square of memory, its factor, and what error feedback takes from it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "runtime/quantize/drift_product.h"
#include "runtime/quantize/error_feedback.h"
#include "runtime/quantize/hessian.h"

namespace fewbit {
namespace {

using Square = std::vector<double>;  // [K, K]

// Of inputs whose channels are correlated and of very uneven size.
Square RandomHessian(int size, int samples, int seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  Square hessian(static_cast<size_t>(size) * size);
  std::vector<double> x(size);
  for (int s = 0; s < samples; ++s) {
    for (int i = 0; i < size; ++i) {
      x[i] = normal(random) * (i % 37 == 5 ? 30.0 : 1.0) + (i > 0 ? 0.7 * x[i - 1] : 0.0);
    }
    for (int i = 0; i < size; ++i) {
      for (int j = 0; j < size; ++j) hessian[i * size + j] += x[i] * x[j] / samples;
    }
  }
  return hessian;
}

HessianMatrix Stored(const Square& square, int size) {
  HessianMatrix matrix(size);
  for (int i = 0; i < size; ++i) {
    for (int j = 0; j <= i; ++j) matrix.row(i)[j] = static_cast<float>(square[i * size + j]);
  }
  return matrix;
}

std::vector<int> Shuffled(int size, int seed) {
  std::vector<int> channels(size);
  std::iota(channels.begin(), channels.end(), 0);
  std::shuffle(channels.begin(), channels.end(), std::mt19937(seed));
  return channels;
}

TEST(HessianMatrixTest, ArrangesBothTrianglesAgainAndAgain) {
  constexpr int kSize = 112;
  const Square square = RandomHessian(kSize, 200, 1);
  HessianMatrix matrix = Stored(square, kSize);
  ThreadTeam team(3);
  for (const int seed : {1, 2, 3}) {
    const std::vector<int> channels = Shuffled(kSize, seed);
    matrix.Arrange(channels, &team);
    for (int i = 0; i < kSize; ++i) {
      for (int j = 0; j < kSize; ++j) {
        const auto wanted = static_cast<float>(square[channels[i] * kSize + channels[j]]);
        ASSERT_EQ(matrix.row(i)[j], wanted) << i << " " << j;
        ASSERT_EQ(matrix.at(i, j), wanted);
      }
    }
    // What a factor leaves there.
    for (int i = 0; i < kSize; ++i) std::fill(matrix.row(i) + i + 1, matrix.row(i) + kSize, -1.0f);
  }
}

// KiB that belong to this process alone.
int64_t AnonymousMemory() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("RssAnon:")) return std::stoll(line.substr(8));
  }
  return 0;
}

TEST(HessianMatrixTest, TakesHalfTheSquareUntilItIsArranged) {
  constexpr int kSize = 8192;
  constexpr int64_t kSquare = int64_t{4} * kSize * kSize / 1024;  // KiB
  const int64_t before = AnonymousMemory();
  HessianMatrix matrix(kSize);
  EXPECT_LT(AnonymousMemory() - before, kSquare / 20);
  for (int i = 0; i < kSize; ++i) std::fill_n(matrix.row(i), i + 1, i == 0 ? 1.0f : 0.5f);
  EXPECT_LT(AnonymousMemory() - before, kSquare * 12 / 20);
  EXPECT_GT(AnonymousMemory() - before, kSquare * 9 / 20);
  std::vector<int> channels(kSize);
  std::iota(channels.rbegin(), channels.rend(), 0);
  ThreadTeam team(2);
  matrix.Arrange(channels, &team);
  EXPECT_LT(AnonymousMemory() - before, kSquare * 21 / 20);
  EXPECT_GT(AnonymousMemory() - before, kSquare * 19 / 20);
}

TEST(DriftProductTest, TheDriftGoesAsTheProductComes) {
  constexpr int kRows = 64, kCols = 4096;
  std::vector<float> weights(kRows * kCols, 0.5f);
  const Matrix matrix =
      DenseMatrix{.data = weights.data(), .dtype = DType::kF32, .rows = kRows, .cols = kCols};
  ThreadTeam team(2);
  TeamProducts products(&team);
  const int64_t before = AnonymousMemory();
  constexpr int64_t kDrift = int64_t{4} * kCols * kCols / 1024;  // KiB
  ScratchFloats drift = ScratchFloats::InMemory(size_t{kCols} * kCols);
  std::ranges::fill(drift.values(), 2.0f);
  EXPECT_GT(AnonymousMemory() - before, kDrift * 9 / 10);
  const ScratchFloats kept = DriftProduct(matrix, /*drop=*/false, &drift, &products);
  EXPECT_GT(AnonymousMemory() - before, kDrift * 9 / 10);
  const ScratchFloats product = DriftProduct(matrix, /*drop=*/true, &drift, &products);
  EXPECT_LT(AnonymousMemory() - before, kDrift / 4);
  EXPECT_TRUE(std::ranges::equal(product.values(), kept.values()));
  EXPECT_EQ(product.values()[0], static_cast<float>(kCols));
}

// A Hessian in some order with its factor; K is no multiple of the blocks that it is made in.
class ErrorFeedbackTest : public ::testing::Test {
 protected:
  static constexpr int kSize = 208;

  void Make(int threads, int samples = 300) {
    square_ = RandomHessian(kSize, samples, 7);
    channels_ = Shuffled(kSize, 4);
    team_ = std::make_unique<ThreadTeam>(threads);
    products_ = std::make_unique<TeamProducts>(team_.get());
    matrix_ = Stored(square_, kSize);
    matrix_.Arrange(channels_, team_.get());
    auto feedback = ErrorFeedback::Create(&matrix_, products_.get());
    ASSERT_TRUE(feedback.ok()) << feedback.status();
    feedback_ = *std::move(feedback);
  }
  double Damped(int i, int j) const {
    double mean = 0.0;
    for (int k = 0; k < kSize; ++k) mean += square_[k * kSize + k] / kSize;
    return square_[channels_[i] * kSize + channels_[j]] + (i == j ? kHessianDamping * mean : 0.0);
  }
  double Factor(int i, int j) const { return i == j ? 1.0 : i < j ? matrix_.row(i)[j] : 0.0; }

  Square square_;
  std::vector<int> channels_;
  std::unique_ptr<ThreadTeam> team_;
  std::unique_ptr<TeamProducts> products_;
  HessianMatrix matrix_;
  std::unique_ptr<ErrorFeedback> feedback_;
};

TEST_F(ErrorFeedbackTest, FactorsTimesTheirWeightsAreTheDampedHessian) {
  // With fewer samples than channels it is the damping that makes the Hessian definite.
  for (const int samples : {300, 20}) {
    Make(2, samples);
    for (int i = 0; i < kSize; ++i) {
      for (int j = 0; j < kSize; ++j) {
        double sum = 0.0;
        for (int k = 0; k < kSize; ++k) {
          sum += Factor(i, k) * feedback_->weight(k) * Factor(j, k);
        }
        const double scale = std::sqrt(Damped(i, i) * Damped(j, j));
        ASSERT_NEAR(sum / scale, Damped(i, j) / scale, 1e-5) << i << " " << j;
        if (j <= i) {
          ASSERT_EQ(matrix_.row(i)[j],
                    static_cast<float>(square_[channels_[i] * kSize + channels_[j]]));
        }
      }
    }
  }
}

TEST_F(ErrorFeedbackTest, SolvesForTheDampedHessian) {
  Make(2);
  constexpr int kRows = 32;
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> panel(kSize * kRows);
  for (float& value : panel) value = normal(random);
  std::vector<float> solution = panel;
  feedback_->Solve(&products_->multiplier(0), kRows, solution.data());
  for (int i = 0; i < kSize; ++i) {
    for (int r = 0; r < kRows; ++r) {
      double sum = 0.0;
      for (int j = 0; j < kSize; ++j) sum += Damped(i, j) * solution[j * kRows + r];
      ASSERT_NEAR(sum, panel[i * kRows + r], 2e-3) << i << " " << r;
    }
  }
}

// Products for the tiles before, strip by strip within one: together all of U.
TEST_F(ErrorFeedbackTest, CollectingAndSpreadingTakeTheFactorOut) {
  Make(1);
  const LaneKernels& kernels = LaneKernelsFor(cpu::BestIsa());
  constexpr int kBegin = 96, kEnd = 160;
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<float> errors(kSize * kLanes);
  for (float& value : errors) value = normal(random);
  std::vector<float> work((kEnd - kBegin) * kLanes);
  feedback_->Collect(&products_->multiplier(0), kBegin, kEnd, errors.data(), kLanes, work.data());
  for (float& value : work) value = -value;
  for (int strip = kBegin / kGroup; strip < kEnd / kGroup; ++strip) {
    for (int k = 0; k < kGroup; ++k) {
      const int i = strip * kGroup + k;
      feedback_->SpreadInStrip(kernels, i, errors.data() + i * kLanes,
                               work.data() + (i + 1 - kBegin) * kLanes);
    }
    feedback_->SpreadStrip(kernels, strip, errors.data() + strip * kGroup * kLanes, kEnd,
                           work.data() + ((strip + 1) * kGroup - kBegin) * kLanes);
  }
  for (int j = kBegin; j < kEnd; ++j) {
    for (int l = 0; l < kLanes; ++l) {
      double sum = 0.0;
      for (int i = 0; i < j; ++i) sum -= errors[i * kLanes + l] * Factor(i, j);
      ASSERT_NEAR(work[(j - kBegin) * kLanes + l], sum, 1e-4) << j << " " << l;
    }
  }
}

TEST_F(ErrorFeedbackTest, ThreadsDoNotMatter) {
  Make(1);
  std::vector<float> one(matrix_.row(0), matrix_.row(0) + kSize * kSize);
  for (const int threads : {2, 5}) {
    Make(threads);
    EXPECT_TRUE(std::equal(one.begin(), one.end(), matrix_.row(0))) << threads;
  }
}

TEST_F(ErrorFeedbackTest, RefusesWhatIsNotFinite) {
  ThreadTeam team(1);
  TeamProducts products(&team);
  HessianMatrix matrix = Stored(RandomHessian(64, 100, 1), 64);
  matrix.row(40)[3] = std::numeric_limits<float>::quiet_NaN();
  std::vector<int> channels(64);
  std::iota(channels.begin(), channels.end(), 0);
  matrix.Arrange(channels, &team);
  EXPECT_EQ(ErrorFeedback::Create(&matrix, &products).status().code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace fewbit
