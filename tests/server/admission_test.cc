#include "server/admission.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "server/status_codec.h"

namespace fewbit {
namespace {

using ::testing::HasSubstr;

class AdmissionTest : public ::testing::Test {
 protected:
  static AdmissionLimits Limits() {
    return {.max_requests = 2, .max_streams = 3, .max_waiting_tokens = 100};
  }

  EngineStats engine_;
  ServerStats stats_;
  Admission admission_{Limits(), [this] { return engine_; }, &stats_};
};

TEST_F(AdmissionTest, TicketsCountUntilTheyAreGone) {
  auto first = admission_.AdmitRequest(1);
  auto second = admission_.AdmitRequest(1);
  ASSERT_TRUE(first.ok() && second.ok());
  const absl::Status full = admission_.AdmitRequest(1).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(full.message()), HasSubstr("the limit is 2"));
  EXPECT_TRUE(RetryDelay(full).has_value());
  {
    Admission::Ticket moved = *std::move(first);
    EXPECT_FALSE(admission_.AdmitRequest(1).ok()) << "a moved ticket still counts";
  }
  EXPECT_TRUE(admission_.AdmitRequest(1).ok());
}

TEST_F(AdmissionTest, ReleasingTwiceGivesBackOnce) {
  auto first = admission_.AdmitRequest(1);
  auto second = admission_.AdmitRequest(1);
  ASSERT_TRUE(first.ok() && second.ok());
  first->Release();
  first->Release();
  auto third = admission_.AdmitRequest(1);
  EXPECT_TRUE(third.ok());
  EXPECT_FALSE(admission_.AdmitRequest(1).ok());
}

TEST_F(AdmissionTest, StreamsHaveTheirOwnLimit) {
  std::vector<Admission::Ticket> open;
  for (int i = 0; i < 3; ++i) {
    auto place = admission_.AdmitStream();
    ASSERT_TRUE(place.ok());
    open.push_back(*std::move(place));
  }
  const absl::Status full = admission_.AdmitStream().status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(full.message()), HasSubstr("the limit is 3"));
  EXPECT_EQ(stats_.open_streams.load(), 3) << "the refused call gave its place back";
  open.clear();
  EXPECT_EQ(stats_.open_streams.load(), 0);
}

TEST_F(AdmissionTest, QueuedTokensAreCheckedBeforeTokenizing) {
  engine_.waiting_tokens = 90;
  EXPECT_TRUE(admission_.AdmitRequest(10).ok());
  const absl::Status full = admission_.AdmitRequest(11).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(full.message()), HasSubstr("90 prompt tokens"));
  EXPECT_THAT(std::string(full.message()), HasSubstr("the limit is 100"));
}

TEST_F(AdmissionTest, DrainingAndFailureAreUnavailable) {
  engine_.failed = true;
  EXPECT_EQ(admission_.AdmitRequest(1).status().code(), absl::StatusCode::kUnavailable);
  engine_.failed = false;
  admission_.StartDraining();
  const absl::Status draining = admission_.AdmitRequest(1).status();
  EXPECT_EQ(draining.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(draining.message()), HasSubstr("shutting down"));
}

TEST_F(AdmissionTest, WaitForStreamsReturnsWithTheLastOne) {
  auto place = admission_.AdmitStream();
  ASSERT_TRUE(place.ok());
  admission_.StartDraining();
  std::thread reader([&] { place->Release(); });
  admission_.WaitForStreams(absl::InfiniteFuture());  // hangs if the release is not told
  EXPECT_EQ(stats_.open_streams.load(), 0);
  reader.join();
}

TEST(DrainRateTest, WithoutExperienceOneSecondPerPlace) {
  DrainRate rate;
  const absl::Time now = absl::UnixEpoch();
  EXPECT_EQ(rate.NextDelay(now), absl::Seconds(1));
  EXPECT_EQ(rate.NextDelay(now), absl::Seconds(2)) << "the second one waits for the second place";
}

TEST(DrainRateTest, DelaysFollowTheRateOfDepartures) {
  DrainRate rate;
  absl::Time now = absl::UnixEpoch();
  rate.Begin(now);
  for (int i = 0; i < 50; ++i) rate.Departed(now += absl::Milliseconds(40));
  EXPECT_EQ(rate.NextDelay(now), absl::Milliseconds(40));
  EXPECT_EQ(rate.NextDelay(now), absl::Milliseconds(80));
  rate.Departed(now += absl::Milliseconds(40));
  EXPECT_EQ(rate.NextDelay(now), absl::Milliseconds(40)) << "a place was given back";
  EXPECT_EQ(rate.NextDelay(now + absl::Seconds(1)), absl::Seconds(2)) << "overdue, second in line";
}

TEST(DrainRateTest, IdleTimeIsNoDeparture) {
  DrainRate rate;
  absl::Time now = absl::UnixEpoch();
  rate.Begin(now);
  rate.Departed(now += absl::Milliseconds(50));
  now += absl::Hours(3);
  rate.Begin(now);
  rate.Departed(now += absl::Milliseconds(50));
  EXPECT_EQ(rate.NextDelay(now), absl::Milliseconds(50));
}

TEST(DrainRateTest, DelaysAreBounded) {
  DrainRate rate;
  absl::Time now = absl::UnixEpoch();
  rate.Begin(now);
  for (int i = 0; i < 50; ++i) rate.Departed(now += absl::Microseconds(1));
  EXPECT_EQ(rate.NextDelay(now), DrainRate::kShortest);
  EXPECT_EQ(rate.NextDelay(now + absl::Hours(1)), DrainRate::kLongest);
}

}  // namespace
}  // namespace fewbit
