// The operators of tuning: values against plain formulas in double, gradients against central
// differences in double, float against double, and every instruction set against the portable one,
// bit for bit.
#include "kernels/cpu/gradients.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fewbit::cpu {
namespace {

using ::testing::DoubleNear;
using ::testing::Each;
using ::testing::Pointwise;

using Values = std::vector<double>;

const GradientTable<double>& Double() { return DoubleGradients(); }

Values Random(size_t n, uint32_t seed, double scale = 1.0, double mean = 0.0) {
  std::mt19937 engine(seed);
  std::normal_distribution<double> normal(mean, scale);
  Values out(n);
  // Whole floats, so that both types start from the same numbers.
  for (double& x : out) x = static_cast<float>(normal(engine));
  return out;
}

template <typename T>
std::vector<T> As(const Values& x) {
  return std::vector<T>(x.begin(), x.end());
}

double Dot(const Values& a, const Values& b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// Gradient of `loss` at x by central differences.
Values Numeric(Values x, const std::function<double(const Values&)>& loss) {
  constexpr double kStep = 1e-5;
  Values gradient(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double at = x[i];
    x[i] = at + kStep;
    const double above = loss(x);
    x[i] = at - kStep;
    gradient[i] = (above - loss(x)) / (2 * kStep);
    x[i] = at;
  }
  return gradient;
}

auto Near(double tolerance, const Values& want) { return Pointwise(DoubleNear(tolerance), want); }

// Central differences with a step of 1e-5 on values of about 1 err by some 1e-9.
constexpr double kNumeric = 2e-8;

// Runs `fn(table)`, which returns all that an operator wrote, for float on every instruction set:
// the same bits on all, and within `tolerance` of the doubles.
template <typename Fn>
void ExpectFloatLikeDouble(double tolerance, const Fn& fn) {
  const auto want = fn(Double());
  const auto portable = fn(FloatGradients(Isa::kPortable));
  EXPECT_THAT(portable, Near(tolerance, Values(want.begin(), want.end())));
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512}) {
    if (!IsaSupported(isa)) continue;
    const auto got = fn(FloatGradients(isa));
    ASSERT_EQ(got.size(), portable.size());
    EXPECT_EQ(std::memcmp(got.data(), portable.data(), got.size() * sizeof(got[0])), 0)
        << IsaName(isa);
  }
}

template <typename T>
T TypeOf(const GradientTable<T>&);
template <typename Table>
using ElementOf = decltype(TypeOf(std::declval<const Table&>()));

template <typename T>
void Append(const std::vector<T>& more, std::vector<T>* all) {
  all->insert(all->end(), more.begin(), more.end());
}

class Sizes : public ::testing::TestWithParam<int> {};

