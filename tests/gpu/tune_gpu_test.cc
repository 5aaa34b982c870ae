// Tuning's operators on a real device against those of the CPU, on odd shapes, outputs unwritten
// before.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/quant_pack.h"
#include "runtime/cuda/tune_ops.h"
#include "tests/gpu/tune_compare.h"

namespace fewbit::testing {
namespace {

using tune::LossSums;
using tune::Ops;
using Arrays = std::vector<float*>;

constexpr double kRounding = 2e-6;  // float sums in another order
constexpr double kTf32 = 1e-3;

TEST_F(TuneGpu, Memory) {
  const auto too_much = gpu_->Allocate(size_t{1} << 46);
  ASSERT_FALSE(too_much.ok());
  EXPECT_EQ(too_much.status().code(), absl::StatusCode::kResourceExhausted);
  const int64_t before = gpu_->PeakBytes();
  constexpr size_t kBytes = size_t{1} << 30;
  const auto data = gpu_->Allocate(kBytes);
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_GE(gpu_->PeakBytes(), static_cast<int64_t>(kBytes));
  gpu_->Free(*data);
  EXPECT_GE(gpu_->PeakBytes(), std::max<int64_t>(before, kBytes));

  std::mt19937 rng(1);
  ExpectSame({RandomFloats(1001, &rng), Unwritten(1001), RandomFloats(77, &rng)}, 0,
             [](Ops* ops, const Arrays& a, LossSums*) {
               ops->Copy(a[0] + 1, 999 * sizeof(float), a[1] + 2);
               ops->Zero(a[2] + 3, 11 * sizeof(float));
             });
}

struct ProductCase {
  const char* name;
  int m, n, k, outer, inner;
  bool transpose_a, transpose_b;
  // Matrices of a batch follow each other (with a gap), lie side by side in the rows of one matrix
  // as the heads of tokens do, or share one b.
  enum Layout { kApart, kHeads, kSharedB } layout;
  float alpha = 1.0f, beta = 0.0f;
};

class TuneGpuProducts : public TuneGpu {
 protected:
  // Strides of an operand with `rows` x `cols` as stored; heads lie side by side.
  static tune::Operand Lay(const ProductCase& c, int rows, int cols, bool transposed, bool shared) {
    if (transposed) std::swap(rows, cols);
    tune::Operand operand;
    operand.transposed = transposed;
    if (c.layout == ProductCase::kHeads) {
      operand.row_stride = int64_t{cols} * c.inner;
      operand.inner_stride = cols;
      operand.outer_stride = operand.row_stride * rows;
    } else {
      operand.row_stride = cols + 3;
      operand.inner_stride = operand.row_stride * rows;
      operand.outer_stride = operand.inner_stride * c.inner;
    }
    if (shared) operand.outer_stride = operand.inner_stride = 0;
    return operand;
  }

