#include "server/warm_up.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/runtime/fake_executor.h"

namespace fewbit {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

ModelSpec Spec() {
  ModelSpec spec;
  spec.vocab_size = 1000;
  spec.bos = TokenId{1};
  return spec;
}

TEST(WarmUpTest, RunsAPromptAndDecodes) {
  for (const int32_t steps_in_flight : {1, 2}) {
    FakeExecutorOptions options;
    options.info.max_steps_in_flight = steps_in_flight;
    FakeExecutor executor(options);
    EXPECT_TRUE(WarmUp(Spec(), nullptr, &executor).ok());
    EXPECT_EQ(executor.steps(), 4u);
    EXPECT_EQ(executor.max_steps_in_flight_seen(), steps_in_flight);
    EXPECT_TRUE(WarmUp(Spec(), nullptr, &executor).ok()) << "the executor is as good as new";
  }
}

TEST(WarmUpTest, FitsTheSmallestModels) {
  FakeExecutorOptions options;
  options.info.max_context = 2;
  options.info.vocab_size = 3;
  options.info.num_blocks = 1;
  FakeExecutor executor(options);
  ModelSpec spec = Spec();
  spec.vocab_size = 3;
  spec.bos = TokenId{-1};
  EXPECT_TRUE(WarmUp(spec, nullptr, &executor).ok());
}

// The fake executor says -0.125 * (id % 8).
Canary TheCanary() {
  Canary canary;
  canary.token_ids = {TokenId{1}, TokenId{4}, TokenId{2}};
  canary.mean_logprob = -(0.5 + 0.25) / 2;
  canary.tolerance = 0.01;
  return canary;
}

TEST(WarmUpTest, TheCanaryIsAsLikelyAsItShouldBe) {
  FakeExecutor executor;
  Canary canary = TheCanary();
  auto said = WarmUp(Spec(), &canary, &executor);
  ASSERT_TRUE(said.ok()) << said.status();
  EXPECT_THAT(*said, AllOf(HasSubstr("the canary"), HasSubstr("-0.3750")));
  canary.mean_logprob += 0.009;
  EXPECT_TRUE(WarmUp(Spec(), &canary, &executor).ok());
  for (const double off : {0.02, -0.02}) {
    canary.mean_logprob = TheCanary().mean_logprob + off;
    said = WarmUp(Spec(), &canary, &executor);
    EXPECT_EQ(said.status().code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(said.status().message()),
                AllOf(HasSubstr("fake"), HasSubstr("canary.json"), HasSubstr("-0.3750")));
  }
  FakeExecutor broken;
  broken.FailRowsOf(RequestId{2});
  EXPECT_THAT(std::string(WarmUp(Spec(), &canary, &broken).status().message()),
              HasSubstr("not finite"));
}

TEST(WarmUpTest, ACanaryThatDoesNotFitIsLeftOut) {
  FakeExecutorOptions options;
  options.info.max_context = 3;
  FakeExecutor executor(options);
  const Canary canary = TheCanary();
  const auto said = WarmUp(Spec(), &canary, &executor);
  ASSERT_TRUE(said.ok()) << said.status();
  EXPECT_THAT(*said, HasSubstr("longer than the context"));
}

TEST(WarmUpTest, SaysWhatIsWrong) {
  FakeExecutor broken;
  broken.FailNextStep(absl::InternalError("device lost"));
  absl::Status status = WarmUp(Spec(), nullptr, &broken).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("fake"), HasSubstr("device lost")));
  FakeExecutor not_a_number;
  not_a_number.FailRowsOf(RequestId{1});
  status = WarmUp(Spec(), nullptr, &not_a_number).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("not finite"));
}

}  // namespace
}  // namespace fewbit