TEST_P(Sizes, RmsNorm) {
  const int rows = 3, cols = GetParam();
  const Values x = Random(rows * cols, 1), weight = Random(cols, 2, 0.3, 1.0);
  const Values dy = Random(rows * cols, 3), start = Random(rows * cols, 4);
  const double eps = 1e-3;
  const auto forward = [&](const Values& in, const Values& w) {
    Values y(in.size()), inverse(rows);
    Double().rms_norm(in.data(), w.data(), eps, rows, cols, y.data(), inverse.data());
    return y;
  };
  Values want;
  for (int r = 0; r < rows; ++r) {
    double squares = 0.0;
    for (int i = 0; i < cols; ++i) squares += x[r * cols + i] * x[r * cols + i];
    for (int i = 0; i < cols; ++i) {
      want.push_back(x[r * cols + i] * weight[i] / std::sqrt(squares / cols + eps));
    }
  }
  EXPECT_THAT(forward(x, weight), Near(1e-12, want));

  Values inverse(rows), y(x.size()), dx(x.size()), d_weight(cols, 0.25);
  Double().rms_norm(x.data(), weight.data(), eps, rows, cols, y.data(), inverse.data());
  Double().rms_norm_backward(x.data(), weight.data(), inverse.data(), dy.data(), rows, cols, false,
                             dx.data(), d_weight.data());
  const Values numeric_x =
      Numeric(x, [&](const Values& in) { return Dot(forward(in, weight), dy); });
  Values numeric_weight = Numeric(weight, [&](const Values& w) { return Dot(forward(x, w), dy); });
  for (double& d : numeric_weight) d += 0.25;
  EXPECT_THAT(dx, Near(kNumeric, numeric_x));
  EXPECT_THAT(d_weight, Near(kNumeric, numeric_weight));

  // Added to what is there, without the weight's gradient; and in the place of dy.
  Values added = start, in_place = dy, sum = start;
  Double().rms_norm_backward(x.data(), weight.data(), inverse.data(), dy.data(), rows, cols, true,
                             added.data(), nullptr);
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += dx[i];
  EXPECT_THAT(added, Near(1e-14, sum));
  Values d_weight_again(cols, 0.25);
  Double().rms_norm_backward(x.data(), weight.data(), inverse.data(), in_place.data(), rows, cols,
                             false, in_place.data(), d_weight_again.data());
  EXPECT_EQ(in_place, dx);
  EXPECT_EQ(d_weight_again, d_weight);

  ExpectFloatLikeDouble(2e-5, [&](const auto& table) {
    using T = ElementOf<decltype(table)>;
    std::vector<T> out(x.size()), inverse_rms(rows), d_in(x.size()), d_w(cols);
    table.rms_norm(As<T>(x).data(), As<T>(weight).data(), static_cast<T>(eps), rows, cols,
                   out.data(), inverse_rms.data());
    table.rms_norm_backward(As<T>(x).data(), As<T>(weight).data(), inverse_rms.data(),
                            As<T>(dy).data(), rows, cols, false, d_in.data(), d_w.data());
    Append(inverse_rms, &out);
    Append(d_in, &out);
    Append(d_w, &out);
    return out;
  });
}

TEST_P(Sizes, Softmax) {
  const int cols = GetParam();
  const Values x = Random(cols, 5, 2.0), dy = Random(cols, 6);
  for (const auto& [begin, end] : {std::pair(0, cols), std::pair(cols / 3, cols - cols / 4)}) {
    const auto forward = [&](Values row) {
      Double().softmax(begin, end, cols, row.data());
      return row;
    };
    double total = 0.0;
    for (int i = begin; i < end; ++i) total += std::exp(x[i]);
    Values want(cols);
    for (int i = begin; i < end; ++i) want[i] = std::exp(x[i]) / total;
    const Values y = forward(x);
    EXPECT_THAT(y, Near(1e-13, want));

    Values dx = dy;
    Double().softmax_backward(begin, end, cols, y.data(), dx.data());
    EXPECT_THAT(dx,
                Near(kNumeric, Numeric(x, [&](const Values& in) { return Dot(forward(in), dy); })));
    ExpectFloatLikeDouble(1e-6, [&, begin = begin, end = end](const auto& table) {
      using T = ElementOf<decltype(table)>;
      std::vector<T> out = As<T>(x), d = As<T>(dy);
      table.softmax(begin, end, cols, out.data());
      table.softmax_backward(begin, end, cols, out.data(), d.data());
      Append(d, &out);
      return out;
    });
  }
}

TEST(Softmax, FarApart) {
  ExpectFloatLikeDouble(1e-6, [](const auto& table) {
    std::vector<ElementOf<decltype(table)>> row = {-1e30f, 3e4f, -200.0f, 3e4f, 29990.0f};
    table.softmax(0, 5, 5, row.data());
    return row;
  });
  std::vector<float> row = {1.0f, std::numeric_limits<float>::quiet_NaN(), 2.0f};
  FloatGradients(BestIsa()).softmax(0, 3, 3, row.data());
  EXPECT_TRUE(std::isnan(row[0]) && std::isnan(row[1]) && std::isnan(row[2]));
}

