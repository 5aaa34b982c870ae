// Packed matrices taken apart and put together, and the text that tuning learns from.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/linear.h"
#include "runtime/models/model.h"
#include "runtime/tune/scaled_matrix.h"
#include "runtime/tune/tuning_text.h"
#include "tests/kernels/random_matrix.h"

namespace fewbit::tune {
namespace {

using ::testing::HasSubstr;

void ExpectSame(const quant::PackedStorage& a, const quant::PackedMatrix& b) {
  EXPECT_EQ(a.tiles, std::vector<uint8_t>(b.tiles, b.tiles + b.shape.total_bytes()));
  EXPECT_EQ(a.strip_order,
            std::vector<uint16_t>(b.strip_order, b.strip_order + b.shape.num_positions()));
  if (b.outlier_start == nullptr) {
    EXPECT_TRUE(a.outliers.empty());
    return;
  }
  const size_t lists = b.shape.num_outlier_lists();
  const std::vector<uint32_t> outliers(b.outliers, b.outliers + b.outlier_start[lists]);
  EXPECT_EQ(a.outliers, outliers);
  // A matrix may have a start table without a single outlier.
  if (!outliers.empty()) {
    EXPECT_EQ(a.outlier_start, std::vector<uint32_t>(b.outlier_start, b.outlier_start + lists + 1));
  }
}

// The formula of ScaledMatrix, in double.
double WeightAt(const HostScaledMatrix& m, int row, int col) {
  const int strip = col / quant::kStripChannels;
  const int strips = m.cols / quant::kStripChannels;
  double weight = m.levels[static_cast<size_t>(row) * m.cols + col] *
                  double{m.sub_scales[static_cast<size_t>(row) * strips + strip]} *
                  m.second_order[static_cast<size_t>(row) * m.tiles + m.tile_of_strip[strip]] / 2;
  const auto at = std::lower_bound(m.outlier_at.begin(), m.outlier_at.end(), row * m.cols + col);
  if (at != m.outlier_at.end() && *at == row * m.cols + col) {
    weight += m.outliers[at - m.outlier_at.begin()];
  }
  return weight;
}

void ExpectRoundTrip(const quant::PackedMatrix& matrix) {
  const HostScaledMatrix apart = TakeApart(matrix);
  ExpectSame(PutTogether(apart), matrix);
  std::vector<float> row(matrix.shape.cols);
  for (const int r : {0, matrix.shape.rows / 2, matrix.shape.rows - 1}) {
    cpu::DequantizeRow(matrix, r, row.data());
    for (int c = 0; c < matrix.shape.cols; ++c) {
      ASSERT_NEAR(WeightAt(apart, r, c), row[c], 1e-6 * std::abs(row[c])) << r << ", " << c;
    }
  }
}

TEST(ScaledMatrixTest, RandomMatricesComeBackAsTheyWere) {
  std::mt19937 rng(7);
  for (const int rows : {1, 16, 37}) {
    for (const int cols : {16, 512, 1040}) {
      for (const double share4 : {0.0, 0.3, 1.0}) {
        for (const bool zero_points : {false, true}) {
          const testing::PackedOptions options{.rows = rows,
                                               .cols = cols,
                                               .share4 = share4,
                                               .zero_points = zero_points,
                                               .outlier_share = cols == 512 ? 0.0 : 0.01,
                                               .extra_padding = rows == 37 ? 1 : 0};
          SCOPED_TRACE(Describe(options));
          const quant::PackedStorage packed = quant::Pack(testing::RandomUnpacked(options, &rng));
          ExpectRoundTrip(packed.view());
        }
      }
    }
  }
}

TEST(ScaledMatrixTest, TheBundledModelComesBackAsItWas) {
  const auto model = LoadModel(FEWBIT_SOURCE_DIR "/deploy/models/fewbit-demo-29m");
  ASSERT_TRUE(model.ok()) << model.status();
  for (const LayerWeights& layer : (*model)->layers) {
    for (const Matrix& matrix : layer.linears) {
      ExpectRoundTrip(std::get<quant::PackedMatrix>(matrix));
    }
  }
}

TEST(ScaledMatrixTest, AnOutlierListedTwiceCountsOnceWithItsSum) {
  std::mt19937 rng(3);
  quant::UnpackedMatrix m = testing::RandomUnpacked({.rows = 16, .cols = 128, .share4 = 0.0}, &rng);
  m.outliers = {{3, 17, quant::FloatToHalf(0.5f)}, {3, 17, quant::FloatToHalf(0.25f)}};
  const HostScaledMatrix apart = TakeApart(quant::Pack(m).view());
  ASSERT_EQ(apart.outliers.size(), 1u);
  EXPECT_EQ(apart.outliers[0], 0.75f);
  EXPECT_EQ(TakeApart(PutTogether(apart).view()).outliers, apart.outliers);
}

TEST(ScaledMatrixTest, ScalesAreRoundedAsTheFileHoldsThem) {
  std::mt19937 rng(5);
  const quant::PackedStorage packed =
      quant::Pack(testing::RandomUnpacked({.rows = 16, .cols = 64, .share4 = 0.0}, &rng));
  HostScaledMatrix apart = TakeApart(packed.view());
  apart.sub_scales[0] = 3.6f;
  apart.sub_scales[1] = -2.0f;
  apart.sub_scales[2] = 19.0f;
  apart.second_order[0] = 0.1f;
  const HostScaledMatrix again = TakeApart(PutTogether(apart).view());
  EXPECT_THAT(std::vector<float>(again.sub_scales.begin(), again.sub_scales.begin() + 3),
              ::testing::ElementsAre(4.0f, 0.0f, 15.0f));
  EXPECT_EQ(again.second_order[0], quant::HalfToFloat(quant::FloatToHalf(6.4f)) / 64.0f);
}

std::vector<TokenId> Numbered(int count) {
  std::vector<TokenId> ids;
  for (int i = 0; i < count; ++i) ids.push_back(TokenId{i});
  return ids;
}

// Ids are their places in the text, so that a window tells where it is from.
TEST(TuningTextTest, TrainingNeverSeesWhatIsHeldOut) {
  constexpr int kTokens = 1000, kContext = 32, kHeldOut = 8;
  const std::vector<TokenId> ids = Numbered(kTokens);
  const auto text = TuningText::Create(ids, {},
                                       {.bos = TokenId{5000},
                                        .context = kContext,
                                        .held_out = kHeldOut,
                                        .seed = 3,
                                        .vocab_size = kTokens});
  ASSERT_TRUE(text.ok()) << text.status();
  std::vector<TokenId> window(kContext);
  std::set<int> held_out;
  for (int w = 0; w < kHeldOut; ++w) {
    text->HeldOut(w, window);
    EXPECT_EQ(window[0], TokenId{5000});
    for (int i = 1; i < kContext; ++i) held_out.insert(ToInt(window[i]));
  }
  EXPECT_EQ(held_out.size(), kHeldOut * (kContext - 1u)) << "held-out windows overlap";
  std::set<int> seen;
  for (int step = 1; step <= 400; ++step) {
    text->Draw(step, step % 5, window);
    for (int i = 1; i < kContext; ++i) {
      ASSERT_EQ(ToInt(window[i]), ToInt(window[1]) + i - 1);
      ASSERT_EQ(held_out.count(ToInt(window[i])), 0u) << ToInt(window[i]);
      seen.insert(ToInt(window[i]));
    }
  }
  // All the rest, but for the rare corners.
  EXPECT_GT(seen.size(), 0.95 * (kTokens - held_out.size()));
}

TEST(TuningTextTest, DependsOnSeedStepAndWindowOnly) {
  const std::vector<TokenId> ids = Numbered(4000);
  const auto window = [&](uint64_t seed, int step, int w) {
    const auto text = TuningText::Create(
        ids, {}, {.context = 16, .held_out = 4, .seed = seed, .vocab_size = 4000});
    std::vector<TokenId> out(16);
    text->Draw(step, w, out);
    return ToInt(out[0]);
  };
  EXPECT_EQ(window(1, 2, 3), window(1, 2, 3));
  EXPECT_NE(window(1, 2, 3), window(1, 2, 4));
  EXPECT_NE(window(1, 2, 3), window(1, 3, 3));
  EXPECT_NE(window(1, 2, 3), window(2, 2, 3));
}

TEST(TuningTextTest, NoiseReplacesItsShareAndNothingThatIsHeldOut) {
  constexpr int kTokens = 4000, kContext = 64;
  const std::vector<TokenId> ids = Numbered(kTokens);
  const TuningText::Options plain{
      .bos = TokenId{3999}, .context = kContext, .held_out = 4, .vocab_size = kTokens};
  TuningText::Options noisy = plain;
  noisy.noise = 0.2;
  const auto a = TuningText::Create(ids, {}, plain);
  const auto b = TuningText::Create(ids, {}, noisy);
  std::vector<TokenId> clean(kContext), window(kContext);
  int replaced = 0;
  constexpr int kSteps = 200;
  for (int step = 1; step <= kSteps; ++step) {
    a->Draw(step, 0, clean);
    b->Draw(step, 0, window);
    EXPECT_EQ(window[0], clean[0]) << "BOS";
    for (int i = 1; i < kContext; ++i) replaced += window[i] != clean[i];
  }
  EXPECT_NEAR(replaced, 0.2 * kSteps * (kContext - 1), 0.02 * kSteps * (kContext - 1));
  a->HeldOut(2, clean);
  b->HeldOut(2, window);
  EXPECT_EQ(window, clean);
}

TEST(TuningTextTest, OwnWindowsComeWhole) {
  constexpr int kContext = 16, kOwn = 10;
  const std::vector<TokenId> ids = Numbered(1000);
  std::vector<TokenId> own;
  for (int i = 0; i < kOwn * kContext; ++i) own.push_back(TokenId{2000 + i});
  const auto text = TuningText::Create(
      ids, own, {.context = kContext, .held_out = 4, .own_share = 0.25, .vocab_size = 1000});
  std::vector<TokenId> window(kContext);
  std::set<int> seen;
  int from_own = 0;
  constexpr int kSteps = 2000;
  for (int step = 1; step <= kSteps; ++step) {
    text->Draw(step, 1, window);
    if (ToInt(window[0]) < 2000) continue;
    ++from_own;
    EXPECT_EQ((ToInt(window[0]) - 2000) % kContext, 0);
    EXPECT_EQ(ToInt(window[kContext - 1]), ToInt(window[0]) + kContext - 1);
    seen.insert(ToInt(window[0]));
  }
  EXPECT_NEAR(from_own, 0.25 * kSteps, 0.03 * kSteps);
  EXPECT_EQ(seen.size(), static_cast<size_t>(kOwn));
}

TEST(TuningTextTest, RefusesTextThatIsTooShortOrOfAnotherVocabulary) {
  const TuningText::Options options{
      .bos = TokenId{1}, .context = 33, .held_out = 4, .vocab_size = 256};
  EXPECT_TRUE(TuningText::Create(Numbered(256), {}, options).ok());
  const auto short_text = TuningText::Create(Numbered(255), {}, options);
  EXPECT_EQ(short_text.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(short_text.status().message()),
              ::testing::AllOf(HasSubstr("too short: 255 tokens"), HasSubstr("256")));
  const auto other = TuningText::Create(Numbered(257), {}, options);
  EXPECT_THAT(std::string(other.status().message()), HasSubstr("id 256"));
}

}  // namespace
}  // namespace fewbit::tune
