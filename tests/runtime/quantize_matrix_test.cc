#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/linear.h"
#include "runtime/quantize/matrix_quantizer.h"
#include "runtime/quantize/strip_choice.h"

namespace fewbit {
namespace {

using ::testing::HasSubstr;

constexpr const QuantizeMethod* kSearched = FindQuantizeMethod("searched");
const QuantizeMethod* const kPublished = FindQuantizeMethod("published");

struct Problem {
  int rows = 0;
  int cols = 0;
  std::vector<float> weights;
  struct {
    std::vector<float> diagonal, matrix;
    std::vector<float> drift;  // [K, K] mean of (z_i - x_i) x_j, or empty
  } hessian;
};

Hessian HessianOf(const Problem& p) {
  Hessian hessian;
  hessian.diagonal = p.hessian.diagonal;
  hessian.matrix = HessianMatrix(p.cols);
  for (int i = 0; i < p.cols; ++i) {
    for (int j = 0; j <= i; ++j) hessian.matrix.row(i)[j] = p.hessian.matrix[i * p.cols + j];
  }
  if (p.hessian.drift.empty()) return hessian;
  hessian.drift = ScratchFloats::InMemory(p.hessian.drift.size());
  for (int i = 0; i < p.cols; ++i) {
    for (int j = 0; j < p.cols; ++j) {
      hessian.drift.values()[j * p.cols + i] = p.hessian.drift[i * p.cols + j];
    }
  }
  return hessian;
}

// Gaussian weights with a few large ones; inputs of uneven size whose neighbours are correlated.
Problem RandomProblem(int rows, int cols, int seed, float large = 5.0f) {
  Problem p{.rows = rows, .cols = cols, .weights = {}, .hessian = {}};
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  for (int i = 0; i < rows * cols; ++i) {
    p.weights.push_back(normal(random) * (random() % 200 == 0 ? large : 1.0f));
  }
  for (int k = 0; k < cols; ++k) {
    p.hessian.diagonal.push_back(std::exp(50.0f * normal(random)));
  }
  p.hessian.matrix.resize(static_cast<size_t>(cols) * cols);
  for (int i = 0; i < cols; ++i) {
    for (int j = 0; j < cols; ++j) {
      p.hessian.matrix[i * cols + j] = std::sqrt(p.hessian.diagonal[i] * p.hessian.diagonal[j]) *
                                       static_cast<float>(std::pow(0.8, std::abs(i - j)));
    }
  }
  return p;
}

Matrix Weights(const Problem& p) {
  return DenseMatrix{
      .data = p.weights.data(), .dtype = DType::kF32, .rows = p.rows, .cols = p.cols};
}

QuantizedMatrix Quantize(const Problem& p, const MatrixSettings& settings, int threads = 2,
                         cpu::Isa isa = cpu::BestIsa()) {
  ThreadTeam team(threads);
  TeamProducts products(&team);
  Hessian hessian = HessianOf(p);
  absl::StatusOr<QuantizedMatrix> result =
      QuantizeMatrix("test", Weights(p), &hessian, settings, &products, LaneKernelsFor(isa));
  EXPECT_TRUE(result.ok()) << result.status();
  return *std::move(result);
}

double WeightedError(const Problem& p, const std::vector<float>& dense) {
  double sum = 0.0;
  for (int i = 0; i < p.rows * p.cols; ++i) {
    const double e = p.weights[i] - dense[i];
    sum += p.hessian.diagonal[i % p.cols] * e * e;
  }
  return sum;
}

// The error of the layer's output: e H e^T with the whole Hessian.
double OutputError(const Problem& p, const std::vector<float>& dense) {
  double sum = 0.0;
  for (int r = 0; r < p.rows; ++r) {
    for (int i = 0; i < p.cols; ++i) {
      const double e = p.weights[r * p.cols + i] - dense[r * p.cols + i];
      for (int j = 0; j < p.cols; ++j) {
        sum += e * (p.weights[r * p.cols + j] - dense[r * p.cols + j]) *
               p.hessian.matrix[i * p.cols + j];
      }
    }
  }
  return sum;
}

// Round to nearest, groups of 16, asymmetric min-max with an unrounded scale.
std::vector<float> RoundToNearest(const Problem& p, int bits) {
  std::vector<float> dense(p.weights.size());
  const float levels = static_cast<float>((1 << bits) - 1);
  for (size_t g = 0; g < p.weights.size(); g += 16) {
    const auto [low, high] = std::minmax_element(&p.weights[g], &p.weights[g] + 16);
    const float step = (*high - *low) / levels;
    for (size_t k = g; k < g + 16; ++k) {
      dense[k] = *low + std::round((p.weights[k] - *low) / step) * step;
    }
  }
  return dense;
}

std::vector<uint8_t> Bytes(const quant::UnpackedMatrix& m) {
  const quant::PackedStorage packed = quant::Pack(m);
  std::vector<uint8_t> bytes = packed.tiles;
  const auto append = [&bytes](const auto& values) {
    const auto* data = reinterpret_cast<const uint8_t*>(values.data());
    bytes.insert(bytes.end(), data, data + values.size() * sizeof(values[0]));
  };
  append(packed.strip_order);
  append(packed.outlier_start);
  append(packed.outliers);
  return bytes;
}

TEST(QuantizeMatrixTest, SearchedScalesBeatRoundToNearest) {
  // Round to nearest has a zero-point and an unrounded scale per group, so many more bits.
  for (const auto& [large, bound] : {std::pair{1.0f, 0.85}, {5.0f, 1.0}}) {
    const Problem p = RandomProblem(48, 256, 1, large);
    const double nearest = WeightedError(p, RoundToNearest(p, 2));
    const QuantizedMatrix plain = Quantize(p, {.method = kSearched, .share4 = 0, .outliers = 0});
    EXPECT_LT(WeightedError(p, Dequantize(plain.unpacked)), bound * nearest) << large;
  }
}

TEST(QuantizeMatrixTest, PublishedMethodIsCloseToRoundToNearestAlone) {
  // Without strips and outliers what is left is min-max with rounded scales.
  const Problem p = RandomProblem(48, 256, 1);
  const double nearest = WeightedError(p, RoundToNearest(p, 2));
  const QuantizedMatrix plain = Quantize(p, {.method = kPublished, .share4 = 0, .outliers = 0});
  const double error = WeightedError(p, Dequantize(plain.unpacked));
  EXPECT_GT(error, 0.8 * nearest);
  EXPECT_LT(error, 1.25 * nearest);
}

TEST(QuantizeMatrixTest, MoreBitsLessError) {
  const Problem p = RandomProblem(40, 512, 2);
  for (const QuantizeMethod& method : kQuantizeMethods) {
    double last = std::numeric_limits<double>::infinity();
    for (const double share4 : {0.0, 0.25, 0.5, 1.0}) {
      const QuantizedMatrix q = Quantize(p, {.method = &method, .share4 = share4, .outliers = 0});
      EXPECT_NEAR(static_cast<double>(q.quality.weights4) / q.quality.weights, share4, 1e-9);
      EXPECT_LT(q.quality.error, 0.9 * last) << method.name << " " << share4;
      last = q.quality.error;
    }
    last = std::numeric_limits<double>::infinity();
    for (const double outliers : {0.0, 0.002, 0.01, 0.05}) {
      const QuantizedMatrix q =
          Quantize(p, {.method = &method, .share4 = 0.25, .outliers = outliers});
      EXPECT_LT(q.quality.error, last) << method.name << " " << outliers;
      last = q.quality.error;
    }
  }
}

TEST(QuantizeMatrixTest, WeightsOnTheGridComeBack) {
  // Two strips of either width, steps 9 d and 15 d: representable, so nothing may be lost but d's
  // rounding.
  Problem p = RandomProblem(16, 64, 3);
  std::mt19937 random(3);
  for (int i = 0; i < p.rows * p.cols; ++i) {
    const int strip = i % p.cols / 16;
    const float step = 0.001f * (strip % 2 == 0 ? 9.0f : 15.0f);
    p.weights[i] = (static_cast<float>(random() % 4) - 1.5f) * step;
  }
  const QuantizedMatrix two = Quantize(p, {.method = kSearched, .share4 = 0, .outliers = 0});
  EXPECT_LT(two.quality.error, 1e-5 * two.quality.norm);
  for (float& w : p.weights) w *= 3.0f;  // levels -4.5 to 4.5: inside the 4-bit range
  const QuantizedMatrix four = Quantize(p, {.method = kSearched, .share4 = 1, .outliers = 0});
  EXPECT_LT(four.quality.error, 1e-5 * four.quality.norm);
}

TEST(QuantizeMatrixTest, OutliersStayInTwoBitStripsAndInBudget) {
  const Problem p = RandomProblem(48, 512, 4);
  for (const QuantizeMethod& method : kQuantizeMethods) {
    const QuantizedMatrix q = Quantize(p, {.method = &method, .share4 = 0.25, .outliers = 0.01});
    const auto& outliers = q.unpacked.outliers;
    EXPECT_EQ(q.quality.outliers, static_cast<int64_t>(outliers.size()));
    EXPECT_LE(outliers.size(), 0.01 * p.rows * p.cols);
    EXPECT_GT(outliers.size(), 0.009 * p.rows * p.cols);
    const std::vector<float> dense = Dequantize(q.unpacked);
    for (const quant::Outlier& outlier : outliers) {
      ASSERT_LT(outlier.position, 128 * q.unpacked.shape.chunks2);
      const int k = q.unpacked.strip_order[outlier.position / 16] * 16 + outlier.position % 16;
      const int i = outlier.row * p.cols + k;
      if (method.error_feedback) continue;  // its targets are not the weights themselves
      EXPECT_NEAR(dense[i], p.weights[i], 1e-3 * std::abs(p.weights[i]) + 1e-5);
    }
    const QuantizedMatrix none = Quantize(p, {.method = &method, .share4 = 0.25, .outliers = 0});
    EXPECT_TRUE(none.unpacked.outliers.empty());
  }
}

TEST(QuantizeMatrixTest, NoOutliersWhereAllIsFourBit) {
  const Problem p = RandomProblem(16, 64, 5);
  const QuantizedMatrix q = Quantize(p, {.method = kSearched, .share4 = 1, .outliers = 0.01});
  EXPECT_TRUE(q.unpacked.outliers.empty());
}

TEST(QuantizeMatrixTest, SensitiveStripsGetFourBits) {
  for (const QuantizeMethod& method : kQuantizeMethods) {
    Problem p = RandomProblem(32, 512, 6);
    std::fill(p.hessian.diagonal.begin(), p.hessian.diagonal.end(), 1.0f);
    for (const int strip : {3, 5, 11, 17}) {  // large weights
      for (int r = 0; r < p.rows; ++r) {
        for (int k = 0; k < 16; ++k) p.weights[r * p.cols + strip * 16 + k] *= 20.0f;
      }
    }
    for (const int strip : {0, 20, 30, 31}) {  // large inputs
      for (int k = 0; k < 16; ++k) p.hessian.diagonal[strip * 16 + k] = 400.0f;
    }
    const QuantizedMatrix q = Quantize(p, {.method = &method, .share4 = 0.25, .outliers = 0});
    ASSERT_EQ(q.unpacked.shape.chunks4, 2);
    const auto& order = q.unpacked.strip_order;
    const std::vector<uint16_t> four(order.end() - 8, order.end());
    EXPECT_THAT(four, ::testing::UnorderedElementsAre(0, 3, 5, 11, 17, 20, 30, 31)) << method.name;
    if (!method.large_first) continue;
    // Error feedback takes the channels with large inputs first.
    EXPECT_THAT(std::vector<uint16_t>(four.begin(), four.begin() + 4),
                ::testing::UnorderedElementsAre(0, 20, 30, 31));
  }
}

TEST(QuantizeMatrixTest, OnlyThePublishedMethodHasZeroPoints) {
  Problem p = RandomProblem(32, 256, 7);
  for (float& w : p.weights) w = std::abs(w);  // one-sided: a zero-point is worth a bit here
  const QuantizedMatrix published =
      Quantize(p, {.method = kPublished, .share4 = 0.25, .outliers = 0});
  const QuantizedMatrix symmetric =
      Quantize(p, {.method = kSearched, .share4 = 0.25, .outliers = 0});
  EXPECT_TRUE(published.unpacked.shape.zero_points);
  EXPECT_EQ(published.unpacked.zeros.size(), published.unpacked.sub_scales.size());
  EXPECT_FALSE(symmetric.unpacked.shape.zero_points);
  EXPECT_TRUE(symmetric.unpacked.zeros.empty());
  EXPECT_LT(published.quality.error, symmetric.quality.error);
}

TEST(QuantizeMatrixTest, BytesDoNotDependOnThreadsOrProcessor) {
  const Problem p = RandomProblem(72, 512, 8);
  for (const QuantizeMethod& method : kQuantizeMethods) {
    const MatrixSettings settings{.method = &method, .share4 = 0.25, .outliers = 0.005};
    const std::vector<uint8_t> one = Bytes(Quantize(p, settings, 1, cpu::Isa::kPortable).unpacked);
    for (const int threads : {2, 3, 7}) {
      EXPECT_EQ(Bytes(Quantize(p, settings, threads).unpacked), one) << method.name;
    }
    for (const cpu::Isa isa : {cpu::Isa::kAvx2, cpu::Isa::kAvx512}) {
      if (!cpu::IsaSupported(isa)) continue;
      EXPECT_EQ(Bytes(Quantize(p, settings, 2, isa).unpacked), one)
          << method.name << " " << cpu::IsaName(isa);
    }
  }
}

TEST(QuantizeMatrixTest, PackedBytesAreWhatWasMeant) {
  // Odd numbers of rows and strips too: padding must not leak into the weights.
  for (const auto& [rows, cols] : {std::pair{48, 512}, {1, 16}, {17, 48}, {33, 720}}) {
    const Problem p = RandomProblem(rows, cols, 9);
    for (const QuantizeMethod& method : kQuantizeMethods) {
      for (const double share4 : {0.0, 0.3, 1.0}) {
        const QuantizedMatrix q =
            Quantize(p, {.method = &method, .share4 = share4, .outliers = 0.02});
        const std::vector<float> dense = Dequantize(q.unpacked);
        double error = 0.0;
        for (int i = 0; i < rows * cols; ++i) {
          error += (static_cast<double>(p.weights[i]) - dense[i]) * (p.weights[i] - dense[i]);
        }
        EXPECT_NEAR(error, q.quality.error, 1e-4 * q.quality.error + 1e-9);
        const quant::PackedStorage packed = quant::Pack(q.unpacked);
        const Matrix matrix = packed.view();
        std::vector<float> row(cols);
        for (int r = 0; r < rows; ++r) {
          cpu::DequantizeRow(matrix, r, row.data());
          for (int k = 0; k < cols; ++k) {
            ASSERT_NEAR(row[k], dense[r * cols + k], 1e-6 * std::abs(row[k]) + 1e-9)
                << rows << "x" << cols << " " << method.name << " " << r << "," << k;
          }
        }
      }
    }
  }
}

TEST(QuantizeMatrixTest, ZeroWeightsAndDeadInputs) {
  Problem p = RandomProblem(20, 256, 10);
  std::fill(p.hessian.diagonal.begin(), p.hessian.diagonal.begin() + 64, 0.0f);
  for (int r = 4; r < 9; ++r) std::fill_n(p.weights.begin() + r * p.cols, p.cols, 0.0f);
  for (const QuantizeMethod& method : kQuantizeMethods) {
    const QuantizedMatrix q = Quantize(p, {.method = &method, .share4 = 0.25, .outliers = 0.002});
    const std::vector<float> dense = Dequantize(q.unpacked);
    for (int i = 4 * p.cols; i < 9 * p.cols; ++i) ASSERT_EQ(dense[i], 0.0f);
    EXPECT_LT(q.quality.error, 0.25 * q.quality.norm) << method.name;
  }
}

TEST(QuantizeMatrixTest, ErrorFeedbackLowersTheErrorOfTheOutput) {
  const Problem p = RandomProblem(32, 256, 11);
  QuantizeMethod feedback = *kSearched;
  feedback.error_feedback = true;
  QuantizeMethod nearest = *kSearched;
  nearest.error_feedback = false;
  const double without = OutputError(p, Dequantize(Quantize(p, {.method = &nearest}).unpacked));
  const double with = OutputError(p, Dequantize(Quantize(p, {.method = &feedback}).unpacked));
  EXPECT_LT(with, 0.75 * without);
}

TEST(QuantizeMatrixTest, DescentLowersTheErrorOfTheOutputFurther) {
  const Problem p = RandomProblem(32, 640, 17);
  QuantizeMethod method = *kSearched;
  method.error_feedback = true;
  double before = std::numeric_limits<double>::infinity();
  for (const int sweeps : {0, 1, 4}) {
    method.descent_sweeps = sweeps;
    const double error = OutputError(p, Dequantize(Quantize(p, {.method = &method}).unpacked));
    EXPECT_LT(error, (sweeps == 1 ? 0.95 : 0.999) * before) << sweeps;
    before = error;
  }
}

TEST(QuantizeMatrixTest, DescentFromTheNearestCodesLowersTheErrorOfTheOutput) {
  const Problem p = RandomProblem(32, 256, 17);
  QuantizeMethod method = *kSearched;
  const double nearest = OutputError(p, Dequantize(Quantize(p, {.method = &method}).unpacked));
  method.descent_sweeps = 2;
  const double descended = OutputError(p, Dequantize(Quantize(p, {.method = &method}).unpacked));
  EXPECT_LT(descended, 0.75 * nearest);
}

// Where the original model had z = (I + A) x, the mean of |W z - W^ x|^2 up to a constant:
// W^ H W^^T - 2 W (H + D) W^^T with the drift D = A H.
double MatchError(const Problem& p, const std::vector<float>& dense) {
  double sum = 0.0;
  for (int r = 0; r < p.rows; ++r) {
    const float* w = p.weights.data() + static_cast<size_t>(r) * p.cols;
    const float* v = dense.data() + static_cast<size_t>(r) * p.cols;
    for (int i = 0; i < p.cols; ++i) {
      for (int j = 0; j < p.cols; ++j) {
        const int at = i * p.cols + j;
        const double h = p.hessian.matrix[at];
        sum += v[i] * v[j] * h - 2.0 * w[i] * v[j] * (h + p.hessian.drift[at]);
      }
    }
  }
  return sum;
}

TEST(QuantizeMatrixTest, CorrectionMakesUpForInputsThatHaveDrifted) {
  Problem p = RandomProblem(32, 256, 21);
  p.hessian.drift.resize(p.hessian.matrix.size());
  for (int i = 0; i < p.cols; ++i) {
    for (int j = 0; j < p.cols; ++j) {  // a tenth of each input has gone to its neighbour
      p.hessian.drift[i * p.cols + j] = 0.1f * p.hessian.matrix[(i + 1) % p.cols * p.cols + j];
    }
  }
  for (const char* name : {"feedback", "searched"}) {
    QuantizeMethod method = *FindQuantizeMethod(name);
    double last = std::numeric_limits<double>::infinity();
    for (const float correction : {0.0f, 0.5f, 1.0f}) {
      method.correction = correction;
      const double error = MatchError(p, Dequantize(Quantize(p, {.method = &method}).unpacked));
      EXPECT_LT(error, last) << name << " " << correction;
      last = error;
    }
  }
  // Who makes up for nothing knows nothing of it.
  const QuantizeMethod method = *kSearched;
  const auto with = Bytes(Quantize(p, {.method = &method}).unpacked);
  p.hessian.drift.clear();
  EXPECT_EQ(with, Bytes(Quantize(p, {.method = &method}).unpacked));
}

TEST(QuantizeMatrixTest, ScalesRefittedAloneHelpLessThanCodesAndScales) {
  const Problem p = RandomProblem(32, 640, 19);
  QuantizeMethod method = *FindQuantizeMethod("feedback");
  const QuantizedMatrix plain = Quantize(p, {.method = &method});
  method.descent_sweeps = 2;
  method.descent = Descent::kScales;
  const QuantizedMatrix refitted = Quantize(p, {.method = &method});
  method.descent = Descent::kCodesAndScales;
  const QuantizedMatrix descended = Quantize(p, {.method = &method});
  const double without = OutputError(p, Dequantize(plain.unpacked));
  const double with = OutputError(p, Dequantize(refitted.unpacked));
  EXPECT_LT(with, 0.99 * without);
  EXPECT_LT(OutputError(p, Dequantize(descended.unpacked)), 0.99 * with);
  EXPECT_EQ(refitted.unpacked.codes, plain.unpacked.codes);
}

TEST(QuantizeMatrixTest, RangeAloneDoesNotSeeTheInputs) {
  Problem p = RandomProblem(32, 512, 20);
  for (const int strip : {0, 20, 30, 31}) {  // large inputs
    for (int k = 0; k < 16; ++k) p.hessian.diagonal[strip * 16 + k] = 1e6f;
  }
  const auto fours = [&](const char* method) {
    const QuantizedMatrix q =
        Quantize(p, {.method = FindQuantizeMethod(method), .share4 = 0.25, .outliers = 0});
    const auto& order = q.unpacked.strip_order;
    return std::vector<uint16_t>(order.end() - 8, order.end());
  };
  EXPECT_THAT(fours("published"), ::testing::IsSupersetOf({0, 20, 30, 31}));
  EXPECT_THAT(fours("published-range"), ::testing::Not(::testing::IsSupersetOf({0, 20, 30, 31})));
}

TEST(QuantizeMatrixTest, ChoicesAreWhatWouldBeStored) {
  const Problem p = RandomProblem(48, 512, 18);
  ThreadTeam team(2);
  const MatrixSettings settings{.method = kSearched, .share4 = 0.0, .outliers = 0.002};
  const std::vector<StorageChoice> choices =
      StorageChoices(Weights(p), HessianOf(p), settings, &team, LaneKernelsFor(cpu::BestIsa()));
  ASSERT_EQ(choices.size(), 5u);  // 0, 8, 16, 24 and 32 strips
  for (size_t i = 0; i < choices.size(); ++i) {
    EXPECT_EQ(choices[i].strips4, static_cast<int>(8 * i));
    MatrixSettings exact = settings;
    exact.share4 = choices[i].strips4 / 32.0;
    const QuantizedMatrix q = Quantize(p, exact);
    EXPECT_EQ(static_cast<int64_t>(Bytes(q.unpacked).size()), choices[i].bytes) << i;
    exact.outliers = 0;  // they lower the loss further; rounded scales raise it a little
    const double error = Quantize(p, exact).quality.weighted_error;
    EXPECT_NEAR(error / choices[i].loss, 1.0, 0.1) << i;
  }
}

// Whatever type the source has: what its values are is all that counts.
TEST(QuantizeMatrixTest, TheTypeOfTheWeightsDoesNotMatter) {
  Problem p = RandomProblem(40, 256, 21);
  std::vector<uint16_t> halves;
  for (float& w : p.weights) {
    halves.push_back(quant::FloatToHalf(w));
    w = quant::HalfToFloat(halves.back());
  }
  const MatrixSettings settings{.method = kSearched};
  ThreadTeam team(2);
  TeamProducts products(&team);
  Hessian hessian = HessianOf(p);
  const Matrix matrix =
      DenseMatrix{.data = halves.data(), .dtype = DType::kF16, .rows = p.rows, .cols = p.cols};
  const auto from_halves =
      QuantizeMatrix("test", matrix, &hessian, settings, &products, LaneKernelsFor(cpu::BestIsa()));
  ASSERT_TRUE(from_halves.ok()) << from_halves.status();
  EXPECT_EQ(Bytes(from_halves->unpacked), Bytes(Quantize(p, settings).unpacked));
}

TEST(QuantizeMatrixTest, RefusesWhatItCannotQuantize) {
  ThreadTeam team(1);
  TeamProducts products(&team);
  const auto refusal = [&](const Problem& p) {
    Hessian hessian = HessianOf(p);
    const absl::Status status = QuantizeMatrix("layers.3.up_proj", Weights(p), &hessian, {},
                                               &products, LaneKernelsFor(cpu::BestIsa()))
                                    .status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("layers.3.up_proj"));
    return std::string(status.message());
  };
  Problem p = RandomProblem(8, 64, 12);
  p.weights[3 * 64 + 5] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(refusal(p), HasSubstr("weight [3, 5] is NaN"));
  p.weights[3 * 64 + 5] = -std::numeric_limits<float>::infinity();
  EXPECT_THAT(refusal(p), HasSubstr("weight [3, 5] is infinite"));
  p.weights[3 * 64 + 5] = 1e30f;
  EXPECT_THAT(refusal(p), HasSubstr("beyond the format's limit"));
  p = RandomProblem(8, 64, 12);
  p.hessian.diagonal[9] = std::numeric_limits<float>::infinity();
  EXPECT_THAT(refusal(p), HasSubstr("calibration inputs of channel 9"));
  EXPECT_THAT(refusal(RandomProblem(8, 40, 12)), HasSubstr("K = 40 input channels"));
}

TEST(StripChoiceTest, CountsWasteNoPadding) {
  const auto strips4 = [](int cols, double share) {
    return ChooseStripCounts(64, cols, share, false).strips4;
  };
  EXPECT_EQ(strips4(512, 0.25), 8);
  EXPECT_EQ(strips4(1536, 0.25), 24);
  EXPECT_EQ(strips4(4096, 0.25), 64);
  EXPECT_EQ(strips4(11008, 0.25), 168);  // as far as 176, and fewer bits
  EXPECT_EQ(strips4(512, 0.2), 8);
  EXPECT_EQ(strips4(512, 0.1), 0);
  EXPECT_EQ(strips4(512, 0.0), 0);
  EXPECT_EQ(strips4(512, 1.0), 32);
  // A row of 4 strips: one 4-bit chunk is smaller than one padded 2-bit chunk.
  EXPECT_EQ(strips4(64, 0.25), 4);
  EXPECT_EQ(strips4(64, 0.0), 0);
  for (int cols = 16; cols <= 4096; cols += 16) {
    for (const bool zero_points : {false, true}) {
      const StripCounts chosen = ChooseStripCounts(16, cols, 0.25, zero_points);
      ASSERT_EQ(chosen.strips2 + chosen.strips4, cols / 16);
      ASSERT_LE(chosen.strips2, 8 * chosen.shape.chunks2);
      ASSERT_LE(chosen.strips4, 4 * chosen.shape.chunks4);
      if (cols % 128 == 0) {
        ASSERT_EQ(chosen.shape.num_positions(), cols / 16) << cols;
        ASSERT_NEAR(chosen.strips4 / (cols / 16.0), 0.25, 4.0 / (cols / 16.0) + 1e-9) << cols;
      }
    }
  }
}

}  // namespace
}  // namespace fewbit