TEST_P(Sizes, SiluMul) {
  const int n = GetParam();
  const Values gate = Random(n, 7, 3.0), up = Random(n, 8), dy = Random(n, 9);
  const auto forward = [&](const Values& g, const Values& u) {
    Values y(n);
    Double().silu_mul(g.data(), u.data(), n, y.data());
    return y;
  };
  Values want(n);
  for (int i = 0; i < n; ++i) want[i] = gate[i] / (1.0 + std::exp(-gate[i])) * up[i];
  EXPECT_THAT(forward(gate, up), Near(1e-13, want));
  Values d_gate = gate, d_up = up;
  Double().silu_mul_backward(dy.data(), n, d_gate.data(), d_up.data());
  EXPECT_THAT(
      d_gate,
      Near(kNumeric, Numeric(gate, [&](const Values& g) { return Dot(forward(g, up), dy); })));
  EXPECT_THAT(d_up, Near(kNumeric,
                         Numeric(up, [&](const Values& u) { return Dot(forward(gate, u), dy); })));
  ExpectFloatLikeDouble(5e-6, [&](const auto& table) {
    using T = ElementOf<decltype(table)>;
    std::vector<T> g = As<T>(gate), u = As<T>(up), out(n);
    table.silu_mul(g.data(), u.data(), n, out.data());
    table.silu_mul_backward(As<T>(dy).data(), n, g.data(), u.data());
    Append(g, &out);
    Append(u, &out);
    return out;
  });
}

TEST(SiluMul, Extremes) {
  const Values gate = {-1e4, -200.0, -90.0, 0.0, 90.0, 200.0, 1e4};
  ExpectFloatLikeDouble(1e-2, [&](const auto& table) {
    using T = ElementOf<decltype(table)>;
    std::vector<T> g = As<T>(gate), u(gate.size(), T(1)), dy(gate.size(), T(1)), out(gate.size());
    table.silu_mul(g.data(), u.data(), g.size(), out.data());
    table.silu_mul_backward(dy.data(), g.size(), g.data(), u.data());
    Append(g, &out);
    Append(u, &out);
    return out;
  });
}

TEST(Rope, TurnsPairsAndBack) {
  const int heads = 3, head_dim = 20;
  for (const bool interleaved : {false, true}) {
    for (const int pairs : {1, 7, 10}) {
      SCOPED_TRACE(::testing::Message() << pairs << " pairs, interleaved " << interleaved);
      const Values x = Random(heads * head_dim, 10), dy = Random(heads * head_dim, 11);
      Values cosines(pairs), sines(pairs);
      for (int i = 0; i < pairs; ++i) cosines[i] = std::cos(i + 0.3), sines[i] = std::sin(i + 0.3);
      const auto turn = [&](Values v, bool inverse) {
        Double().rope(cosines.data(), sines.data(), heads, head_dim, pairs, interleaved, inverse,
                      v.data());
        return v;
      };
      Values want = x;
      for (int h = 0; h < heads; ++h) {
        for (int i = 0; i < pairs; ++i) {
          const int a = h * head_dim + (interleaved ? 2 * i : i), b = a + (interleaved ? 1 : pairs);
          want[a] = x[a] * cosines[i] - x[b] * sines[i];
          want[b] = x[a] * sines[i] + x[b] * cosines[i];
        }
      }
      EXPECT_THAT(turn(x, false), Near(1e-14, want));
      EXPECT_THAT(turn(want, true), Near(1e-14, x));
      EXPECT_THAT(
          turn(dy, true),
          Near(kNumeric, Numeric(x, [&](const Values& v) { return Dot(turn(v, false), dy); })));
      ExpectFloatLikeDouble(1e-6, [&](const auto& table) {
        using T = ElementOf<decltype(table)>;
        std::vector<T> v = As<T>(x);
        table.rope(As<T>(cosines).data(), As<T>(sines).data(), heads, head_dim, pairs, interleaved,
                   false, v.data());
        return v;
      });
    }
  }
}

double Divergence(const Values& teacher, const Values& student) {
  const auto log_softmax = [](Values x) {
    const double max = *std::max_element(x.begin(), x.end());
    double total = 0.0;
    for (const double v : x) total += std::exp(v - max);
    for (double& v : x) v -= max + std::log(total);
    return x;
  };
  const Values p = log_softmax(teacher), q = log_softmax(student);
  double kl = 0.0;
  for (size_t i = 0; i < p.size(); ++i) kl += std::exp(p[i]) * (p[i] - q[i]);
  return kl;
}

