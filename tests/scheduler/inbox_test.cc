#include "scheduler/inbox.h"

#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "tests/scheduler/request_maker.h"

namespace fewbit {
namespace {

absl::Time At(int64_t ms) { return absl::UnixEpoch() + absl::Milliseconds(ms); }

std::vector<TokenEvent> Final(uint64_t id) {
  TokenEvent event;
  event.kind = TokenEvent::Kind::kFinished;
  event.request = RequestId{id};
  event.finish_reason = FinishReason::kLength;
  return {event};
}

class InboxTest : public ::testing::Test {
 protected:
  absl::Status Submit(uint64_t id, int32_t prompt_tokens) {
    return inbox_.Submit(MakeRequest(id, prompt_tokens, 1), At(0));
  }
  InboxContents Take() {
    InboxContents contents;
    inbox_.Take(&contents);
    return contents;
  }

  Inbox inbox_{{.max_waiting = 3, .max_waiting_tokens = 10, .max_running = 2}};
};

TEST_F(InboxTest, HandsOverAllAtOnceInOrder) {
  ASSERT_TRUE(Submit(5, 1).ok());
  ASSERT_TRUE(Submit(4, 2).ok());
  inbox_.Cancel(RequestId{5}, At(0));
  const InboxContents contents = Take();
  ASSERT_EQ(contents.requests.size(), 2u);
  EXPECT_EQ(contents.requests[0]->id, RequestId{5});
  EXPECT_EQ(contents.requests[1]->id, RequestId{4});
  EXPECT_EQ(contents.cancelled, std::vector<RequestId>{RequestId{5}});
  EXPECT_FALSE(contents.draining);
  EXPECT_TRUE(Take().requests.empty());
}

TEST_F(InboxTest, CountsWhatStillWaitsInTheScheduler) {
  ASSERT_TRUE(Submit(1, 2).ok());
  ASSERT_TRUE(Submit(2, 2).ok());
  Take();
  EXPECT_EQ(inbox_.counts().waiting, 2);
  EXPECT_EQ(inbox_.counts().waiting_tokens, 4);
  ASSERT_TRUE(Submit(3, 2).ok());
  EXPECT_EQ(Submit(4, 1).message(), "request queue is full: 3 requests wait, max_waiting is 3");
  inbox_.Settle({}, 1, 2);  // one was admitted
  EXPECT_EQ(inbox_.counts().waiting, 2);
  EXPECT_EQ(Submit(4, 7).message(),
            "token queue is full: 4 prompt tokens wait, this request has 7, max_waiting_tokens is "
            "10");
  EXPECT_TRUE(Submit(4, 6).ok());
  EXPECT_EQ(inbox_.counts().waiting_tokens, 10);
}

TEST_F(InboxTest, AnIdIsLiveUntilItsFinalEvent) {
  ASSERT_TRUE(Submit(1, 1).ok());
  EXPECT_EQ(Submit(1, 1).message(), "request id 1 is live already");
  Take();
  EXPECT_EQ(Submit(1, 1).code(), absl::StatusCode::kInvalidArgument);
  inbox_.Settle(Final(1), 0, 0);
  EXPECT_TRUE(Submit(1, 1).ok());
}

TEST_F(InboxTest, CancellationsAreBoundedByLiveRequests) {
  ASSERT_TRUE(Submit(1, 1).ok());
  for (int i = 0; i < 100; ++i) inbox_.Cancel(RequestId{1}, At(0));
  for (uint64_t id = 2; id < 100; ++id) inbox_.Cancel(RequestId{id}, At(0));
  EXPECT_EQ(Take().cancelled, std::vector<RequestId>{RequestId{1}});
  inbox_.Settle(Final(1), 0, 0);
  inbox_.Cancel(RequestId{1}, At(0));
  EXPECT_TRUE(Take().cancelled.empty());
}

TEST_F(InboxTest, TheEarliestDrainDeadlineCounts) {
  inbox_.Drain(At(50), At(0));
  inbox_.Drain(At(20), At(0));
  inbox_.Drain(At(90), At(0));
  const InboxContents contents = Take();
  EXPECT_TRUE(contents.draining);
  EXPECT_EQ(contents.drain_deadline, At(20));
  EXPECT_EQ(Submit(1, 1).code(), absl::StatusCode::kUnavailable);
}

TEST_F(InboxTest, ClosedSaysWhy) {
  inbox_.Close(absl::UnavailableError("device lost"));
  const absl::Status status = Submit(1, 1);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(status.message(), "device lost");
}

TEST_F(InboxTest, WaitReturnsForEveryKindOfNews) {
  ASSERT_TRUE(Submit(1, 1).ok());
  inbox_.Wait();  // news is there already: returns at once
  Take();
  for (int kind = 0; kind < 3; ++kind) {
    std::thread waker([this, kind] {
      while (inbox_.counts().idle_until != absl::InfiniteFuture()) std::this_thread::yield();
      if (kind == 0) inbox_.Submit(MakeRequest(2, 1, 1), At(7)).IgnoreError();
      if (kind == 1) inbox_.Cancel(RequestId{1}, At(8));
      if (kind == 2) inbox_.Drain(At(100), At(9));
    });
    inbox_.Wait();
    waker.join();
    EXPECT_EQ(inbox_.counts().idle_until, At(7 + kind)) << "asleep until the news came";
    Take();
  }
}

}  // namespace
}  // namespace fewbit