  void ExpectProduct(const ProductCase& c, bool exact, double tolerance) {
    std::mt19937 rng(7);
    tune::Product p;
    p.m = c.m;
    p.n = c.n;
    p.k = c.k;
    p.outer = c.outer;
    p.inner = c.inner;
    p.alpha = c.alpha;
    p.beta = c.beta;
    p.a = Lay(c, c.m, c.k, c.transpose_a, false);
    p.b = Lay(c, c.k, c.n, c.transpose_b, c.layout == ProductCase::kSharedB);
    const tune::Operand of_c = Lay(c, c.m, c.n, false, false);
    p.c_row_stride = of_c.row_stride;
    p.c_outer_stride = of_c.outer_stride;
    p.c_inner_stride = of_c.inner_stride;
    const auto room = [&c](const tune::Operand& of, int rows, int cols) {
      const int stored_rows = of.transposed ? cols : rows;
      return static_cast<size_t>(of.row_stride * stored_rows * c.outer * c.inner);
    };
    const size_t results = room(of_c, c.m, c.n);
    ExpectSame({RandomFloats(room(p.a, c.m, c.k), &rng, exact),
                RandomFloats(room(p.b, c.k, c.n), &rng, exact),
                c.beta == 0.0f ? Unwritten(results) : RandomFloats(results, &rng)},
               tolerance, [p](Ops* ops, const Arrays& arrays, LossSums*) {
                 tune::Product product = p;
                 product.a.data = arrays[0];
                 product.b.data = arrays[1];
                 product.c = arrays[2];
                 ops->Multiply(product);
               });
  }
};

class TuneGpuProduct : public TuneGpuProducts, public ::testing::WithParamInterface<ProductCase> {};

TEST_P(TuneGpuProduct, AsOnTheCpu) { ExpectProduct(GetParam(), true, kRounding); }

TEST_P(TuneGpuProduct, RoundsToTf32) { ExpectProduct(GetParam(), false, kTf32); }

constexpr ProductCase kProducts[] = {
    {"odd", 67, 45, 33, 1, 1, false, false, ProductCase::kApart},
    {"linear", 96, 160, 64, 1, 1, false, true, ProductCase::kApart, 0.5f},
    {"weight_gradient", 160, 64, 96, 1, 1, true, false, ProductCase::kApart, 1.0f, 1.0f},
    {"both_transposed", 19, 21, 23, 1, 1, true, true, ProductCase::kApart, -2.0f, 0.25f},
    {"batch", 17, 40, 24, 3, 5, false, true, ProductCase::kApart},
    {"outer_only", 32, 16, 48, 7, 1, false, false, ProductCase::kApart},
    {"heads", 33, 33, 16, 3, 6, false, true, ProductCase::kHeads, 0.25f},
    {"heads_add", 40, 16, 40, 2, 4, true, false, ProductCase::kHeads, 1.0f, 1.0f},
    {"shared_b", 24, 20, 36, 2, 3, false, false, ProductCase::kSharedB},
    {"row", 1, 130, 257, 1, 1, false, true, ProductCase::kApart},
};
INSTANTIATE_TEST_SUITE_P(Shapes, TuneGpuProduct, ::testing::ValuesIn(kProducts),
                         [](const auto& info) { return std::string(info.param.name); });

// Large products of operations that may round to bf16; what it holds exactly stays exact.
TEST_F(TuneGpuProducts, LargeInBf16) {
  auto rounding = tune::CreateCudaOps(0, DType::kBF16);
  ASSERT_TRUE(rounding.ok()) << rounding.status();
  std::swap(gpu_, *rounding);
  const ProductCase cases[] = {
      {"", 2056, 4096, 2112, 1, 1, false, true, ProductCase::kHeads, 0.5f},
      {"", 2056, 4096, 2112, 1, 1, false, false, ProductCase::kHeads, 1.0f, 1.0f},
      {"", 2056, 4096, 2112, 1, 1, true, false, ProductCase::kHeads}};
  for (const ProductCase& c : cases) {
    ExpectProduct(c, true, kRounding);
    ExpectProduct(c, false, 5e-3);
  }
  std::swap(gpu_, *rounding);
}

TEST_F(TuneGpu, Widen) {
  std::mt19937 rng(2);
  constexpr int kCount = 1003;
  std::vector<uint16_t> halves(2 * kCount);
  std::vector<float> values = RandomFloats(kCount, &rng);
  for (int i = 0; i < kCount; ++i) {
    halves[i] = quant::FloatToHalf(values[i]);
    uint32_t bits;
    std::memcpy(&bits, &values[i], sizeof(bits));
    halves[kCount + i] = static_cast<uint16_t>(bits >> 16);
  }
  std::vector<float> stored(kCount);
  std::memcpy(stored.data(), halves.data(), sizeof(float) * kCount);
  ExpectSame({stored, values, Unwritten(kCount), Unwritten(kCount), Unwritten(kCount)}, 0,
             [](Ops* ops, const Arrays& a, LossSums*) {
               const auto* half = reinterpret_cast<const uint16_t*>(a[0]);
               ops->Widen(half, DType::kF16, kCount, a[2]);
               ops->Widen(half + kCount, DType::kBF16, kCount, a[3]);
               ops->Widen(a[1], DType::kF32, kCount, a[4]);
             });
}

// A matrix with sub-scales in and beyond their range, and second-order scales of a real size.
struct ScaleCase {
  int rows, cols, tiles, outliers;
  bool rounded;
};

class TuneGpuScales : public TuneGpu, public ::testing::WithParamInterface<ScaleCase> {
 protected:
  static std::vector<float> AsFloats(const void* data, size_t bytes) {
    std::vector<float> out((bytes + sizeof(float) - 1) / sizeof(float));
    std::memcpy(out.data(), data, bytes);
    return out;
  }

