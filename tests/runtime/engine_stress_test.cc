// Many threads at one engine, at every number of steps in flight: the test that the thread
// sanitizer watches.
#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "runtime/engine.h"
#include "tests/runtime/engine_requests.h"
#include "tests/runtime/event_log.h"
#include "tests/runtime/fake_executor.h"

namespace fewbit {
namespace {

// A sink that dawdles, as an emitter that has fallen behind does.
class SlowLog : public EventLog {
 public:
  void OnEvents(std::span<const TokenEvent> events) override {
    for (size_t i = 0; i < events.size() % 7; ++i) std::this_thread::yield();
    EventLog::OnEvents(events);
  }
};

struct StressCounts {
  std::atomic<uint64_t> accepted{0};
  std::atomic<uint64_t> refused{0};
};

void SubmitAndCancel(Engine* engine, uint64_t first_id, int32_t requests, StressCounts* counts) {
  std::mt19937_64 random(first_id);
  for (int32_t i = 0; i < requests; ++i) {
    const uint64_t id = first_id + i;
    auto request = MakeRequest(id, 1 + static_cast<int32_t>(random() % 60),
                               1 + static_cast<int32_t>(random() % 20));
    if (random() % 8 == 0) request->deadline = absl::Now() + absl::Microseconds(random() % 2000);
    if (random() % 8 == 0) request->time_limit = absl::Now() + absl::Microseconds(random() % 2000);
    const absl::Status status = engine->Submit(std::move(request));
    if (status.ok()) {
      ++counts->accepted;
    } else {
      EXPECT_TRUE(status.code() == absl::StatusCode::kResourceExhausted ||
                  status.code() == absl::StatusCode::kUnavailable)
          << status;
      ++counts->refused;
    }
    if (random() % 3 == 0) engine->Cancel(RequestId{first_id + random() % (i + 1)});
    if (random() % 16 == 0) std::this_thread::yield();
  }
}

// Four submitters that also cancel, a reader of the counters and two drainers at once; every
// accepted request gets exactly one final event (EventLog checks that nothing follows it), whatever
// the interleaving.
void Stress(bool drain_early, EngineOptions options, FakeExecutorOptions fake) {
  constexpr int32_t kSubmitters = 4;
  constexpr int32_t kRequests = 400;
  FakeExecutor executor(fake);
  SlowLog log;
  StressCounts counts;
  std::atomic<bool> done{false};
  Engine engine(options, &executor, &log);
  std::vector<std::thread> submitters;
  for (int32_t t = 0; t < kSubmitters; ++t) {
    submitters.emplace_back(
        [&, t] { SubmitAndCancel(&engine, 1 + t * 1000000, kRequests, &counts); });
  }
  std::thread reader([&] {
    while (!done) {
      const EngineStats stats = engine.stats();
      EXPECT_LE(stats.blocks_used, stats.blocks_total);
      EXPECT_EQ(stats.step_tokens, stats.prefill_tokens + stats.decode_tokens);
      std::this_thread::yield();
    }
  });
  if (drain_early) log.WaitFinishedCount(100);
  if (!drain_early) {
    for (std::thread& thread : submitters) thread.join();
  }
  const absl::Time deadline = drain_early ? absl::Now() : absl::InfiniteFuture();
  std::thread drainer([&] { engine.Drain(deadline); });
  engine.Drain(deadline);
  drainer.join();
  if (drain_early) {
    for (std::thread& thread : submitters) thread.join();
  }
  done = true;
  reader.join();
  EXPECT_EQ(counts.accepted + counts.refused, uint64_t{kSubmitters} * kRequests);
  EXPECT_EQ(log.num_finished(), counts.accepted);
  EXPECT_EQ(engine.stats().blocks_used, 0);
  EXPECT_EQ(engine.stats().requests_waiting, 0);
  EXPECT_EQ(engine.stats().requests_running, 0);
}

class EngineStressTest : public ::testing::TestWithParam<int32_t> {  // steps in flight
 protected:
  static FakeExecutorOptions Fake() {
    FakeExecutorOptions fake;
    fake.info.max_steps_in_flight = GetParam();
    return fake;
  }
};

INSTANTIATE_TEST_SUITE_P(StepsInFlight, EngineStressTest, ::testing::Values(1, 2, 3));

TEST_P(EngineStressTest, SubmitCancelAndDrainFromManyThreads) {
  EngineOptions options;
  options.max_waiting = 2000;
  Stress(/*drain_early=*/false, options, Fake());
}

TEST_P(EngineStressTest, TinyPoolAndTinyQueue) {
  EngineOptions options;
  options.max_running = 3;
  options.max_waiting = 5;
  options.max_waiting_tokens = 150;
  options.step_token_budget = 9;
  FakeExecutorOptions fake = Fake();
  fake.info.num_blocks = 6;
  Stress(/*drain_early=*/false, options, fake);
}

TEST_P(EngineStressTest, DrainInTheMiddle) { Stress(/*drain_early=*/true, {}, Fake()); }

}  // namespace
}  // namespace fewbit
