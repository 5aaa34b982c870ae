// Dense 32-, 16- and 8-bit linear layers on a real device: against float64 over odd shapes, in
// poisoned memory, and bit for bit against themselves in other batches.
#include <cmath>

#include "kernels/cuda/dense.h"
#include "tests/gpu/gpu_values.h"

namespace fewbit::testing {
namespace {

using cuda::WeightType;

struct Weights {
  cuda::DeviceBuffer<uint8_t> data;
  cuda::DeviceBuffer<float> scales;
  cuda::DeviceDense view;
  std::vector<float> values;
};

DType StoredType(WeightType type) {
  return type == WeightType::kF32   ? DType::kF32
         : type == WeightType::kF16 ? DType::kF16
                                    : DType::kBF16;
}

Weights RandomWeights(WeightType type, int rows, int cols, std::mt19937* rng) {
  Weights w;
  const size_t count = static_cast<size_t>(rows) * cols;
  if (type == WeightType::kI8) {
    std::vector<uint8_t> codes(count);
    w.values.resize(count);
    const auto scales = NormalValues(rows, 0.01f, rng);
    for (size_t i = 0; i < count; ++i) {
      codes[i] = static_cast<uint8_t>(1 + (*rng)() % 255);
      w.values[i] = (codes[i] - 128) * scales[i / cols];
    }
    w.data = cuda::DeviceBuffer<uint8_t>(codes);
    w.scales = cuda::DeviceBuffer<float>(scales);
  } else {
    w.values = RoundTo(StoredType(type), NormalValues(count, 0.3f, rng));
    w.data = cuda::DeviceBuffer<uint8_t>(StoredAs(StoredType(type), w.values));
  }
  w.view = {w.data.get(), w.scales.get(), type, rows, cols};
  return w;
}

struct Inputs {
  DType type;
  std::vector<float> values;  // [m, cols]
  cuda::DeviceBuffer<uint8_t> data;
  Inputs(DType type, int m, int cols, std::mt19937* rng)
      : type(type),
        values(RoundTo(type, NormalValues(static_cast<size_t>(m) * cols, 1.5f, rng))),
        data(StoredAs(type, values)) {}
  const uint8_t* token(int t, int cols) const {
    return data.get() + size_t{1} * t * cols * (type == DType::kF32 ? 4 : 2);
  }
};

// y [m, rows] of tokens [first, first + m) of x; what lies between the rows must stay as it was.
std::vector<float> RunDenseOn(const Weights& w, const Inputs& x, int first, int m) {
  cuda::DenseCall call;
  const int64_t stride = w.view.rows + 3;
  auto y = Poisoned<float>(m * stride);
  call.w = w.view;
  call.m = m;
  call.x = x.token(first, w.view.cols);
  call.x_type = x.type;
  call.x_stride = w.view.cols;
  call.y = y.get();
  call.y_stride = stride;
  EXPECT_EQ(cuda::CheckDense(call), "");
  cuda::CheckCuda(cuda::LaunchDense(call, nullptr), "LaunchDense");
  const std::vector<float> all = y.Download();
  std::vector<float> out;
  for (int t = 0; t < m; ++t) {
    const auto row = all.begin() + t * stride;
    out.insert(out.end(), row, row + w.view.rows);
    for (int i = w.view.rows; i < stride; ++i) {
      EXPECT_TRUE(std::isnan(row[i])) << "written behind row " << t;
    }
  }
  return out;
}

std::vector<double> Reference(const Weights& w, const Inputs& x, int m) {
  const int rows = w.view.rows, cols = w.view.cols;
  std::vector<double> y(static_cast<size_t>(m) * rows);
  for (int t = 0; t < m; ++t) {
    for (int r = 0; r < rows; ++r) {
      double sum = 0.0;
      for (int c = 0; c < cols; ++c) {
        sum += static_cast<double>(x.values[size_t{1} * t * cols + c]) *
               w.values[size_t{1} * r * cols + c];
      }
      y[size_t{1} * t * rows + r] = sum;
    }
  }
  return y;
}

struct Case {
  WeightType weights;
  DType x;
  int rows, cols, m;
};

void RunCase(const Case& c, std::mt19937* rng) {
  SCOPED_TRACE("weights " + std::to_string(static_cast<int>(c.weights)) + ", x " +
               std::to_string(static_cast<int>(c.x)) + ", " + std::to_string(c.rows) + " x " +
               std::to_string(c.cols) + ", m " + std::to_string(c.m));
  const Weights w = RandomWeights(c.weights, c.rows, c.cols, rng);
  const Inputs x(c.x, c.m, c.cols, rng);
  const auto y = RunDenseOn(w, x, 0, c.m);
  // Float sums of up to 4096 terms; f32 inputs keep 22 bits.
  EXPECT_LT(RelativeError(y, Reference(w, x, c.m)), 5e-6);
}

TEST(DenseGpu, EveryCombinationMatchesFloat64) {
  std::mt19937 rng(41);
  const struct {
    int rows, cols;
  } shapes[] = {{33, 64}, {320, 512}, {129, 1024}, {65, 132}, {16, 4096}};
  const int token_counts[] = {1, 3, 8, 9, 16, 17, 31, 33, 64, 67, 130};
  int next = 0;
  for (auto shape : shapes) {
    for (auto weights : {WeightType::kF32, WeightType::kF16, WeightType::kI8}) {
      for (auto x : {DType::kF32, DType::kF16}) {
        for (int round = 0; round < 5; ++round, ++next) {
          RunCase(
              {weights, x, shape.rows, shape.cols, token_counts[next % std::size(token_counts)]},
              &rng);
        }
      }
    }
  }
}

TEST(DenseGpu, ReducedSet) {
  std::mt19937 rng(42);
  RunCase({WeightType::kI8, DType::kF32, 70, 128, 5}, &rng);
  RunCase({WeightType::kF16, DType::kF16, 50, 192, 17}, &rng);
  RunCase({WeightType::kF16, DType::kF32, 40, 64, 40}, &rng);
  RunCase({WeightType::kF32, DType::kF32, 21, 36, 9}, &rng);
}

// Tokens give the same bits alone and in every batch size of the small-m range.
TEST(DenseGpu, DoesNotDependOnTheBatch) {
  std::mt19937 rng(43);
  constexpr int kRows = 77, kCols = 1152;
  for (auto weights : {WeightType::kF32, WeightType::kF16, WeightType::kI8}) {
    for (auto type : {DType::kF32, DType::kF16}) {
      const Weights w = RandomWeights(weights, kRows, kCols, &rng);
      const Inputs x(type, cuda::kMaxDenseTokens, kCols, &rng);
      const auto all = RunDenseOn(w, x, 0, cuda::kMaxDenseTokens);
      for (int m : {1, 2, 7, 8, 13, 16, 24, 32, 50}) {
        for (int first : {0, 3, cuda::kMaxDenseTokens - m}) {
          if (first + m > cuda::kMaxDenseTokens) continue;
          const auto part = RunDenseOn(w, x, first, m);
          ASSERT_EQ(std::memcmp(part.data(), all.data() + first * kRows, part.size() * 4), 0)
              << "weights " << static_cast<int>(weights) << " x " << static_cast<int>(type) << " m "
              << m << " first " << first;
        }
      }
    }
  }
}

TEST(DenseGpu, NotANumberReachesTheResult) {
  std::mt19937 rng(44);
  const Weights w = RandomWeights(WeightType::kF16, 40, 128, &rng);
  Inputs x(DType::kF32, 2, 128, &rng);
  x.values[128 + 5] = std::numeric_limits<float>::infinity();
  x.data = cuda::DeviceBuffer<uint8_t>(StoredAs(DType::kF32, x.values));
  const auto y = RunDenseOn(w, x, 0, 2);
  for (int r = 0; r < 40; ++r) {
    EXPECT_TRUE(std::isfinite(y[r]));
    EXPECT_FALSE(std::isfinite(y[40 + r]));
  }
}

TEST(DenseGpu, LargeBatchesGoThroughCublas) {
  std::string error;
  const auto cublas = cuda::Cublas::Open(&error);
  if (cublas == nullptr) GTEST_SKIP() << error;
  std::mt19937 rng(45);
  constexpr int kM = 130, kRows = 96, kCols = 256;
  const Weights w = RandomWeights(WeightType::kF16, kRows, kCols, &rng);
  const Inputs x(DType::kF16, kM, kCols, &rng);
  auto y = Poisoned<float>(kM * kRows);
  cuda::DenseCall call;
  call.w = w.view;
  call.m = kM;
  call.x = x.data.get();
  call.x_stride = kCols;
  call.y = y.get();
  call.y_stride = kRows;
  EXPECT_EQ(cuda::RunDense(call, cublas.get(), nullptr), "");
  EXPECT_LT(RelativeError(y.Download(), Reference(w, x, kM)), 1e-6);
}

TEST(DenseGpu, RefusesWhatNoKernelTakes) {
  cuda::DenseCall call;
  call.w.rows = call.m = 1;
  call.w.cols = 64;
  EXPECT_EQ(cuda::CheckDense(call), "");
  call.w.type = WeightType::kBF16;
  EXPECT_NE(cuda::CheckDense(call).find("bf16"), std::string::npos);
  call.w.type = WeightType::kF16;
  call.w.cols = 62;
  EXPECT_NE(cuda::CheckDense(call).find("62 columns"), std::string::npos);
}

TEST(DenseGpu, ReducedSetQuantizeRows) {
  std::mt19937 rng(46);
  constexpr int kRows = 37, kCols = 1028;
  auto values = RoundTo(DType::kBF16, NormalValues(kRows * kCols, 0.02f, &rng));
  std::fill(values.begin() + 5 * kCols, values.begin() + 6 * kCols, 0.0f);
  const cuda::DeviceBuffer<uint8_t> data(StoredAs(DType::kBF16, values));
  auto codes = Poisoned<uint8_t>(values.size());
  auto scales = Poisoned<float>(kRows);
  cuda::CheckCuda(cuda::QuantizeRows({data.get(), nullptr, WeightType::kBF16, kRows, kCols},
                                     codes.get(), scales.get(), nullptr),
                  "QuantizeRows");
  const auto got = codes.Download();
  const auto got_scales = scales.Download();
  for (int r = 0; r < kRows; ++r) {
    float largest = 0;
    for (int c = 0; c < kCols; ++c) largest = std::max(largest, std::fabs(values[r * kCols + c]));
    const float scale = largest / 127.0f;
    ASSERT_EQ(got_scales[r], scale);
    for (int c = 0; c < kCols; ++c) {
      const float steps = scale > 0 ? std::nearbyint(values[r * kCols + c] / scale) : 0.0f;
      ASSERT_EQ(got[r * kCols + c], 128 + static_cast<int>(steps)) << r << ", " << c;
    }
  }
}

TEST(DenseGpu, ConvertToHalfCountsWhatItClamps) {
  const std::vector<float> values = {1.0f, -2.5f, 1e5f, -1e6f, 65504.0f, 0.0f, 3e-5f, 7.0f};
  const cuda::DeviceBuffer<uint8_t> data(StoredAs(DType::kF32, values));
  const cuda::DeviceBuffer<int> clamped(std::vector<int>{0});
  auto out = Poisoned<uint16_t>(values.size());
  cuda::CheckCuda(cuda::ConvertToHalf({data.get(), nullptr, WeightType::kF32, 2, 4}, out.get(),
                                      clamped.get(), nullptr),
                  "ConvertToHalf");
  EXPECT_EQ(clamped.Download()[0], 2);
  auto want = values;
  want[2] = 65504.0f, want[3] = -65504.0f;
  EXPECT_TRUE(ReadAs(DType::kF16, out.get(), values.size()) == RoundTo(DType::kF16, want));
}

}  // namespace
}  // namespace fewbit::testing
