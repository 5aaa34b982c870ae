// What a full server says: limits, retry delays, duplicate ids.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "fewbit/internal/status_details.pb.h"
#include "tests/server/server_harness.h"

namespace fewbit::testing {
namespace {

using ::testing::HasSubstr;

// grpc-retry-pushback-ms of a finished call; -1 without.
int PushbackMs(const grpc::ClientContext& context) {
  const auto& trailers = context.GetServerTrailingMetadata();
  const auto found = trailers.find("grpc-retry-pushback-ms");
  if (found == trailers.end()) return -1;
  return std::atoi(std::string(found->second.data(), found->second.size()).c_str());
}

// Holds calls open at a closed gate.
class Crowd {
 public:
  explicit Crowd(Harness* harness) : harness_(harness) {}
  void Add(const v1::GenerateRequest& request) {
    contexts_.push_back(std::make_unique<grpc::ClientContext>());
    readers_.push_back(harness_->stub().GenerateStream(contexts_.back().get(), request));
  }
  void ExpectAllOk() {
    for (auto& reader : readers_) EXPECT_TRUE(Collect(reader.get()).status.ok());
  }

 private:
  Harness* const harness_;
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts_;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>>> readers_;
};

void WaitForCounts(Harness& harness, int running, int waiting) {
  WaitFor(
      [&] {
        const EngineStats stats = harness.server().engine_stats();
        return stats.requests_running == running && stats.requests_waiting == waiting;
      },
      "the requests to be in place");
}

TEST(OverloadTest, AFullQueueIsResourceExhaustedWithADelay) {
  HarnessOptions options{.gate_closed = true};
  options.config.max_running = 1;
  options.config.max_waiting = 2;
  Harness harness(options);
  Crowd crowd(&harness);
  crowd.Add(harness.Saying(" one"));
  harness.executor().WaitUntilHeld();
  crowd.Add(harness.Saying(" two"));
  crowd.Add(harness.Saying(" three"));
  WaitForCounts(harness, 1, 2);

  int last_delay = 0;
  for (int i = 0; i < 3; ++i) {
    grpc::ClientContext context;
    const Collected refused = Stream(harness.stub(), harness.Saying(" four"), &context);
    EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_THAT(refused.status.error_message(), HasSubstr("limit is 3"));
    EXPECT_TRUE(refused.messages.empty());
    EXPECT_GT(PushbackMs(context), last_delay) << "each refused client is told to come later";
    last_delay = PushbackMs(context);
    internal::StatusDetails details;
    ASSERT_TRUE(details.ParseFromString(refused.status.error_details()));
    ASSERT_EQ(details.details_size(), 1);
    EXPECT_EQ(details.details(0).type_url(), "type.googleapis.com/google.rpc.RetryInfo");
    internal::RetryInfo retry;
    ASSERT_TRUE(retry.ParseFromString(details.details(0).value()));
    EXPECT_EQ(retry.retry_delay().seconds() * 1000 + retry.retry_delay().nanos() / 1000000,
              last_delay);
  }
  EXPECT_EQ(harness.Count(Outcome::kQueueFull), 3u);
  harness.executor().OpenGate();
  crowd.ExpectAllOk();
  EXPECT_TRUE(Stream(harness.stub(), harness.Saying(" five")).status.ok());
  harness.ExpectIdle();
}

// Requests that came while a step runs wait for the next one, even if there are places for them.
TEST(OverloadTest, ABurstFillsThePlacesAndTheQueue) {
  HarnessOptions options{.gate_closed = true};
  options.config.max_running = 3;
  options.config.max_waiting = 1;
  Harness harness(options);
  Crowd crowd(&harness);
  crowd.Add(harness.Saying(" one"));
  harness.executor().WaitUntilHeld();
  for (const char* word : {" two", " three", " four"}) crowd.Add(harness.Saying(word));
  WaitForCounts(harness, 1, 3);
  const Collected refused = Stream(harness.stub(), harness.Saying(" five"));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("limit is 4"));
  harness.executor().OpenGate();
  crowd.ExpectAllOk();
  harness.ExpectIdle();
}

TEST(OverloadTest, QueuedTokensAreLimited) {
  HarnessOptions options{.gate_closed = true};
  options.config.max_running = 1;
  options.config.max_waiting_tokens = 100;
  Harness harness(options);
  Crowd crowd(&harness);
  crowd.Add(harness.Saying(" one"));
  harness.executor().WaitUntilHeld();
  v1::GenerateRequest big = harness.Saying(" two");
  for (int i = 0; i < 80; ++i) big.mutable_token_ids()->add_ids(5);
  crowd.Add(big);
  WaitForCounts(harness, 1, 1);
  grpc::ClientContext context;
  const Collected refused = Stream(harness.stub(), big, &context);
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("limit is 100"));
  EXPECT_GT(PushbackMs(context), 0);
  harness.executor().OpenGate();
  crowd.ExpectAllOk();
}

TEST(OverloadTest, OpenCallsAreLimited) {
  HarnessOptions options{.gate_closed = true};
  options.config.max_streams = 2;
  Harness harness(options);
  Crowd crowd(&harness);
  crowd.Add(harness.Saying(" one"));
  crowd.Add(harness.Saying(" two"));
  WaitFor([&] { return harness.server().stats().open_streams.load() == 2; }, "two calls");
  v1::GenerateResponse response;
  grpc::ClientContext context;
  const grpc::Status refused =
      harness.stub().Generate(&context, harness.Saying(" three"), &response);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(refused.error_message(), HasSubstr("2 calls are open"));
  EXPECT_EQ(harness.Count(Outcome::kTooManyStreams), 1u);
  harness.executor().OpenGate();
  crowd.ExpectAllOk();
}

TEST(OverloadTest, ARequestBeyondTheWholeCacheIsInvalid) {
  Harness harness({.num_blocks = 4});  // 64 tokens
  v1::GenerateRequest request = harness.Saying(" x");
  request.mutable_stopping()->set_max_new_tokens(200);
  const Collected refused = Stream(harness.stub(), request);
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  harness.ExpectIdle();
}

TEST(DuplicateIdTest, IsRefusedWhileTheFirstRuns) {
  Harness harness({.gate_closed = true});
  v1::GenerateRequest request = harness.Saying(" one");
  request.set_request_id("same");
  Crowd crowd(&harness);
  crowd.Add(request);
  harness.executor().WaitUntilHeld();
  const Collected second = Stream(harness.stub(), request);
  EXPECT_EQ(second.status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_THAT(second.status.error_message(), HasSubstr("\"same\""));
  EXPECT_EQ(harness.Count(Outcome::kDuplicateId), 1u);
  harness.executor().OpenGate();
  crowd.ExpectAllOk();
  EXPECT_TRUE(Stream(harness.stub(), request).status.ok()) << "free again at once";
}

}  // namespace
}  // namespace fewbit::testing
