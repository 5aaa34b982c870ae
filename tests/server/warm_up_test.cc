#include "server/warm_up.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/runtime/fake_executor.h"

namespace fewbit {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

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
    EXPECT_TRUE(WarmUp(Spec(), nullptr, 0.1, &executor).ok());
    EXPECT_EQ(executor.steps(), 4u);
    EXPECT_EQ(executor.max_steps_in_flight_seen(), steps_in_flight);
    EXPECT_TRUE(WarmUp(Spec(), nullptr, 0.1, &executor).ok()) << "the executor is as good as new";
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
  EXPECT_TRUE(WarmUp(spec, nullptr, 0.1, &executor).ok());
}

constexpr double kLimit = 0.1;

// An executor that gives TheAnswer to everything.
FakeExecutorOptions Answers() {
  FakeExecutorOptions options;
  options.script = [](const SampleRow&) { return TokenId{13}; };
  return options;
}
TopTokens AnswerOf(int first, float logprob) {
  TopTokens top;
  for (int i = 0; i < Canary::kTop; ++i) {
    top.ids.push_back(TokenId{first + i});
    top.logprobs.push_back(logprob - static_cast<float>(i));
  }
  return top;
}
TopTokens TheAnswer() { return AnswerOf(13, -0.125f * (13 % 8)); }

Canary TheCanary() {
  Canary canary;
  for (const int length : {3, 1, 2}) {
    CanaryPrompt prompt;
    for (int i = 0; i < length; ++i) prompt.token_ids.push_back(TokenId{1 + i});
    prompt.expected = TheAnswer();
    prompt.original = AnswerOf(14, -0.75f);
    canary.prompts.push_back(prompt);
  }
  return canary;
}

TEST(WarmUpTest, TheCanaryIsAnsweredAsItShouldBe) {
  FakeExecutor executor(Answers());
  Canary canary = TheCanary();
  const auto result = WarmUp(Spec(), &canary, kLimit, &executor);
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_TRUE(result->canary.has_value());
  EXPECT_EQ(result->canary->expected_served, 0.0);
  EXPECT_GT(*result->canary->original_served, kLimit) << "that is not what is limited";
  EXPECT_EQ(result->canary->original_served, result->canary->original_expected);
  EXPECT_THAT(result->about_canary,
              AllOf(HasSubstr("0.0000 nats"), HasSubstr("from the original's")));

  for (CanaryPrompt& prompt : canary.prompts) prompt.original.reset();
  const auto alone = WarmUp(Spec(), &canary, kLimit, &executor);
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_FALSE(alone->canary->original_served.has_value());
  EXPECT_THAT(alone->about_canary, Not(HasSubstr("original")));
}

TEST(WarmUpTest, OneWrongAnswerIsEnough) {
  FakeExecutor executor(Answers());
  for (const size_t wrong : {0, 1, 2}) {
    Canary canary = TheCanary();
    canary.prompts[wrong].expected = AnswerOf(500, -0.5f);
    const auto result = WarmUp(Spec(), &canary, kLimit, &executor);
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInternal);
    EXPECT_THAT(
        std::string(result.status().message()),
        AllOf(HasSubstr("fake"), HasSubstr("canary.json"), HasSubstr("--canary_kl_limit is 0.1")));
    EXPECT_TRUE(WarmUp(Spec(), &canary, 100.0, &executor).ok());
  }
  // No further from what the machine that made it said, yet further from the original.
  Canary canary = TheCanary();
  for (CanaryPrompt& prompt : canary.prompts) {
    prompt.expected.logprobs[0] += 0.05f;
    prompt.original = prompt.expected;
    prompt.original->logprobs[0] += 0.2f;
  }
  const auto well = WarmUp(Spec(), &canary, 0.2, &executor);
  ASSERT_TRUE(well.ok()) << well.status();
  EXPECT_LT(well->canary->expected_served, 0.01);
  EXPECT_GT(*well->canary->original_served - *well->canary->original_expected, 0.02);
  EXPECT_EQ(WarmUp(Spec(), &canary, 0.02, &executor).status().code(), absl::StatusCode::kInternal);
}

TEST(WarmUpTest, ACanaryWithoutNumbersIsBroken) {
  FakeExecutor broken(Answers());
  broken.FailRowsOf(RequestId{3});
  const Canary canary = TheCanary();
  EXPECT_THAT(std::string(WarmUp(Spec(), &canary, kLimit, &broken).status().message()),
              HasSubstr("not finite"));
}

TEST(WarmUpTest, ACanaryThatDoesNotFitIsLeftOut) {
  FakeExecutorOptions options = Answers();
  options.info.max_context = 3;
  FakeExecutor executor(options);
  const Canary canary = TheCanary();
  const auto result = WarmUp(Spec(), &canary, kLimit, &executor);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->about_canary, HasSubstr("longer than the context"));
  EXPECT_FALSE(result->canary.has_value());
}

TEST(WarmUpTest, SaysWhatIsWrong) {
  FakeExecutor broken;
  broken.FailNextStep(absl::InternalError("device lost"));
  absl::Status status = WarmUp(Spec(), nullptr, 0.1, &broken).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("fake"), HasSubstr("device lost")));
  FakeExecutor not_a_number;
  not_a_number.FailRowsOf(RequestId{1});
  status = WarmUp(Spec(), nullptr, 0.1, &not_a_number).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("not finite"));
}

}  // namespace
}  // namespace fewbit
