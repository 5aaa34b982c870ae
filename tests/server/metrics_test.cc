#include "server/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace fewbit {
namespace {

TEST(HistogramTest, BucketsAreCumulativeWithInclusiveBounds) {
  static constexpr double kBounds[] = {1, 2, 5};
  Histogram histogram(kBounds);
  for (double value : {0.5, 1.0, 1.5, 5.0, 7.0}) histogram.Observe(value);
  const auto collected = histogram.Collect().histogram;
  ASSERT_EQ(collected.bucket.size(), 4u);
  EXPECT_EQ(collected.bucket[0].cumulative_count, 2u);
  EXPECT_EQ(collected.bucket[1].cumulative_count, 3u);
  EXPECT_EQ(collected.bucket[2].cumulative_count, 4u);
  EXPECT_EQ(collected.bucket[3].cumulative_count, 5u);
  EXPECT_TRUE(std::isinf(collected.bucket[3].upper_bound));
  EXPECT_EQ(collected.sample_count, 5u);
  EXPECT_DOUBLE_EQ(collected.sample_sum, 15.0);
}

TEST(HistogramTest, LosesNothingUnderConcurrency) {
  static constexpr double kBounds[] = {1};
  Histogram histogram(kBounds);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 10000; ++i) histogram.Observe(i % 2 == 0 ? 0.5 : 2.0);
    });
  }
  for (std::thread& thread : threads) thread.join();
  const auto collected = histogram.Collect().histogram;
  EXPECT_EQ(collected.bucket[0].cumulative_count, 20000u);
  EXPECT_EQ(collected.sample_count, 40000u);
  EXPECT_DOUBLE_EQ(collected.sample_sum, 50000.0);
}

TEST(OutcomeTest, EveryOutcomeHasALabelPairOfItsOwn) {
  std::set<std::pair<std::string, std::string>> seen;
  for (int i = 0; i < kNumOutcomes; ++i) {
    const OutcomeLabels labels = LabelsOf(static_cast<Outcome>(i));
    EXPECT_TRUE(seen.emplace(labels.code, labels.reason).second) << labels.reason;
  }
  EXPECT_STREQ(LabelsOf(Outcome::kInternal).code, "INTERNAL");
  EXPECT_STREQ(LabelsOf(Outcome::kSlowReader).reason, "slow_reader");
  EXPECT_STREQ(LabelsOf(Outcome::kDrained).code, "OK");
}

}  // namespace
}  // namespace fewbit
