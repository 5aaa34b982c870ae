// How requests end before their time: cancellation, deadline, a client that vanishes or does not
// read, Abort, drain.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <grpcpp/create_channel_posix.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "tests/server/server_harness.h"

namespace fewbit::testing {
namespace {

using ::testing::AnyOf;

v1::GenerateRequest Endless(Harness& harness) {
  v1::GenerateRequest request = harness.Saying(" x");
  request.mutable_stopping()->set_ignore_eos(true);
  request.mutable_stopping()->set_max_new_tokens(4000);
  return request;
}

// Lets the first step go, reads its token and returns when the second step is held at the gate.
void ReadOneToken(Harness& harness, grpc::ClientReader<v1::GenerateResponse>* reader,
                  v1::GenerateResponse* message) {
  harness.executor().AllowSteps(1);
  ASSERT_TRUE(reader->Read(message));
  harness.executor().WaitUntilHeld();
}

// With one request running, a step held at the gate and the engine told to end the request: letting
// that one step go must free everything. The gate lets no other step through.
void ExpectFreedWithinTheStep(Harness& harness) {
  const uint64_t steps = harness.executor().steps();
  EXPECT_GT(harness.server().engine_stats().blocks_used, 0);
  harness.executor().AllowSteps(1);
  harness.ExpectIdle();
  EXPECT_LE(harness.executor().steps(), steps + 1);
}

bool LeftSeen(Harness& harness, uint64_t calls) {
  return harness.server().stats().abandoned_calls.load() >= calls;
}

TEST(CancellationTest, FreesTheSlotWithinAStep) {
  Harness harness({.gate_closed = true});
  grpc::ClientContext context;
  const auto reader = harness.stub().GenerateStream(&context, Endless(harness));
  v1::GenerateResponse message;
  ReadOneToken(harness, reader.get(), &message);
  context.TryCancel();
  WaitFor([&] { return LeftSeen(harness, 1); }, "the cancellation to arrive");
  ExpectFreedWithinTheStep(harness);
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(harness.Count(Outcome::kClientLeft), 1u);
  const ServerStats& stats = harness.server().stats();
  EXPECT_EQ(stats.generated_tokens_delivered.load(), 0u);
  EXPECT_GT(Sum(stats.wasted.generated), 0u);
}

TEST(CancellationTest, OfAUnaryCall) {
  Harness harness({.gate_closed = true});
  grpc::ClientContext context;
  std::thread caller([&] {
    v1::GenerateResponse response;
    EXPECT_EQ(harness.stub().Generate(&context, Endless(harness), &response).error_code(),
              grpc::StatusCode::CANCELLED);
  });
  harness.executor().WaitUntilHeld();
  context.TryCancel();
  caller.join();
  WaitFor([&] { return LeftSeen(harness, 1); }, "the cancellation to arrive");
  ExpectFreedWithinTheStep(harness);
}

TEST(CancellationTest, OfAWaitingRequestLeavesTheRunningOneAlone) {
  HarnessOptions options{.gate_closed = true};
  options.config.max_running = 1;
  Harness harness(options);
  grpc::ClientContext running, waiting;
  const auto first = harness.stub().GenerateStream(&running, harness.Saying(" the sun was high"));
  harness.executor().WaitUntilHeld();
  const auto second = harness.stub().GenerateStream(&waiting, Endless(harness));
  WaitFor([&] { return harness.server().engine_stats().requests_waiting == 1; }, "a waiting one");
  waiting.TryCancel();
  WaitFor([&] { return LeftSeen(harness, 1); }, "the cancellation to arrive");
  harness.executor().OpenGate();
  EXPECT_EQ(Collect(first.get()).text, " the sun was high");
  EXPECT_EQ(second->Finish().error_code(), grpc::StatusCode::CANCELLED);
  harness.ExpectIdle();
}

TEST(DeadlineTest, EndsTheRequestAndCounts) {
  Harness harness({.gate_closed = true});
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(1));
  const auto reader = harness.stub().GenerateStream(&context, Endless(harness));
  harness.executor().WaitUntilHeld();
  EXPECT_EQ(Collect(reader.get()).status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  WaitFor([&] { return LeftSeen(harness, 1); }, "the end of the call to arrive");
  ExpectFreedWithinTheStep(harness);
  EXPECT_EQ(harness.Count(Outcome::kDeadline), 1u);
}

TEST(DeadlineTest, InTheQueue) {
  HarnessOptions options{.gate_closed = true};
  options.config.max_running = 1;
  Harness harness(options);
  grpc::ClientContext running, waiting;
  const auto first = harness.stub().GenerateStream(&running, harness.Saying(" the sun was high"));
  harness.executor().WaitUntilHeld();
  waiting.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(1));
  const auto second = harness.stub().GenerateStream(&waiting, Endless(harness));
  WaitFor([&] { return harness.server().engine_stats().requests_waiting == 1; }, "a waiting one");
  EXPECT_EQ(Collect(second.get()).status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  harness.executor().OpenGate();
  EXPECT_TRUE(Collect(first.get()).status.ok());
  harness.ExpectIdle();
  EXPECT_EQ(harness.Count(Outcome::kDeadline), 1u);
}

TEST(VanishingClientTest, FreesTheSlotWithinAStep) {
  Harness harness({.gate_closed = true});
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(harness.server().port()));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  const auto channel = grpc::CreateInsecureChannelFromFd("vanishing", fd);
  const auto stub = v1::GenerationService::NewStub(channel);
  grpc::ClientContext context;
  const auto reader = stub->GenerateStream(&context, Endless(harness));
  v1::GenerateResponse message;
  ReadOneToken(harness, reader.get(), &message);
  shutdown(fd, SHUT_RDWR);  // no RST_STREAM, no goodbye
  WaitFor([&] { return LeftSeen(harness, 1); }, "the lost connection to be noticed");
  ExpectFreedWithinTheStep(harness);
  EXPECT_FALSE(reader->Finish().ok());
}

TEST(SlowReaderTest, IsCutOffWhileOthersGoOn) {
  HarnessOptions options;
  options.config.stream_buffer_kb = 16;
  Harness harness(options);
  const auto lazy_channel = harness.NewChannel();
  const auto lazy_stub = v1::GenerationService::NewStub(lazy_channel);
  grpc::ClientContext context;
  v1::GenerateRequest request = Endless(harness);
  request.mutable_response()->set_top_logprobs(20);  // about 400 bytes a token
  const auto reader = lazy_stub->GenerateStream(&context, request);
  // It never reads: when the flow control windows are full, its buffer fills.
  EXPECT_EQ(Stream(harness.stub(), harness.Saying(" the sun was high")).text, " the sun was high");
  WaitFor([&] { return harness.Count(Outcome::kSlowReader) == 1; }, "the reader to be cut off");
  harness.ExpectIdle();
  EXPECT_LT(Sum(harness.server().stats().wasted.generated), 4000u);
  EXPECT_EQ(Stream(harness.stub(), harness.Saying(" the sun was high")).text, " the sun was high");
  EXPECT_FALSE(Collect(reader.get()).status.ok());
}

TEST(SlowReaderTest, TheEndIsNotKeptForEver) {
  HarnessOptions options;
  options.config.write_timeout_seconds = 0.1;
  Harness harness(options);
  const auto lazy_channel = harness.NewChannel();
  const auto lazy_stub = v1::GenerationService::NewStub(lazy_channel);
  grpc::ClientContext context;
  v1::GenerateRequest request = harness.Saying(" x");
  for (int i = 0; i < 4000; ++i) request.mutable_token_ids()->add_ids(5);
  request.mutable_response()->set_prompt_logprobs(true);
  request.mutable_response()->set_top_logprobs(20);  // over a megabyte, beyond every window
  request.mutable_stopping()->set_max_new_tokens(1);
  const auto reader = lazy_stub->GenerateStream(&context, request);
  WaitFor([&] { return harness.Count(Outcome::kLength) == 1; }, "the generation to end");
  harness.ExpectIdle();  // the call, too, is gone
  EXPECT_TRUE(LeftSeen(harness, 1)) << "by our own cancellation: nobody has read it";
  context.TryCancel();
  EXPECT_FALSE(reader->Finish().ok());
}

TEST(AbortTest, EndsTheStreamWithWhatThereIs) {
  Harness harness({.gate_closed = true});
  v1::GenerateRequest request = Endless(harness);
  request.set_request_id("mine");
  grpc::ClientContext context;
  const auto reader = harness.stub().GenerateStream(&context, request);
  v1::GenerateResponse message;
  ReadOneToken(harness, reader.get(), &message);
  EXPECT_EQ(message.prompt().request_id(), "mine");

  v1::AbortRequest abort;
  v1::AbortResponse answer;
  abort.set_request_id("mine");
  {
    grpc::ClientContext abort_context;
    ASSERT_TRUE(harness.stub().Abort(&abort_context, abort, &answer).ok());
  }
  EXPECT_TRUE(answer.aborted());
  ExpectFreedWithinTheStep(harness);
  const Collected rest = Collect(reader.get());
  EXPECT_TRUE(rest.status.ok());
  EXPECT_EQ(rest.last.finish_reason(), v1::FINISH_REASON_ABORTED);
  EXPECT_EQ(harness.Count(Outcome::kAborted), 1u);

  grpc::ClientContext again;
  ASSERT_TRUE(harness.stub().Abort(&again, abort, &answer).ok());
  EXPECT_FALSE(answer.aborted()) << "it has ended";
}

TEST(AbortTest, RefusesAnEmptyId) {
  Harness harness;
  v1::AbortResponse answer;
  grpc::ClientContext context;
  EXPECT_EQ(harness.stub().Abort(&context, {}, &answer).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST(DrainTest, RunningRequestsFinishAndNewOnesAreRefused) {
  Harness harness({.gate_closed = true});
  grpc::ClientContext context;
  const auto reader = harness.stub().GenerateStream(&context, harness.Saying(" the sun was high"));
  harness.executor().WaitUntilHeld();
  std::thread drain([&] { harness.server().Drain(absl::Now() + absl::Seconds(30)); });
  // A probe that comes before the drain waits behind the gate, so it has a deadline.
  WaitFor(
      [&] {
        grpc::ClientContext probe;
        probe.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(20));
        return Stream(harness.stub(), harness.Saying(" x"), &probe).status.error_code() ==
               grpc::StatusCode::UNAVAILABLE;
      },
      "new requests to be refused");
  EXPECT_GE(harness.Count(Outcome::kDraining), 1u);
  harness.executor().OpenGate();
  const Collected stream = Collect(reader.get());
  EXPECT_TRUE(stream.status.ok());
  EXPECT_EQ(stream.text, " the sun was high");
  EXPECT_EQ(stream.last.finish_reason(), v1::FINISH_REASON_EOS);
  drain.join();
}

TEST(DrainTest, CallsThatComeMeanwhileAllEnd) {
  Harness harness;
  std::atomic<int> started{0};
  std::vector<std::thread> clients;
  for (int i = 0; i < 4; ++i) {
    clients.emplace_back([&] {
      const auto stub = v1::GenerationService::NewStub(harness.NewChannel());
      grpc::Status status;
      do {
        status = Stream(*stub, harness.Saying(" the sun was high")).status;
        ++started;
      } while (status.ok());
      // CANCELLED: gRPC drops a call that arrives while it closes the port, before any service sees
      // it.
      EXPECT_THAT(status.error_code(),
                  AnyOf(grpc::StatusCode::UNAVAILABLE, grpc::StatusCode::CANCELLED))
          << status.error_message();
    });
  }
  WaitFor([&] { return started > 20; }, "clients at work");
  harness.server().Drain(absl::Now() + absl::Seconds(30));
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(harness.server().stats().open_streams.load(), 0);
  EXPECT_EQ(harness.Count(Outcome::kClientLeft), 0u) << "whatever came in was served or refused";
}

TEST(DrainTest, AtTheDeadlineRequestsEndWithWhatThereIs) {
  Harness harness({.step_time = absl::Milliseconds(2)});
  grpc::ClientContext context;
  const auto reader = harness.stub().GenerateStream(&context, Endless(harness));
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  std::thread drain([&] { harness.server().Drain(absl::Now() + absl::Milliseconds(50)); });
  const Collected stream = Collect(reader.get());
  EXPECT_TRUE(stream.status.ok()) << stream.status.error_message();
  EXPECT_EQ(stream.last.finish_reason(), v1::FINISH_REASON_DRAINED);
  EXPECT_LT(stream.token_ids.size(), 4000u);
  drain.join();
  EXPECT_EQ(harness.Count(Outcome::kDrained), 1u);
}

}  // namespace
}  // namespace fewbit::testing