TEST_P(Sizes, Divergence) {
  const int vocab = GetParam();
  const Values teacher = Random(vocab, 12, 3.0);
  Values student = Random(vocab, 13, 0.3);
  for (int i = 0; i < vocab; ++i) student[i] += teacher[i];
  const auto loss = [&](Values s) {
    return Double().divergence(teacher.data(), vocab, 1.0, false, s.data()).kl;
  };
  EXPECT_NEAR(loss(student), Divergence(teacher, student), 1e-13);
  Values gradient = student;
  const RowDivergence got = Double().divergence(teacher.data(), vocab, 0.7, true, gradient.data());
  EXPECT_EQ(got.kl, loss(student));
  Values numeric = Numeric(student, loss);
  for (double& d : numeric) d *= 0.7;
  EXPECT_THAT(gradient, Near(kNumeric, numeric));
  const auto top = [](const Values& x) { return std::max_element(x.begin(), x.end()) - x.begin(); };
  EXPECT_EQ(got.same_top, top(teacher) == top(student));

  ExpectFloatLikeDouble(2e-6, [&](const auto& table) {
    using T = ElementOf<decltype(table)>;
    std::vector<T> s = As<T>(student);
    const RowDivergence row =
        table.divergence(As<T>(teacher).data(), vocab, T(0.7), true, s.data());
    s.push_back(static_cast<T>(row.kl));
    return s;
  });
}

// A small divergence over a large vocabulary, far from 0, is not lost in rounding.
TEST(Divergence, SmallAndFarFromZero) {
  const int vocab = 32000;
  const Values teacher = Random(vocab, 14, 2.0, 300.0);
  Values student = Random(vocab, 15, 0.01);
  for (int i = 0; i < vocab; ++i) student[i] = static_cast<float>(student[i] + teacher[i]);
  const double want = Divergence(teacher, student);
  ASSERT_GT(want, 2e-5);
  ASSERT_LT(want, 1e-4);
  std::vector<float> s = As<float>(student);
  const double got = FloatGradients(BestIsa())
                         .divergence(As<float>(teacher).data(), vocab, 1.0f, false, s.data())
                         .kl;
  EXPECT_NEAR(got, want, 1e-3 * want);
}

TEST(Divergence, TiesGoToTheLowestIndex) {
  for (const int vocab : {3, 40}) {
    std::vector<float> teacher(vocab, 1.0f), student(vocab, 2.0f);
    const auto same = [&] {
      std::vector<float> s = student;
      return FloatGradients(BestIsa())
          .divergence(teacher.data(), vocab, 1.0f, false, s.data())
          .same_top;
    };
    EXPECT_TRUE(same());
    student[vocab - 1] = 2.5f;
    EXPECT_FALSE(same());
    teacher[vocab - 1] = 1.5f;
    EXPECT_TRUE(same());
    teacher[1] = 1.5f;
    EXPECT_FALSE(same());
  }
}

// Levels and the tiles of strips of a row, with the scales in whatever type.
struct Row {
  int cols = 0;
  std::vector<int8_t> levels;
  std::vector<int32_t> tiles;
  Values sub_scales, second_order;

  explicit Row(int strips) : cols(16 * strips) {
    std::mt19937 engine(16);
    for (int i = 0; i < cols; ++i) levels.push_back(static_cast<int8_t>(engine() % 31) - 15);
    for (int i = 0; i < strips; ++i) tiles.push_back(static_cast<int32_t>(engine() % 3));
    sub_scales = Random(strips, 17, 3.0, 7.0);
    for (double& s : sub_scales) s = std::clamp(s, 0.6, 14.4);
    second_order = Random(3, 18, 0.01);
  }

