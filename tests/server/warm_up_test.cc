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
    EXPECT_TRUE(WarmUp(Spec(), &executor).ok());
    EXPECT_EQ(executor.steps(), 4u);
    EXPECT_EQ(executor.max_steps_in_flight_seen(), steps_in_flight);
    EXPECT_TRUE(WarmUp(Spec(), &executor).ok()) << "the executor is as good as new";
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
  EXPECT_TRUE(WarmUp(spec, &executor).ok());
}

TEST(WarmUpTest, SaysWhatIsWrong) {
  FakeExecutor broken;
  broken.FailNextStep(absl::InternalError("device lost"));
  absl::Status status = WarmUp(Spec(), &broken);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("fake"), HasSubstr("device lost")));
  FakeExecutor not_a_number;
  not_a_number.FailRowsOf(RequestId{1});
  status = WarmUp(Spec(), &not_a_number);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("not finite"));
}

}  // namespace
}  // namespace fewbit