  // Levels, tile of strip, sub-scales, second order, places of outliers, outliers.
  static std::vector<std::vector<float>> Draw(const ScaleCase& c, std::mt19937* rng) {
    const int strips = c.cols / 16;
    std::vector<int8_t> levels(static_cast<size_t>(c.rows) * c.cols);
    for (int8_t& level : levels) level = static_cast<int8_t>(static_cast<int>((*rng)() % 31) - 15);
    std::vector<int32_t> tile_of_strip(strips);
    for (int32_t& tile : tile_of_strip) tile = static_cast<int32_t>((*rng)() % c.tiles);
    std::uniform_real_distribution<float> uniform(-3.0f, 18.0f);
    std::vector<float> sub_scales(static_cast<size_t>(c.rows) * strips);
    for (float& s : sub_scales) s = uniform(*rng);
    sub_scales[0] = 0.0f;
    sub_scales[1 % sub_scales.size()] = 15.0f;
    std::vector<float> second_order = RandomFloats(static_cast<size_t>(c.rows) * c.tiles, rng);
    for (float& d : second_order) d *= 0.01f;
    std::vector<int32_t> at(c.outliers);
    for (int i = 0; i < c.outliers; ++i) {
      at[i] = static_cast<int32_t>(static_cast<int64_t>(i) * c.rows * c.cols / c.outliers);
    }
    return {AsFloats(levels.data(), levels.size()),
            AsFloats(tile_of_strip.data(), tile_of_strip.size() * sizeof(int32_t)),
            sub_scales,
            second_order,
            AsFloats(at.data(), at.size() * sizeof(int32_t)),
            RandomFloats(c.outliers, rng)};
  }

