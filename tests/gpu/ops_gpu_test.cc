// Embedding, add + RMSNorm and SiLU kernels on a real device: against float64, in poisoned memory;
// the staged forms against the ones that the staging kernel makes of the same values.
#include <cmath>
#include <cstring>

#include "kernels/cuda/ops.h"
#include "tests/gpu/gpu_values.h"
#include "tests/kernels/random_matrix.h"

namespace fewbit::testing {
namespace {

// A group of packed matrices that share an input, for their staged forms only.
struct Group {
  std::vector<GpuMatrix> matrices;
  cuda::DeviceGroup group;
  cuda::Desc desc;
  cuda::Plan plan;
  cuda::DeviceBuffer<uint8_t> staged, expected;
  cuda::DeviceBuffer<float> plain;

  Group(int count, int tokens, int cols, std::mt19937* rng) {
    group.count = desc.count = count;
    desc.m = tokens;
    desc.x_type = tokens > cuda::kMaxSmallTokens ? DType::kF16 : DType::kF32;
    for (int p = 0; p < count; ++p) {
      const PackedOptions options = {16 * (p + 1), cols, 0.25 * p};
      matrices.emplace_back(quant::Pack(RandomUnpacked(options, rng)));
      group.parts[p] = matrices.back().view();
      desc.shapes[p] = group.parts[p].shape;
    }
    plan = cuda::Select(desc, ThisDevice());
    EXPECT_EQ(plan.error, "");
    const size_t bytes = plan.staged() ? cuda::StagedBytes(desc, plan) : 0;
    staged = Poisoned<uint8_t>(bytes);
    expected = Poisoned<uint8_t>(bytes);
    plain = Poisoned<float>(static_cast<size_t>(tokens) * cols);
  }

  cuda::LinearInput Input() {
    cuda::LinearInput in = cuda::InputOf(desc, plan, group, staged.get(), plain.get());
    in.plain_type = DType::kF32;
    return in;
  }

  // What StageActivations makes of `x` [tokens, cols].
  std::vector<uint8_t> StagedOf(const cuda::DeviceBuffer<float>& x) {
    const cuda::LinearInput in = cuda::InputOf(desc, plan, group, expected.get(), nullptr);
    cuda::Desc from_floats = desc;
    from_floats.x_type = DType::kF32;
    const int64_t stride = desc.shapes[0].cols;
    cuda::CheckCuda(cuda::StageActivations(from_floats, x.get(), stride, in, nullptr), "staging");
    return expected.Download();
  }

  // Staging the plain values gives the bytes that the kernel has staged.
  void ExpectStagedLikePlain() {
    if (staged.size() == 0) return;
    EXPECT_TRUE(staged.Download() == StagedOf(plain)) << "staged forms differ";
  }

  // Of fp16 numbers: those that the kernel has staged were rounded once, the plain ones twice.
  void ExpectHalvesLikePlain() {
    const std::vector<uint8_t> got = staged.Download(), want = StagedOf(plain);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); i += 2) {
      int16_t a, b;
      std::memcpy(&a, &got[i], sizeof(a));
      std::memcpy(&b, &want[i], sizeof(b));
      ASSERT_LE(std::abs(a - b), 1) << "number " << i / 2;
    }
  }

  // Staging x gives what the kernel has staged, but for the scales: those of token t are
  // factors[t] times as large. Where there are no scales, the numbers themselves are.
  void ExpectStagedTimes(const std::vector<float>& x, const std::vector<double>& factors) {
    if (plan.form() == cuda::StagedForm::kHalves) return ExpectHalvesLikePlain();
    if (staged.size() == 0) return;
    std::vector<uint8_t> got = staged.Download(), want = StagedOf(cuda::DeviceBuffer<float>(x));
    const cuda::LinearInput in = cuda::InputOf(desc, plan, group, staged.get(), nullptr);
    int scales = 0;
    for (int p = 0; p < in.count; ++p) {
      const cuda::StageTarget& to = in.parts[p];
      const bool slabs = to.form == cuda::StagedForm::kSlabs;
      const int places = slabs ? to.group_tokens : cuda::EvenTokens(to.group_tokens);
      for (int t = 0; t < desc.m; ++t) {
        const size_t begin = (to.staged - staged.get()) + t / to.group_tokens * to.group_bytes +
                             8 * (t % to.group_tokens);
        for (int tile = 0; tile < cuda::NumTiles(to.shape); ++tile, ++scales) {
          const size_t at = begin + size_t{8} * tile * places;
          float got_scale, want_scale;
          std::memcpy(&got_scale, &got[at], sizeof(float));
          std::memcpy(&want_scale, &want[at], sizeof(float));
          const double product = want_scale * factors[t];
          ASSERT_NEAR(got_scale, product, 1e-6 * product) << "token " << t << ", tile " << tile;
          std::memcpy(&got[at], &want[at], sizeof(float));
        }
      }
    }
    EXPECT_GE(scales, desc.m);
    EXPECT_TRUE(got == want) << "staged forms differ";
  }
};

