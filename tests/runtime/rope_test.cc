#include "runtime/models/rope.h"

#include <cmath>
#include <numbers>

#include "gtest/gtest.h"

namespace fewbit {
namespace {

RopeSpec Plain(int rotary_dim) {
  RopeSpec rope;
  rope.theta = 10000.0;
  rope.rotary_dim = rotary_dim;
  return rope;
}

TEST(Rope, FrequenciesAreAGeometricSeries) {
  const auto f = RopeFrequencies(Plain(8));
  ASSERT_EQ(f.size(), 4u);
  EXPECT_DOUBLE_EQ(f[0], 1.0);
  EXPECT_NEAR(f[1], 0.1, 1e-15);
  EXPECT_NEAR(f[3], 0.001, 1e-15);
}

TEST(Rope, LinearScalingStretchesPositions) {
  RopeSpec rope = Plain(8);
  rope.scaling = RopeScaling::kLinear;
  rope.factor = 4.0;
  EXPECT_NEAR(RopeFrequencies(rope)[1], 0.025, 1e-15);
}

TEST(Rope, Llama3KeepsShortWavesAndStretchesLongOnes) {
  RopeSpec rope = Plain(64);
  rope.theta = 500000.0;
  const auto plain = RopeFrequencies(rope);
  rope.scaling = RopeScaling::kLlama3;
  rope.factor = 8.0;
  rope.low_freq_factor = 1.0;
  rope.high_freq_factor = 4.0;
  rope.original_max_positions = 8192;
  const auto scaled = RopeFrequencies(rope);
  int kept = 0, stretched = 0, between = 0;
  for (size_t i = 0; i < plain.size(); ++i) {
    const double wave = 2.0 * std::numbers::pi / plain[i];
    const double ratio = plain[i] / scaled[i];
    if (wave < 2048.0) {
      EXPECT_DOUBLE_EQ(ratio, 1.0);
      ++kept;
    } else if (wave > 8192.0) {
      EXPECT_NEAR(ratio, 8.0, 1e-12);
      ++stretched;
    } else {
      // Blended by how many waves fit into the original context: 1 gives the stretched end, 4 the
      // kept one.
      const double keep = (8192.0 / wave - 1.0) / 3.0;
      EXPECT_NEAR(scaled[i], plain[i] * (keep + (1.0 - keep) / 8.0), 1e-15);
      ++between;
    }
  }
  EXPECT_GT(kept, 0);
  EXPECT_GT(stretched, 0);
  EXPECT_GT(between, 0);
}

TEST(Rope, TableMatchesDirectSines) {
  const RopeTable table(Plain(64), 100000);
  std::vector<float> c(32), s(32);
  const auto f = RopeFrequencies(Plain(64));
  for (const int position : {0, 1, 255, 256, 257, 4095, 65537, 99999}) {
    table.Fill(position, c.data(), s.data());
    for (int i = 0; i < 32; ++i) {
      EXPECT_NEAR(c[i], std::cos(position * f[i]), 1e-7) << position;
      EXPECT_NEAR(s[i], std::sin(position * f[i]), 1e-7) << position;
    }
  }
}

}  // namespace
}  // namespace fewbit
