#include "kernels/quant_pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/linear.h"
#include "tests/kernels/random_matrix.h"

namespace fewbit::quant {
namespace {

using fewbit::testing::PackedOptions;
using fewbit::testing::RandomPacked;
using fewbit::testing::RandomUnpacked;
using ::testing::HasSubstr;

std::vector<PackedOptions> Grid() {
  std::vector<PackedOptions> grid;
  for (const int rows : {1, 15, 16, 17, 50}) {
    for (const int cols : {16, 48, 512, 1040}) {
      for (const double share4 : {0.0, 0.25, 0.6, 1.0}) {
        for (const bool zero_points : {false, true}) {
          for (const double outliers : {0.0, 0.01}) {
            grid.push_back({rows, cols, share4, zero_points, outliers, cols == 48 ? 1 : 0});
          }
        }
      }
    }
  }
  return grid;
}

bool OutlierLess(const Outlier& a, const Outlier& b) {
  return std::pair(a.row, a.position) < std::pair(b.row, b.position);
}

TEST(QuantPackTest, UnpackGivesBackWhatWasPacked) {
  std::mt19937 rng(1);
  for (const PackedOptions& options : Grid()) {
    SCOPED_TRACE(Describe(options));
    UnpackedMatrix m = RandomUnpacked(options, &rng);
    const PackedStorage packed = Pack(m);
    ASSERT_EQ(packed.tiles.size(), m.shape.total_bytes());
    UnpackedMatrix back = Unpack(packed.view());
    EXPECT_EQ(back.strip_order, m.strip_order);
    EXPECT_EQ(back.codes, m.codes);
    EXPECT_EQ(back.sub_scales, m.sub_scales);
    EXPECT_EQ(back.zeros, m.zeros);
    EXPECT_EQ(back.second_order[0], m.second_order[0]);
    EXPECT_EQ(back.second_order[1], m.second_order[1]);
    std::sort(m.outliers.begin(), m.outliers.end(), OutlierLess);
    std::sort(back.outliers.begin(), back.outliers.end(), OutlierLess);
    ASSERT_EQ(back.outliers.size(), m.outliers.size());
    for (size_t i = 0; i < m.outliers.size(); ++i) {
      EXPECT_EQ(back.outliers[i].row, m.outliers[i].row);
      EXPECT_EQ(back.outliers[i].position, m.outliers[i].position);
      EXPECT_EQ(back.outliers[i].value, m.outliers[i].value);
    }
  }
}

// The text of quant_layout.h, written once more and independently of the packing code: sets one
// thing in an otherwise zero matrix and looks for the single bit pattern where the text says it is.
class LayoutTest : public ::testing::Test {
 protected:
  static UnpackedMatrix Zero(int rows, int strips2, int strips4, bool zero_points) {
    UnpackedMatrix m;
    m.shape = {rows, 16 * (strips2 + strips4), strips2 / 8, strips4 / 4, zero_points};
    for (int p = 0; p < strips2 + strips4; ++p) m.strip_order.push_back(p);
    const size_t positions = m.shape.num_positions();
    m.codes.resize(rows * positions * 16);
    m.sub_scales.resize(rows * positions);
    if (zero_points) m.zeros.resize(rows * positions);
    m.second_order[0].resize(rows * m.shape.tiles(2));
    m.second_order[1].resize(rows * m.shape.tiles(4));
    return m;
  }