  template <typename T>
  std::vector<T> Weights(const GradientTable<T>& table, const Values& s, const Values& d,
                         bool rounded) const {
    const std::vector<T> sub = As<T>(s), second = As<T>(d);
    std::vector<T> weights(cols);
    table.scaled_weights({cols, levels.data(), tiles.data(), sub.data(), second.data(), rounded},
                         weights.data());
    return weights;
  }
  // Gradients of s, then of d, added to `start`.
  template <typename T>
  std::vector<T> Gradients(const GradientTable<T>& table, const Values& s, const Values& dw,
                           bool rounded, double start = 0.0) const {
    const std::vector<T> sub = As<T>(s), second = As<T>(second_order);
    std::vector<T> d_sub(s.size(), static_cast<T>(start)), d_second(3, static_cast<T>(start));
    table.scaled_gradients({cols, levels.data(), tiles.data(), sub.data(), second.data(), rounded},
                           As<T>(dw).data(), d_sub.data(), d_second.data());
    Append(d_second, &d_sub);
    return d_sub;
  }
};

TEST(ScaledWeights, GradientsOfUnroundedScales) {
  for (const int strips : {1, 5, 32}) {
    const Row row(strips);
    const Values dw = Random(row.cols, 19);
    const auto loss = [&](const Values& s, const Values& d) {
      return Dot(row.Weights(Double(), s, d, false), dw);
    };
    Values want =
        Numeric(row.sub_scales, [&](const Values& s) { return loss(s, row.second_order); });
    Append(Numeric(row.second_order, [&](const Values& d) { return loss(row.sub_scales, d); }),
           &want);
    for (double& d : want) d += 0.5;
    EXPECT_THAT(row.Gradients(Double(), row.sub_scales, dw, false, 0.5), Near(1e-6, want));
    ExpectFloatLikeDouble(2e-3, [&](const auto& table) {
      auto out = row.Weights(table, row.sub_scales, row.second_order, true);
      Append(row.Gradients(table, row.sub_scales, dw, true), &out);
      return out;
    });
  }
}

TEST(ScaledWeights, RoundedCountsAsTheWholeScale) {
  const Row row(8);
  const Values between = {-3.0, 0.49, 0.5, 1.5, 2.51, 14.6, 15.4, 99.0};
  const Values whole = {0.0, 0.0, 0.0, 2.0, 3.0, 15.0, 15.0, 15.0};
  EXPECT_EQ(row.Weights(Double(), between, row.second_order, true),
            row.Weights(Double(), whole, row.second_order, false));

  // Straight through: the gradients are those at the whole scales.
  const Values dw = Random(row.cols, 20);
  const Values inside = {0.2, 0.49, 0.5, 1.5, 2.51, 14.6, 14.9, 7.0};
  const Values rounded = {0.0, 0.0, 0.0, 2.0, 3.0, 15.0, 15.0, 7.0};
  EXPECT_EQ(row.Gradients(Double(), inside, dw, true), row.Gradients(Double(), rounded, dw, false));
}

TEST(ScaledWeights, ClampedScalesAreNotPushedFurther) {
  const Row row(4);
  const Values dw = Random(row.cols, 21);
  const Values scales = {0.0, -1.0, 15.0, 15.5};
  const Values free = row.Gradients(Double(), scales, dw, false);
  Values minus = dw;
  for (double& d : minus) d = -d;
  const Values kept = row.Gradients(Double(), scales, dw, true);
  const Values opposite = row.Gradients(Double(), scales, minus, true);
  for (int i = 0; i < 4; ++i) {
    ASSERT_NE(free[i], 0.0);
    // A step goes against the gradient: down where it is positive.
    const bool outward = (i < 2) == (free[i] > 0.0);
    EXPECT_EQ(kept[i], outward ? 0.0 : free[i]) << i;
    EXPECT_EQ(opposite[i], outward ? -free[i] : 0.0) << i;
  }
}

