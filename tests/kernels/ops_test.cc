// The row operations and attention against references in double, and every instruction set against
// the portable one, bit for bit.
#include "kernels/cpu/ops.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fewbit::cpu {
namespace {

using ::testing::Each;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<Isa> Supported() {
  std::vector<Isa> out;
  for (const Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
    if (IsaSupported(isa)) out.push_back(isa);
  }
  return out;
}

std::vector<float> Random(int n, uint32_t seed, float scale = 1.0f) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> out(n);
  for (float& x : out) x = normal(engine);
  return out;
}

uint32_t Bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

std::vector<uint32_t> Bits(const std::vector<float>& x) {
  std::vector<uint32_t> out;
  for (const float v : x) out.push_back(Bits(v));
  return out;
}

class RowOps : public ::testing::TestWithParam<int> {};

TEST_P(RowOps, RmsNorm) {
  const int n = GetParam();
  const std::vector<float> x = Random(n, 1), weight = Random(n, 2);
  double squares = 0.0;
  for (const float v : x) squares += static_cast<double>(v) * v;
  std::vector<float> first(n);
  RmsNorm(Isa::kPortable, x.data(), weight.data(), 1e-5f, n, first.data());
  for (int i = 0; i < n; ++i) {
    const double want = x[i] / std::sqrt(squares / n + 1e-5) * weight[i];
    EXPECT_NEAR(first[i], want, 2e-6 * (std::fabs(want) + 1e-3)) << i;
  }
  for (const Isa isa : Supported()) {
    std::vector<float> out = x;
    RmsNorm(isa, out.data(), weight.data(), 1e-5f, n, out.data());
    EXPECT_EQ(Bits(out), Bits(first)) << IsaName(isa);
  }
}

TEST_P(RowOps, SiluMulAndAdd) {
  const int n = GetParam();
  const std::vector<float> gate = Random(n, 3, 4.0f), up = Random(n, 4);
  std::vector<float> first = gate;
  SiluMul(Isa::kPortable, first.data(), up.data(), n);
  for (int i = 0; i < n; ++i) {
    const double want = gate[i] / (1.0 + std::exp(-static_cast<double>(gate[i]))) * up[i];
    EXPECT_NEAR(first[i], want, 1e-6 * std::fabs(want) + 1e-9) << gate[i];
  }
  for (const Isa isa : Supported()) {
    std::vector<float> out = gate;
    SiluMul(isa, out.data(), up.data(), n);
    EXPECT_EQ(Bits(out), Bits(first)) << IsaName(isa);
    out = gate;
    AddRow(isa, out.data(), up.data(), n);
    for (int i = 0; i < n; ++i) EXPECT_EQ(out[i], gate[i] + up[i]);
  }
}

TEST_P(RowOps, ExpSum) {
  const int n = GetParam();
  const std::vector<float> x = Random(n, 5, 8.0f);
  const float max = *std::max_element(x.begin(), x.end());
  std::vector<float> first(n);
  const double sum = ExpSum(Isa::kPortable, x.data(), n, max, 1.25f, first.data());
  double want_sum = 0.0;
  for (int i = 0; i < n; ++i) {
    const double want = std::exp(static_cast<double>((x[i] - max) * 1.25f));
    EXPECT_NEAR(first[i], want, 2.5e-7 * want + 1e-37);
    want_sum += want;
  }
  EXPECT_NEAR(sum, want_sum, 1e-6 * want_sum);
  for (const Isa isa : Supported()) {
    std::vector<float> out = x;
    EXPECT_EQ(ExpSum(isa, out.data(), n, max, 1.25f, out.data()), sum) << IsaName(isa);
    EXPECT_EQ(Bits(out), Bits(first)) << IsaName(isa);
    EXPECT_EQ(ExpSum(isa, x.data(), n, max, 1.25f, nullptr), sum) << IsaName(isa);
  }
}