  // The only nonzero 32-bit word of the tiles and where it is.
  static std::pair<size_t, uint32_t> OnlyWord(const PackedStorage& packed) {
    std::pair<size_t, uint32_t> found{0, 0};
    for (size_t at = 0; at < packed.tiles.size(); at += 4) {
      uint32_t word;
      std::memcpy(&word, &packed.tiles[at], 4);
      if (word == 0) continue;
      EXPECT_EQ(found.second, 0u) << "a second word at " << at;
      found = {at, word};
    }
    return found;
  }
};

TEST_F(LayoutTest, OffsetsOfTilesAndSections) {
  // 5 2-bit chunks: tiles of 4 and 1; 6 4-bit chunks: tiles of 4 and 2.
  const PackedShape plain{40, 16 * (40 + 24), 5, 6, false};
  EXPECT_EQ(plain.tile_offset(2, 1), 4u * (512 + 64) + 32);
  EXPECT_EQ(plain.section_bytes(2), 5u * (512 + 64) + 2 * 32);
  EXPECT_EQ(plain.tile_offset(4, 0), plain.section_bytes(2));
  EXPECT_EQ(plain.tile_offset(4, 1), plain.section_bytes(2) + 4u * (512 + 32) + 32);
  EXPECT_EQ(plain.row_block_bytes(), 5u * 576 + 6u * 544 + 4 * 32);
  EXPECT_EQ(plain.total_bytes(), 3 * plain.row_block_bytes());
  const PackedShape zeros{40, 16 * (40 + 24), 5, 6, true};
  EXPECT_EQ(zeros.row_block_bytes(), plain.row_block_bytes() + 11u * 32);
}

TEST_F(LayoutTest, CodesLieAtTheStatedBits) {
  constexpr int kRows = 32, kStrips2 = 40, kStrips4 = 24;
  for (int row : {0, 3, 7, 8, 15, 16, 29}) {
    for (int position : {0, 1, 3, 4, 6, 7, 9, 33, 39, 40, 41, 42, 43, 46, 58, 63}) {
      for (int k = 0; k < 16; ++k) {
        UnpackedMatrix m = Zero(kRows, kStrips2, kStrips4, true);
        const bool two = position < kStrips2;
        m.codes[(static_cast<size_t>(row) * (kStrips2 + kStrips4) + position) * 16 + k] =
            two ? 2 : 9;
        const auto [at, word] = OnlyWord(Pack(m));
        const int local = two ? position : position - kStrips2;
        const int chunk = local / (two ? 8 : 4), strip = local % (two ? 8 : 4);
        const int g = row % 8, hi = row % 16 / 8, khi = k / 8, t = k % 8 / 2, e = k % 2;
        const int unit = two ? strip / 4 : strip / 2;
        const size_t tile_base =
            (two ? 0 : 5 * 608 + 64) + (chunk / 4) * (4 * (two ? 608 : 576) + 32);
        EXPECT_EQ(at, (row / 16) * (5 * 608 + 64 + 6 * 576 + 64) + tile_base + (chunk % 4) * 512 +
                          16 * (4 * g + t) + 4 * (2 * unit + hi));
        const int bit = two ? 16 * e + 4 * (strip % 4) + (khi == 1 ? 0 : 2)
                            : 16 * e + 8 * (strip % 2) + 4 * khi;
        EXPECT_EQ(word, (two ? 2u : 9u) << bit) << row << " " << position << " " << k;
      }
    }
  }
}

TEST_F(LayoutTest, ScalesZerosAndSecondOrderLieAtTheStatedBits) {
  constexpr int kStrips2 = 40, kStrips4 = 24;
  for (int row : {0, 5, 8, 13}) {
    const uint32_t g = row % 8, half = 16 * (row / 8);
    for (int position : {0, 5, 14, 34, 40, 45, 63}) {
      const bool two = position < kStrips2;
      const int local = two ? position : position - kStrips2;
      const int chunk = local / (two ? 8 : 4), strip = local % (two ? 8 : 4);
      const int chunks_here = two ? (chunk < 4 ? 4 : 1) : (chunk < 4 ? 4 : 2);
      const size_t tile = (two ? 0 : 5 * 608 + 64) + (chunk / 4) * (4 * (two ? 608 : 576) + 32);
      const size_t scales = tile + chunks_here * 512;
      const size_t zeros = scales + chunks_here * (two ? 64 : 32);
      const size_t index = static_cast<size_t>(row) * (kStrips2 + kStrips4) + position;

      UnpackedMatrix m = Zero(16, kStrips2, kStrips4, true);
      m.sub_scales[index] = 11;
      auto [at, word] = OnlyWord(Pack(m));
      EXPECT_EQ(at,
                scales + (chunk % 4) * (two ? 64 : 32) + (two ? 4 * (2 * g + strip / 4) : 4 * g));
      EXPECT_EQ(word, 11u << (half + 4 * (two ? strip % 4 : strip)));

      m.sub_scales[index] = 0;
      m.zeros[index] = two ? 3 : 13;
      std::tie(at, word) = OnlyWord(Pack(m));
      EXPECT_EQ(at, zeros + (chunk % 4) * 32 + 4 * g);
      EXPECT_EQ(word, (two ? 3u : 13u) << (half + (two ? 2 : 4) * strip));

      m.zeros[index] = 0;
      m.second_order[two ? 0 : 1][row * 2 + chunk / 4] = 0x1234;
      std::tie(at, word) = OnlyWord(Pack(m));
      EXPECT_EQ(at, zeros + chunks_here * 32 + 4 * g);
      EXPECT_EQ(word, 0x1234u << half);
    }
  }
}

TEST_F(LayoutTest, OutliersAreListedPerRowBlockAndTile) {
  UnpackedMatrix m = Zero(40, 40, 0, false);
  m.outliers = {{39, 600, 7}, {2, 100, 5}, {17, 3, 9}, {1, 100, 6}, {16, 3, 8}, {0, 511, 4}};
  const PackedStorage packed = Pack(m);
  // Lists: (block, tile) = (0,0) (0,1) (1,0) (1,1) (2,0) (2,1).
  EXPECT_THAT(packed.outlier_start, ::testing::ElementsAre(0u, 3u, 3u, 5u, 5u, 5u, 6u));
  EXPECT_THAT(packed.outliers,
              ::testing::ElementsAre(6u << 16 | 1u << 9 | 100, 5u << 16 | 2u << 9 | 100,
                                     4u << 16 | 0u << 9 | 511, 8u << 16 | 0u << 9 | 3,
                                     9u << 16 | 1u << 9 | 3, 7u << 16 | 7u << 9 | 88));
}

TEST(QuantPackTest, DequantizeRowFollowsTheFormula) {
  std::mt19937 rng(2);
  for (const PackedOptions& options : Grid()) {
    const auto test = RandomPacked(options, &rng);
    SCOPED_TRACE(test.name);
    const UnpackedMatrix& m = test.plain;
    const int positions = m.shape.num_positions(), row = options.rows - 1;
    std::vector<double> expected(options.cols, 0.0);
    for (int p = 0; p < positions; ++p) {
      if (m.strip_order[p] == kNoStrip) continue;
      const int bits = p < 8 * m.shape.chunks2 ? 2 : 4;
      const int local = bits == 2 ? p : p - 8 * m.shape.chunks2;
      const int tile = local / ChunkStrips(bits) / kTileChunks;
      const double d =
          HalfToFloat(m.second_order[bits / 2 - 1][row * m.shape.tiles(bits) + tile]) / 64.0;
      const size_t at = static_cast<size_t>(row) * positions + p;
      const double zero = m.shape.zero_points ? m.zeros[at] : ((1 << bits) - 1) / 2.0;
      for (int k = 0; k < 16; ++k) {
        expected[m.strip_order[p] * 16 + k] = (m.codes[at * 16 + k] - zero) * m.sub_scales[at] * d;
      }
    }
    for (const Outlier& o : m.outliers) {
      if (o.row != row) continue;
      expected[m.strip_order[o.position / 16] * 16 + o.position % 16] += HalfToFloat(o.value);
    }
    std::vector<float> actual(options.cols, NAN);
    cpu::DequantizeRow(test.matrix, row, actual.data());
    for (int c = 0; c < options.cols; ++c) ASSERT_NEAR(actual[c], expected[c], 1e-6) << c;
  }
}

class ValidateTest : public ::testing::Test {
 protected:
  ValidateTest() {
    std::mt19937 rng(3);
    storage_ = Pack(RandomUnpacked({20, 1600, 0.3, false, 0.02, 1}, &rng));
  }
  std::string Error() const {
    const PackedMatrix m = storage_.view();
    const char* error = ValidatePacked(m, tile_bytes_ ? tile_bytes_ : storage_.tiles.size(),
                                       storage_.strip_order.size(), storage_.outlier_start.size(),
                                       storage_.outliers.size());
    return error == nullptr ? "" : error;
  }
  int PaddingPosition() const {
    for (size_t p = 0; p < 8u * storage_.shape.chunks2; ++p) {
      if (storage_.strip_order[p] == kNoStrip) return static_cast<int>(p);
    }
    ADD_FAILURE() << "no padding";
    return 0;
  }
  PackedStorage storage_;
  size_t tile_bytes_ = 0;
};

TEST_F(ValidateTest, AcceptsWhatPackWrites) {
  EXPECT_EQ(Error(), "");
  std::mt19937 rng(4);
  for (const PackedOptions& options : Grid()) {
    storage_ = Pack(RandomUnpacked(options, &rng));
    EXPECT_EQ(Error(), "") << Describe(options);
  }
}

TEST_F(ValidateTest, RefusesSizes) {
  tile_bytes_ = storage_.tiles.size() - 1;
  EXPECT_THAT(Error(), HasSubstr("tile data has a wrong length"));
  tile_bytes_ = 0;
  storage_.strip_order.pop_back();
  EXPECT_THAT(Error(), HasSubstr("strip_order has a wrong length"));
}

TEST_F(ValidateTest, RefusesShapes) {
  const PackedShape good = storage_.shape;
  storage_.shape.cols += 8;
  EXPECT_THAT(Error(), HasSubstr("multiple of 16"));
  storage_.shape = good;
  storage_.shape.rows = 0;
  EXPECT_THAT(Error(), HasSubstr("positive"));
  storage_.shape.rows = std::numeric_limits<int32_t>::max();
  EXPECT_THAT(Error(), HasSubstr("too many rows"));
  storage_.shape = good;
  storage_.shape.chunks2 = -1;
  EXPECT_THAT(Error(), HasSubstr("chunk counts"));
  storage_.shape.chunks2 = std::numeric_limits<int32_t>::max();
  EXPECT_THAT(Error(), HasSubstr("chunk counts"));
  storage_.shape.chunks2 = storage_.shape.chunks4 = 1;
  EXPECT_THAT(Error(), HasSubstr("too few chunks"));
}

TEST_F(ValidateTest, RefusesStripOrder) {
  const std::vector<uint16_t> good = storage_.strip_order;
  const int padding = PaddingPosition();
  storage_.strip_order[padding] = 100;
  EXPECT_THAT(Error(), HasSubstr("beyond the input channels"));
  storage_.strip_order[padding] = 5;
  EXPECT_THAT(Error(), HasSubstr("twice"));
  storage_.strip_order = good;
  for (uint16_t& strip : storage_.strip_order) {
    if (strip == 5) strip = kNoStrip;
  }
  EXPECT_THAT(Error(), HasSubstr("leaves out"));
}

TEST_F(ValidateTest, RefusesOutlierStarts) {
  const std::vector<uint32_t> good = storage_.outlier_start;
  storage_.outlier_start[0] = 1;
  EXPECT_THAT(Error(), HasSubstr("begin at 0"));
  storage_.outlier_start = good;
  storage_.outlier_start[2] = storage_.outlier_start[3] + 1;
  EXPECT_THAT(Error(), HasSubstr("descends"));
  storage_.outlier_start = good;
  storage_.outlier_start.back() += 1;
  EXPECT_THAT(Error(), HasSubstr("does not end"));
  storage_.outlier_start = good;
  storage_.outlier_start.push_back(good.back());
  EXPECT_THAT(Error(), HasSubstr("wrong length"));
  storage_.outlier_start.clear();
  EXPECT_THAT(Error(), HasSubstr("without their start table"));
}

TEST_F(ValidateTest, RefusesOutlierPlaces) {
  const uint32_t good = storage_.outliers.back();  // row block 1: rows 16-19, last tile
  const int last_channels = storage_.shape.tile_chunks(2, storage_.shape.tiles(2) - 1) * 128;
  ASSERT_LT(last_channels, 512);
  storage_.outliers.back() = (good & ~0x1FFu) | last_channels;
  EXPECT_THAT(Error(), HasSubstr("beyond its tile"));
  storage_.outliers.back() = (good & ~(0xFu << 9)) | 4u << 9;
  EXPECT_THAT(Error(), HasSubstr("beyond the rows"));
  storage_.outliers.back() = good;
  const int padding = PaddingPosition();
  ASSERT_LT(padding, 32);  // in the first tile
  ASSERT_GT(storage_.outlier_start[1], 0u);
  storage_.outliers[0] = (storage_.outliers[0] & ~0x1FFu) | static_cast<uint32_t>(padding * 16);
  EXPECT_THAT(Error(), HasSubstr("padding strip"));
}

TEST(HalfTest, EveryHalfSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = HalfToFloat(static_cast<uint16_t>(bits));
    if ((bits & 0x7C00) == 0x7C00) {
      EXPECT_EQ(std::isnan(value), (bits & 0x3FF) != 0);
      EXPECT_EQ(std::isinf(value), (bits & 0x3FF) == 0);
      continue;
    }
    EXPECT_EQ(FloatToHalf(value), bits);
    const int exponent = (bits >> 10) & 31, mantissa = bits & 0x3FF;
    const double expected =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    EXPECT_EQ(std::fabs(value), expected);
    EXPECT_EQ(std::signbit(value), (bits & 0x8000) != 0);
  }
}

TEST(HalfTest, RoundsToNearestEvenAndSaturates) {
  for (uint32_t bits = 0; bits < 0x7BFF; ++bits) {
    const double low = HalfToFloat(bits), high = HalfToFloat(bits + 1), middle = (low + high) / 2;
    EXPECT_EQ(FloatToHalf(static_cast<float>(middle)), bits + (bits & 1)) << bits;
    EXPECT_EQ(FloatToHalf(std::nextafter(static_cast<float>(middle), 1e9f)), bits + 1) << bits;
    EXPECT_EQ(FloatToHalf(std::nextafter(static_cast<float>(middle), -1.0f)), bits) << bits;
  }
  EXPECT_EQ(FloatToHalf(65519.0f), 0x7BFF);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7BFF);
  EXPECT_EQ(FloatToHalf(1e30f), 0x7BFF);
  EXPECT_EQ(FloatToHalf(-std::numeric_limits<float>::infinity()), 0xFBFF);
  EXPECT_EQ(FloatToHalf(1e-30f), 0);
  EXPECT_EQ(FloatToHalf(-0.0f), 0x8000);
  EXPECT_TRUE(std::isnan(HalfToFloat(FloatToHalf(NAN))));
}

}  // namespace
}  // namespace fewbit::quant