TEST_P(Sizes, Adam) {
  const int n = GetParam();
  const Values gradients = Random(n, 22), reference = Random(n, 23, 0.1, 1.0);
  for (const bool with_reference : {false, true}) {
    Values value = Random(n, 24), first(n, 0.0), second(n, 0.0), m(n, 0.0), v(n, 0.0);
    Values want = value;
    for (int step = 1; step <= 3; ++step) {
      const AdamConstants<double> c = {0.05,
                                       0.9,
                                       0.99,
                                       1e-8,
                                       1.0 / (1.0 - std::pow(0.9, step)),
                                       1.0 / (1.0 - std::pow(0.99, step)),
                                       -1.0,
                                       1.0};
      Double().adam(c, n, gradients.data(), with_reference ? reference.data() : nullptr,
                    value.data(), first.data(), second.data());
      for (int i = 0; i < n; ++i) {
        const double unit = with_reference ? reference[i] : 1.0;
        const double g = gradients[i] * unit;
        m[i] = 0.9 * m[i] + 0.1 * g;
        v[i] = 0.99 * v[i] + 0.01 * g * g;
        const double m_hat = m[i] / (1.0 - std::pow(0.9, step));
        const double v_hat = v[i] / (1.0 - std::pow(0.99, step));
        want[i] = std::clamp(want[i] - 0.05 * unit * m_hat / (std::sqrt(v_hat) + 1e-8), -1.0, 1.0);
      }
    }
    EXPECT_THAT(value, Near(1e-12, want));
    ExpectFloatLikeDouble(2e-6, [&](const auto& table) {
      using T = ElementOf<decltype(table)>;
      const AdamConstants<T> c = {T(0.05), T(0.9), T(0.99), T(1e-8), T(10), T(100), T(-1), T(1)};
      std::vector<T> out = As<T>(want), a = As<T>(first), b = As<T>(second);
      table.adam(c, n, As<T>(gradients).data(), with_reference ? As<T>(reference).data() : nullptr,
                 out.data(), a.data(), b.data());
      Append(a, &out);
      return out;
    });
  }
}

TEST_P(Sizes, Add) {
  const int n = GetParam();
  const Values x = Random(n, 25), y = Random(n, 26);
  Values sum(n);
  for (int i = 0; i < n; ++i) sum[i] = x[i] + y[i];
  Values got = y;
  Double().add(x.data(), n, got.data());
  EXPECT_EQ(got, sum);
  ExpectFloatLikeDouble(1e-4, [&](const auto& table) {
    using T = ElementOf<decltype(table)>;
    std::vector<T> out = As<T>(y);
    table.add(As<T>(x).data(), n, out.data());
    return out;
  });
}

TEST(ToBFloat16, NearestHalvesToEven) {
  const uint32_t bits[][2] = {{0x3F800000, 0x3F80}, {0x3F807FFF, 0x3F80}, {0x3F808000, 0x3F80},
                              {0x3F808001, 0x3F81}, {0x3F818000, 0x3F82}, {0xBF818000, 0xBF82},
                              {0x7F7FFFFF, 0x7F80}, {0x7F800000, 0x7F80}, {0xFF800000, 0xFF80},
                              {0x7FFFFFFF, 0x7FC0}, {0x7F800001, 0x7FC0}, {0x00000000, 0x0000},
                              {0x80000000, 0x8000}, {0x00018000, 0x0002}};
  for (const Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
    if (!IsaSupported(isa)) continue;
    std::vector<float> x;
    std::vector<uint16_t> got(std::size(bits)), want;
    for (const auto& [from, to] : bits) {
      float value;
      std::memcpy(&value, &from, sizeof(value));
      x.push_back(value);
      want.push_back(static_cast<uint16_t>(to));
    }
    FloatGradients(isa).to_bfloat16(x.data(), 1.0f, x.size(), got.data());
    EXPECT_EQ(got, want) << IsaName(isa);
    const float three = 3.0f;
    FloatGradients(isa).to_bfloat16(&three, -0.125f, 1, got.data());
    EXPECT_EQ(got[0], 0xBEC0) << IsaName(isa);
  }
}

INSTANTIATE_TEST_SUITE_P(Odd, Sizes, ::testing::Values(1, 2, 5, 15, 16, 17, 31, 33, 64, 100, 257));

}  // namespace
}  // namespace fewbit::cpu