  static tune::ScaledMatrix MatrixOf(const ScaleCase& c, const Arrays& a) {
    return {.rows = c.rows,
            .cols = c.cols,
            .tiles = c.tiles,
            .levels = reinterpret_cast<const int8_t*>(a[0]),
            .tile_of_strip = reinterpret_cast<const int32_t*>(a[1]),
            .sub_scales = a[2],
            .second_order = a[3],
            .num_outliers = c.outliers,
            .outlier_at = c.outliers > 0 ? reinterpret_cast<const int32_t*>(a[4]) : nullptr,
            .outliers = c.outliers > 0 ? a[5] : nullptr,
            .rounded = c.rounded};
  }
};

TEST_P(TuneGpuScales, WeightsAndGradients) {
  const ScaleCase& c = GetParam();
  std::mt19937 rng(3);
  auto arrays = Draw(c, &rng);
  const size_t weights = static_cast<size_t>(c.rows) * c.cols;
  arrays.push_back(Unwritten(weights));
  arrays.push_back(RandomFloats(weights, &rng));           // their gradient
  arrays.push_back(RandomFloats(arrays[2].size(), &rng));  // gradients that are added to
  arrays.push_back(RandomFloats(arrays[3].size(), &rng));
  arrays.push_back(RandomFloats(arrays[5].size(), &rng));
  ExpectSame(arrays, kRounding, [&c](Ops* ops, const Arrays& a, LossSums*) {
    const tune::ScaledMatrix matrix = MatrixOf(c, a);
    ops->Weights(matrix, a[6]);
    ops->WeightGradients(matrix, a[7], {a[8], a[9], a[10]});
  });
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, TuneGpuScales,
    ::testing::Values(ScaleCase{1, 16, 1, 0, true}, ScaleCase{5, 48, 2, 7, true},
                      ScaleCase{37, 1040, 5, 300, true}, ScaleCase{37, 1040, 5, 300, false},
                      ScaleCase{19, 28672, 112, 1000, true}, ScaleCase{3, 131072, 300, 0, false}));

TEST_F(TuneGpu, AddAndBias) {
  std::mt19937 rng(4);
  constexpr int kRows = 13, kCols = 307;
  ExpectSame({RandomFloats(kRows * kCols, &rng), RandomFloats(kCols, &rng),
              RandomFloats(kRows * kCols, &rng)},
             0, [](Ops* ops, const Arrays& a, LossSums*) {
               ops->Add(a[0], kRows * kCols, a[2]);
               ops->AddBias(a[1], kRows, kCols, a[2]);
             });
}

TEST_F(TuneGpu, RmsNorm) {
  const std::pair<int, int> shapes[] = {{1, 2},    {3, 5},     {70, 128},
                                        {9, 1000}, {2500, 96}, {301, 4099}};
  for (const auto& [rows, cols] : shapes) {
    SCOPED_TRACE(::testing::Message() << rows << " x " << cols);
    std::mt19937 rng(5);
    const size_t count = static_cast<size_t>(rows) * cols;
    // x, weight, y, inverse; dy, dx, d_weight; dy that dx replaces
    ExpectSame({RandomFloats(count, &rng), RandomFloats(cols, &rng), Unwritten(count),
                Unwritten(rows), RandomFloats(count, &rng), Unwritten(count),
                RandomFloats(cols, &rng), RandomFloats(count, &rng)},
               1e-5, [rows = rows, cols = cols](Ops* ops, const Arrays& a, LossSums*) {
                 ops->RmsNorm(a[0], a[1], 1e-5f, rows, cols, a[2], a[3]);
                 ops->RmsNormBackward(a[0], a[1], a[3], a[4], rows, cols, false, a[5], nullptr);
                 ops->RmsNormBackward(a[0], a[1], a[3], a[4], rows, cols, true, a[5], a[6]);
                 ops->RmsNormBackward(a[0], a[1], a[3], a[7], rows, cols, false, a[7], a[6]);
               });
  }
}

TEST_F(TuneGpu, Rope) {
  for (const bool interleaved : {false, true}) {
    std::mt19937 rng(6);
    tune::RopeArgs args{.rows = 21,
                        .context = 7,
                        .heads = 3,
                        .head_dim = 22,
                        .pairs = 9,
                        .interleaved = interleaved};
    const size_t count = static_cast<size_t>(args.rows) * args.heads * args.head_dim;
    std::vector<float> cosines, sines;
    for (int i = 0; i < args.context * args.pairs; ++i) {
      cosines.push_back(std::cos(0.37f * i));
      sines.push_back(std::sin(0.37f * i));
    }
    const std::vector<float> x = RandomFloats(count, &rng);
    ExpectSame({x, x, cosines, sines}, kRounding, [&args](Ops* ops, const Arrays& a, LossSums*) {
      tune::RopeArgs with = args;
      with.cosines = a[2];
      with.sines = a[3];
      ops->Rope(with, false, a[0]);
      ops->Rope(with, true, a[1]);
    });
  }
}

TEST_F(TuneGpu, CausalSoftmax) {
  struct Case {
    int matrices, context, window;
  };
  for (const Case& c : {Case{1, 1, 0}, Case{5, 7, 0}, Case{5, 7, 3}, Case{6, 100, 33},
                        Case{3, 515, 0}, Case{1, 1100, 1}}) {
    SCOPED_TRACE(::testing::Message()
                 << c.matrices << " x " << c.context << ", window " << c.window);
    std::mt19937 rng(8);
    const size_t count = static_cast<size_t>(c.matrices) * c.context * c.context;
    std::vector<float> scores = RandomFloats(count, &rng), gradients = RandomFloats(count, &rng);
    for (float& x : scores) x *= 5.0f;
    for (int i = 0; i < c.context; ++i) {  // what is not kept may hold anything
      for (int j = i + 1; j < c.context; ++j) {
        scores[i * c.context + j] = gradients[i * c.context + j] = NAN;
      }
    }
    ExpectSame({scores, gradients}, 1e-5, [&c](Ops* ops, const Arrays& a, LossSums*) {
      ops->CausalSoftmax(c.matrices, c.context, c.window, a[0]);
      ops->CausalSoftmaxBackward(c.matrices, c.context, c.window, a[0], a[1]);
    });
  }
}

TEST_F(TuneGpu, SiluMul) {
  std::mt19937 rng(9);
  constexpr int kCount = 5003;
  std::vector<float> gate = RandomFloats(kCount, &rng);
  for (float& x : gate) x *= 20.0f;  // where exp overflows nothing may break
  gate[0] = -120.0f;
  gate[1] = 120.0f;
  ExpectSame({gate, RandomFloats(kCount, &rng), Unwritten(kCount), RandomFloats(kCount, &rng)},
             1e-5, [](Ops* ops, const Arrays& a, LossSums*) {
               ops->SiluMul(a[0], a[1], kCount, a[2]);
               ops->SiluMulBackward(a[3], kCount, a[0], a[1]);
             });
}

TEST_F(TuneGpu, KlDivergence) {
  const std::pair<int, int> shapes[] = {{1, 2}, {7, 5}, {33, 1001}, {5, 32003}, {3, 152064}};
  for (const auto& [rows, vocab] : shapes) {
    SCOPED_TRACE(::testing::Message() << rows << " x " << vocab);
    std::mt19937 rng(10);
    const size_t count = static_cast<size_t>(rows) * vocab;
    std::vector<float> teacher = RandomFloats(count, &rng), student = teacher;
    const std::vector<float> noise = RandomFloats(count, &rng);
    for (size_t i = 0; i < count; ++i) {
      teacher[i] *= 4.0f;
      student[i] = teacher[i] + noise[i];
    }
    teacher[vocab - 1] = teacher[0] = 30.0f;  // a tie: the first counts
    student[vocab - 1] = 31.0f;
    ExpectSame({teacher, student}, 2e-5,
               [rows = rows, vocab = vocab](Ops* ops, const Arrays& a, LossSums* sums) {
                 ops->KlDivergence(a[0], rows, vocab, 1.0f, false, a[1], sums);
                 ops->KlDivergence(a[0], rows, vocab, 0.125f, true, a[1], sums);
               });
  }
}

TEST_F(TuneGpu, Adam) {
  std::mt19937 rng(12);
  constexpr int kCount = 2005;
  std::vector<float> reference = RandomFloats(kCount, &rng);
  for (float& x : reference) x = std::abs(x) + 0.01f;
  for (const bool relative : {false, true}) {
    ExpectSame({RandomFloats(kCount, &rng), RandomFloats(kCount, &rng),
                std::vector<float>(kCount, 0.0f), std::vector<float>(kCount, 0.0f), reference},
               kRounding, [relative](Ops* ops, const Arrays& a, LossSums*) {
                 tune::AdamArgs args{.count = kCount,
                                     .values = a[0],
                                     .gradients = a[1],
                                     .first_moments = a[2],
                                     .second_moments = a[3],
                                     .reference = relative ? a[4] : nullptr,
                                     .learning_rate = 0.1f};
                 args.min_value = -1.0f;
                 args.max_value = 1.5f;
                 for (args.step = 1; args.step <= 3; ++args.step) ops->Adam(args);
               });
  }
}

}  // namespace
}  // namespace fewbit::testing