TEST_P(RowOps, ScanRowFindsTheFirstMaximum) {
  const int n = GetParam();
  for (const Isa isa : Supported()) {
    SCOPED_TRACE(IsaName(isa));
    for (const int at : {0, n / 2, n - 1}) {
      // All negative: a tail that counted lanes beyond the row as 0 would win.
      std::vector<float> x(n, -5.0f);
      x[at] = -1.0f;
      x[n - 1] = -1.0f;
      const RowStats stats = ScanRow(isa, x.data(), n);
      EXPECT_TRUE(stats.finite);
      EXPECT_EQ(stats.max, -1.0f);
      EXPECT_EQ(stats.argmax, at);
      for (const float bad : {kNan, kInf}) {
        std::vector<float> y = x;
        y[at] = bad;
        EXPECT_FALSE(ScanRow(isa, y.data(), n).finite) << bad << " at " << at;
      }
      x[0] = x[0] == -1.0f ? -1.0f : -kInf;  // a masked token is fine
      EXPECT_TRUE(ScanRow(isa, x.data(), n).finite);
    }
    EXPECT_FALSE(ScanRow(isa, std::vector<float>(n, -kInf).data(), n).finite);
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, RowOps,
                         ::testing::Values(1, 2, 15, 16, 17, 33, 64, 100, 512, 1031, 4096));

TEST(Exp, EndsAndNan) {
  const std::vector<float> x = {0.0f, -87.0f, -87.5f, -1000.0f, -kInf, kNan, 1.0f};
  for (const Isa isa : Supported()) {
    std::vector<float> out(x.size());
    ExpSum(isa, x.data(), static_cast<int>(x.size()), 0.0f, 1.0f, out.data());
    EXPECT_EQ(out[0], 1.0f);
    EXPECT_NEAR(out[1] / std::exp(-87.0), 1.0, 1e-6);
    EXPECT_EQ(out[2], 0.0f);
    EXPECT_EQ(out[3], 0.0f);
    EXPECT_EQ(out[4], 0.0f);
    EXPECT_TRUE(std::isnan(out[5]));
  }
}

TEST(Nan, SurvivesEveryRowOperation) {
  for (const Isa isa : Supported()) {
    SCOPED_TRACE(IsaName(isa));
    std::vector<float> x(20, 1.0f), ones(20, 1.0f);
    x[3] = kNan;
    SiluMul(isa, x.data(), ones.data(), 20);
    EXPECT_TRUE(std::isnan(x[3]));
    RmsNorm(isa, x.data(), ones.data(), 1e-5f, 20, x.data());
    for (const float v : x) EXPECT_TRUE(std::isnan(v));
  }
}

TEST(Rotate, BothPairingsOfEveryWidth) {
  for (const int rotary : {2, 8, 30, 32, 64, 128}) {
    const std::vector<float> x = Random(160, 7), angle = Random(rotary / 2, 8);
    std::vector<float> c(rotary / 2), s(rotary / 2);
    for (int i = 0; i < rotary / 2; ++i) {
      c[i] = std::cos(angle[i]);
      s[i] = std::sin(angle[i]);
    }
    for (const bool interleaved : {false, true}) {
      std::vector<float> want = x;
      for (int i = 0; i < rotary / 2; ++i) {
        const int a = interleaved ? 2 * i : i;
        const int b = interleaved ? 2 * i + 1 : i + rotary / 2;
        want[a] = x[a] * c[i] - x[b] * s[i];
        want[b] = x[b] * c[i] + x[a] * s[i];
      }
      for (const Isa isa : Supported()) {
        std::vector<float> out = x;
        Rotate(isa, out.data(), c.data(), s.data(), rotary, interleaved);
        EXPECT_EQ(Bits(out), Bits(want)) << IsaName(isa) << " " << rotary << " " << interleaved;
      }
    }
  }
}

// A cache of one layer whose blocks lie in shuffled order, full of NaN where nothing was stored.
class Cache {
 public:
  Cache(Isa isa, kv::KvType type, int heads, int dim, int tokens, uint32_t seed)
      : shape{type, heads, dim}, isa_(isa) {
    const int blocks = (tokens + kv::kBlockTokens - 1) / kv::kBlockTokens;
    for (int b = 0; b < blocks; ++b) table.push_back((b * 5 + 3) % (blocks + 7));
    for (int b = 0; b < blocks; ++b) {
      while (std::count(table.begin(), table.end(), table[b]) > 1)
        table[b] = (table[b] + 1) % (blocks + 7);
    }
    memory.assign((blocks + 7) * shape.block_bytes(), 0xFF);
    keys = Random(tokens * heads * dim, seed, 1.5f);
    values = Random(tokens * heads * dim, seed + 1);
    for (int t = 0; t < tokens; ++t) {
      for (int h = 0; h < heads; ++h) {
        const size_t at = (static_cast<size_t>(t) * heads + h) * dim;
        StoreKeyValue(isa_, shape, memory.data() + table[t / 16] * shape.block_bytes(), h, t % 16,
                      &keys[at], &values[at]);
      }
    }
  }

  // out [rows, padded D]
  std::vector<float> Run(const std::vector<float>& queries, const std::vector<int32_t>& positions,
                         int head, int window) const {
    std::vector<float> out(queries.size());
    std::vector<uint8_t> scratch(AttentionScratchBytes(shape.padded_dim()));
    AttentionTile tile;
    tile.queries = queries.data();
    tile.positions = positions.data();
    tile.rows = static_cast<int>(positions.size());
    tile.window = window;
    tile.layer = memory.data();
    tile.blocks = table.data();
    tile.shape = shape;
    tile.head = head;
    tile.out = out.data();
    Attend(isa_, tile, scratch.data());
    return out;
  }

  // The same in double, from the unrounded keys and values.
  std::vector<double> Reference(const float* query, int position, int head, int window) const {
    const int dim = shape.head_dim;
    const int first = window == 0 ? 0 : std::max(0, position - window + 1);
    std::vector<double> scores;
    for (int t = first; t <= position; ++t) {
      double score = 0.0;
      for (int d = 0; d < dim; ++d) {
        score += static_cast<double>(query[d]) *
                 keys[(static_cast<size_t>(t) * shape.num_heads + head) * dim + d];
      }
      scores.push_back(score);
    }
    const double max = *std::max_element(scores.begin(), scores.end());
    double sum = 0.0;
    for (double& s : scores) sum += s = std::exp(s - max);
    std::vector<double> out(dim, 0.0);
    for (int t = first; t <= position; ++t) {
      for (int d = 0; d < dim; ++d) {
        out[d] += scores[t - first] / sum *
                  values[(static_cast<size_t>(t) * shape.num_heads + head) * dim + d];
      }
    }
    return out;
  }

  kv::BlockShape shape;
  std::vector<int32_t> table;
  std::vector<uint8_t> memory;
  std::vector<float> keys, values;

 private:
  Isa isa_;
};

std::vector<float> Queries(const kv::BlockShape& shape, int rows, uint32_t seed) {
  std::vector<float> out(static_cast<size_t>(rows) * shape.padded_dim(), 0.0f);
  const std::vector<float> values =
      Random(rows * shape.head_dim, seed, 1.0f / std::sqrt(shape.head_dim));
  for (int r = 0; r < rows; ++r) {
    std::copy_n(&values[static_cast<size_t>(r) * shape.head_dim], shape.head_dim,
                &out[static_cast<size_t>(r) * shape.padded_dim()]);
  }
  return out;
}

struct AttentionCase {
  int heads, dim, tokens, window;
};

class Attention : public ::testing::TestWithParam<AttentionCase> {};

TEST_P(Attention, MatchesTheReferenceAndEveryInstructionSet) {
  const auto [heads, dim, tokens, window] = GetParam();
  for (const kv::KvType type : {kv::KvType::kF32, kv::KvType::kF16}) {
    const Cache cache(Isa::kPortable, type, heads, dim, tokens, 11);
    // Two query heads per token, from the last tokens, as a prefill chunk would have.
    const int rows = std::min(kMaxTileRows, 2 * tokens);
    std::vector<int32_t> positions;
    for (int r = 0; r < rows; ++r) positions.push_back(tokens - (rows + 1) / 2 + r / 2);
    const std::vector<float> queries = Queries(cache.shape, rows, 12);
    const std::vector<float> first = cache.Run(queries, positions, heads - 1, window);
    const double tolerance = type == kv::KvType::kF32 ? 2e-5 : 4e-3;
    const int padded = cache.shape.padded_dim();
    for (int r = 0; r < rows; ++r) {
      const auto want = cache.Reference(&queries[r * padded], positions[r], heads - 1, window);
      for (int d = 0; d < dim; ++d) {
        ASSERT_NEAR(first[r * padded + d], want[d], tolerance) << "row " << r << " dim " << d;
      }
    }
    for (const Isa isa : Supported()) {
      const Cache same(isa, type, heads, dim, tokens, 11);
      EXPECT_EQ(same.memory, cache.memory) << IsaName(isa);
      EXPECT_EQ(Bits(same.Run(queries, positions, heads - 1, window)), Bits(first)) << IsaName(isa);
    }
  }
}

TEST_P(Attention, ARowDoesNotSeeItsTile) {
  const auto [heads, dim, tokens, window] = GetParam();
  for (const Isa isa : Supported()) {
    for (const kv::KvType type : {kv::KvType::kF32, kv::KvType::kF16}) {
      const Cache cache(isa, type, heads, dim, tokens, 21);
      const int padded = cache.shape.padded_dim();
      // Rows from all over the sequence in one tile, then each alone.
      std::vector<int32_t> positions;
      for (int r = 0; r < 23; ++r) positions.push_back((r * 37) % tokens);
      const std::vector<float> queries = Queries(cache.shape, 23, 22);
      const std::vector<float> together = cache.Run(queries, positions, 0, window);
      for (int r = 0; r < 23; ++r) {
        const std::vector<float> query(&queries[r * padded], &queries[r * padded] + padded);
        const std::vector<float> alone = cache.Run(query, {positions[r]}, 0, window);
        const std::vector<float> row(&together[r * padded], &together[r * padded] + padded);
        EXPECT_EQ(Bits(alone), Bits(row)) << IsaName(isa) << " row " << r;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, Attention,
    ::testing::Values(AttentionCase{1, 16, 1, 0}, AttentionCase{2, 16, 40, 0},
                      AttentionCase{2, 20, 67, 0}, AttentionCase{1, 64, 128, 0},
                      AttentionCase{3, 80, 130, 24}, AttentionCase{2, 128, 200, 0},
                      AttentionCase{1, 64, 300, 64}, AttentionCase{1, 96, 257, 7},
                      AttentionCase{1, 256, 70, 1}));

TEST(StoreKeyValue, RoundsHalvesToNearestAndClamps) {
  const kv::BlockShape shape{kv::KvType::kF16, 1, 16};
  const std::vector<float> x = {
      1.0f,           -2.5f,         65504.0f, 70000.0f, -1e30f, 1e-8f,   5.9604645e-8f, 6.1e-5f,
      1.00048828125f, 1.0009765625f, 0.1f,     -0.0f,    3e-8f,  2.9e-8f, 6.0975552e-5f, 2049.0f};
  const std::vector<uint16_t> want = {0x3C00, 0xC100, 0x7BFF, 0x7BFF, 0xFBFF, 0x0000,
                                      0x0001, 0x03FF, 0x3C00, 0x3C01, 0x2E66, 0x8000,
                                      0x0001, 0x0000, 0x03FF, 0x6800};
  for (const Isa isa : Supported()) {
    std::vector<uint8_t> block(shape.block_bytes(), 0);
    StoreKeyValue(isa, shape, block.data(), 0, 5, x.data(), x.data());
    const auto* keys = reinterpret_cast<const uint16_t*>(block.data() + shape.key_offset(0));
    const auto* values = reinterpret_cast<const uint16_t*>(block.data() + shape.value_offset(0));
    for (int d = 0; d < 16; ++d) {
      EXPECT_EQ(keys[shape.key_index(d, 5)], want[d]) << IsaName(isa) << " " << x[d];
      EXPECT_EQ(values[shape.value_index(5, d)], want[d]) << IsaName(isa) << " " << x[d];
    }
  }
}

}  // namespace
}  // namespace fewbit::cpu