struct NormCase {
  int tokens, cols;
  bool delta, rows, keep;
};

double SquareMean(const float* x, int n) {
  double sum = 0;
  for (int i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  return sum / n;
}

// The norm's plain output against float64, and its staged form, whose scales take the factor of the
// row.
void ExpectNorm(const std::vector<float>& sums, const std::vector<float>& weight, int cols,
                float eps, Group* group) {
  const std::vector<float> out = group->plain.Download();
  ASSERT_EQ(out.size(), sums.size());
  double error = 0, norm = 0;
  std::vector<float> products;
  std::vector<double> factors;
  for (size_t begin = 0; begin < sums.size(); begin += cols) {
    const double scale = 1.0 / std::sqrt(SquareMean(sums.data() + begin, cols) + eps);
    factors.push_back(scale);
    for (int c = 0; c < cols; ++c) {
      products.push_back(sums[begin + c] * weight[c]);
      const double want = sums[begin + c] * scale * weight[c], difference = out[begin + c] - want;
      error += difference * difference;
      norm += want * want;
    }
  }
  EXPECT_LT(std::sqrt(error / norm), 3e-7);
  group->ExpectStagedTimes(products, factors);
}

void RunNorm(const NormCase& c, std::mt19937* rng) {
  SCOPED_TRACE(std::to_string(c.tokens) + " tokens, " + std::to_string(c.cols) + " columns");
  const float eps = 1e-5f;
  const int source_rows = c.rows ? 2 * c.tokens + 1 : c.tokens;
  const auto hidden = NormalValues(static_cast<size_t>(source_rows) * c.cols, 3.0f, rng);
  const auto delta = NormalValues(static_cast<size_t>(c.tokens) * c.cols, 1.0f, rng);
  const auto weight = NormalValues(c.cols, 1.0f, rng);
  std::vector<int32_t> rows(c.tokens);
  for (int t = 0; t < c.tokens; ++t) rows[t] = c.rows ? 2 * t + 1 : t;
  std::vector<float> sums(static_cast<size_t>(c.tokens) * c.cols);
  for (size_t i = 0; i < sums.size(); ++i) {
    const size_t row = rows[i / c.cols], col = i % c.cols;
    sums[i] = hidden[row * c.cols + col] + (c.delta ? delta[i] : 0.0f);
  }
  Group group(3, c.tokens, c.cols, rng);
  cuda::DeviceBuffer<float> d_hidden(hidden), d_delta(delta), d_weight(weight);
  cuda::DeviceBuffer<int32_t> d_rows(rows);
  auto d_out = Poisoned<float>(sums.size());
  cuda::NormArgs args;
  args.tokens = c.tokens;
  args.cols = c.cols;
  args.hidden = d_hidden.get();
  args.rows = c.rows ? d_rows.get() : nullptr;
  args.delta = c.delta ? d_delta.get() : nullptr;
  args.hidden_out = c.keep ? d_out.get() : nullptr;
  args.weight = d_weight.get();
  args.eps = eps;
  cuda::CheckCuda(cuda::LaunchAddNorm(args, group.Input(), nullptr), "LaunchAddNorm");
  ExpectNorm(sums, weight, c.cols, eps, &group);
  const auto expect_kept = [&] {
    if (!c.keep) return;
    EXPECT_TRUE(d_out.Download() == sums) << "hidden rows differ";
    cuda::CheckCuda(cudaMemset(d_out.get(), 0xFF, d_out.bytes()), "poison");
  };
  expect_kept();
  // Without a staged form, by another kernel.
  auto alone = Poisoned<float>(sums.size());
  cuda::LinearInput out;
  out.plain = alone.get();
  out.plain_type = DType::kF32;
  cuda::CheckCuda(cuda::LaunchAddNorm(args, out, nullptr), "LaunchAddNorm, plain");
  EXPECT_TRUE(alone.Download() == group.plain.Download()) << "plain forms differ";
  expect_kept();
}

TEST(OpsGpu, NormMatchesFloat64) {
  cuda::CheckCuda(cuda::PrepareOps(), "PrepareOps");
  std::mt19937 rng(31);
  for (const NormCase& c : {NormCase{1, 4096, true, false, true},
                            {3, 64, false, false, false},
                            {5, 576, true, true, true},
                            {17, 5120, true, true, false},
                            {2, 8192, true, false, true},
                            {70, 112, true, false, true},
                            {4, 12304, true, false, true},
                            {1, cuda::kMaxRowElements, true, true, true}}) {
    RunNorm(c, &rng);
  }
}

TEST(OpsGpu, ReducedSetNorm) {
  cuda::CheckCuda(cuda::PrepareOps(), "PrepareOps");
  std::mt19937 rng(32);
  RunNorm({3, 576, true, true, true}, &rng);
  RunNorm({2, 4112, true, false, true}, &rng);
}

TEST(OpsGpu, NormRefusesRowsThatDoNotFit) {
  cuda::NormArgs args;
  args.tokens = 1;
  args.cols = cuda::kMaxRowElements + 16;
  EXPECT_EQ(cuda::LaunchAddNorm(args, {}, nullptr), cudaErrorInvalidValue);
}

// A token's row is the same bits alone and in any batch, at any place in it.
TEST(OpsGpu, NormDoesNotDependOnTheBatch) {
  std::mt19937 rng(33);
  constexpr int kTokens = 300, kCols = 2064;
  const auto hidden = NormalValues(size_t{kTokens} * kCols, 2.0f, &rng);
  cuda::DeviceBuffer<float> d_hidden(hidden), d_weight(NormalValues(kCols, 1.0f, &rng));
  auto all = Poisoned<float>(hidden.size()), one = Poisoned<float>(kCols);
  cuda::NormArgs args;
  args.cols = kCols;
  args.weight = d_weight.get();
  cuda::LinearInput out;
  out.plain_type = DType::kF32;
  args.tokens = kTokens;
  args.hidden = d_hidden.get();
  out.plain = all.get();
  cuda::CheckCuda(cuda::LaunchAddNorm(args, out, nullptr), "all");
  const auto together = all.Download();
  for (int t : {0, 1, 131, 299}) {
    args.tokens = 1;
    args.hidden = d_hidden.get() + size_t{1} * t * kCols;
    out.plain = one.get();
    cuda::CheckCuda(cuda::LaunchAddNorm(args, out, nullptr), "one");
    const auto alone = one.Download();
    EXPECT_EQ(std::memcmp(alone.data(), together.data() + size_t{1} * t * kCols, kCols * 4), 0);
  }
}

struct Table {
  cuda::DeviceBuffer<uint8_t> data;
  cuda::DeviceBuffer<float> scales;
  cuda::DeviceDense view;
  std::vector<float> values;  // [rows, cols]
};

Table RandomTable(cuda::WeightType type, int rows, int cols, std::mt19937* rng) {
  Table out;
  out.view.type = type;
  out.view.rows = rows;
  out.view.cols = cols;
  out.values = NormalValues(static_cast<size_t>(rows) * cols, 0.5f, rng);
  if (type == cuda::WeightType::kI8) {
    std::vector<uint8_t> codes(out.values.size());
    std::vector<float> scales(rows);
    for (float& s : scales) s = std::uniform_real_distribution<float>(1e-3f, 1e-2f)(*rng);
    for (size_t i = 0; i < codes.size(); ++i) {
      codes[i] = static_cast<uint8_t>(1 + (*rng)() % 255);
      out.values[i] = (codes[i] - 128) * scales[i / cols];
    }
    out.data = cuda::DeviceBuffer<uint8_t>(codes);
    out.scales = cuda::DeviceBuffer<float>(scales);
  } else {
    const DType dtype = type == cuda::WeightType::kF32   ? DType::kF32
                        : type == cuda::WeightType::kF16 ? DType::kF16
                                                         : DType::kBF16;
    out.values = RoundTo(dtype, out.values);
    out.data = cuda::DeviceBuffer<uint8_t>(StoredAs(dtype, out.values));
  }
  out.view.data = out.data.get();
  out.view.scales = out.scales.get();
  return out;
}

TEST(OpsGpu, ReducedSetEmbedding) {
  std::mt19937 rng(34);
  constexpr int kRows = 321, kCols = 528;
  // Tokens of three sequences; the last one waits for the id drawn for its slot. 900 is no id.
  const std::vector<int32_t> ids = {7, 320, 900, 0, cuda::kLastSampledId};
  const std::vector<int32_t> sequence_of = {0, 0, 1, 1, 2}, slots = {4, 0, 2};
  const std::vector<int32_t> last_ids = {11, 12, 123, 14, 15};
  const std::vector<int> expected_ids = {7, 320, 0, 0, 123};
  const int tokens = static_cast<int>(ids.size());
  cuda::DeviceBuffer<int32_t> d_ids(ids), d_sequence(sequence_of), d_slots(slots), d_last(last_ids);
  cuda::StepView step;
  step.tokens = tokens;
  step.token_ids = d_ids.get();
  step.sequence_of = d_sequence.get();
  step.slots = d_slots.get();
  step.last_ids = d_last.get();
  for (auto type : {cuda::WeightType::kF32, cuda::WeightType::kF16, cuda::WeightType::kBF16,
                    cuda::WeightType::kI8}) {
    const Table table = RandomTable(type, kRows, kCols, &rng);
    const auto weight = NormalValues(kCols, 1.0f, &rng);
    cuda::DeviceBuffer<float> d_weight(weight);
    Group group(2, tokens, kCols, &rng);
    auto hidden = Poisoned<float>(size_t{1} * tokens * kCols);
    cuda::NormArgs args;
    args.tokens = tokens;
    args.cols = kCols;
    args.hidden_out = hidden.get();
    args.weight = d_weight.get();
    cuda::CheckCuda(cuda::LaunchEmbedNorm(table.view, step, args, group.Input(), nullptr), "embed");
    std::vector<float> rows;
    for (int id : expected_ids) {
      const float* row = table.values.data() + size_t{1} * id * kCols;
      rows.insert(rows.end(), row, row + kCols);
    }
    EXPECT_TRUE(hidden.Download() == rows) << "type " << static_cast<int>(type);
    ExpectNorm(rows, weight, kCols, args.eps, &group);
  }
}

void RunSilu(int tokens, int cols, DType type, std::mt19937* rng) {
  SCOPED_TRACE(std::to_string(tokens) + " tokens, " + std::to_string(cols) + " columns");
  const int64_t stride = 2 * cols;
  const auto x = RoundTo(type, NormalValues(tokens * stride, 4.0f, rng));
  const cuda::DeviceBuffer<uint8_t> d_x(StoredAs(type, x));
  Group group(1, tokens, cols, rng);
  cuda::SiluArgs args;
  args.tokens = tokens;
  args.cols = cols;
  args.type = type;
  args.gate = d_x.get();
  args.up = d_x.get() + cols * (type == DType::kF32 ? 4 : 2);
  args.stride = stride;
  cuda::CheckCuda(cuda::LaunchSiluMul(args, group.Input(), nullptr), "LaunchSiluMul");
  const auto y = group.plain.Download();
  for (int t = 0; t < tokens; ++t) {
    for (int c = 0; c < cols; ++c) {
      const double gate = x[t * stride + c], up = x[t * stride + cols + c];
      const double want = gate / (1.0 + std::exp(-gate)) * up;
      ASSERT_NEAR(y[size_t{1} * t * cols + c], want, 3e-6 * std::fabs(want) + 1e-30)
          << t << ", " << c;
    }
  }
  group.ExpectStagedLikePlain();
}

TEST(OpsGpu, SiluMatchesFloat64) {
  std::mt19937 rng(35);
  RunSilu(1, 11008, DType::kF32, &rng);
  RunSilu(9, 1376, DType::kF16, &rng);
  RunSilu(80, 272, DType::kF32, &rng);
}

TEST(OpsGpu, ReducedSetSilu) {
  std::mt19937 rng(36);
  RunSilu(3, 688, DType::kF16, &rng);
}

// Plain outputs in 16 bits are the float ones rounded, also without any staged form.
TEST(OpsGpu, PlainOutputsAreRounded) {
  std::mt19937 rng(37);
  constexpr int kTokens = 2, kCols = 144;
  const auto x = NormalValues(2 * kTokens * kCols, 2.0f, &rng);
  const cuda::DeviceBuffer<float> d_x(x);
  cuda::SiluArgs args;
  args.tokens = kTokens;
  args.cols = kCols;
  args.gate = d_x.get();
  args.up = d_x.get() + kTokens * kCols;
  args.stride = kCols;
  std::vector<float> exact;
  for (DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
    auto out = Poisoned<float>(kTokens * kCols);
    cuda::LinearInput in;
    in.plain = out.get();
    in.plain_type = type;
    cuda::CheckCuda(cuda::LaunchSiluMul(args, in, nullptr), "LaunchSiluMul");
    const auto y = ReadAs(type, out.get(), kTokens * kCols);
    if (type == DType::kF32) exact = y;
    EXPECT_TRUE(y == RoundTo(type, exact)) << static_cast<int>(type);
  }
}

}  // namespace
}  // namespace fewbit::testing
