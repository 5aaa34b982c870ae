// More than 100,000 requests over pools, budgets and loads of many shapes; see simulation.h for
// what is checked on every step.
#include "tests/sim/simulation.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <numeric>
#include <string>
#include <vector>

namespace fewbit {
namespace {

SchedulerLimits Limits(int32_t running, int32_t waiting, int32_t budget, int32_t context,
                       int32_t block_tokens, int32_t num_blocks, int32_t steps_in_flight) {
  return {.max_running = running,
          .max_waiting = waiting,
          .step_token_budget = budget,
          .max_context = context,
          .block_tokens = block_tokens,
          .num_blocks = num_blocks,
          .vocab_size = 50,
          .max_steps_in_flight = steps_in_flight};
}

std::vector<SimulationShape> PlainShapes() {
  return {
      {.name = "Roomy",
       .limits = Limits(32, 64, 128, 256, 16, 512, 1),
       .requests = 45000,
       .max_prompt = 60,
       .max_new = 20,
       .mean_gap_ms = 0.8,
       .cancel = 0.05,
       .deadline = 0.1,
       .time_limit = 0.1,
       .prompt_logprobs = 0.1,
       .bad_row = 0.0005},
      {.name = "TinyPool",
       .limits = Limits(16, 32, 32, 64, 4, 17, 1),
       .requests = 45000,
       .max_prompt = 30,
       .max_new = 20,
       .mean_gap_ms = 2.0,
       .cancel = 0.05,
       .deadline = 0.1,
       .time_limit = 0.1,
       .prompt_logprobs = 0.1},
      {.name = "OneSlot",
       .limits = Limits(1, 8, 1, 40, 8, 5, 1),
       .requests = 15000,
       .max_prompt = 20,
       .max_new = 10,
       .mean_gap_ms = 30.0,
       .cancel = 0.01,
       .deadline = 0.3,
       .time_limit = 0.1,
       .prompt_logprobs = 0.3},
      {.name = "BudgetBelowPrompts",
       .limits = Limits(8, 64, 8, 256, 16, 128, 1),
       .requests = 30000,
       .max_prompt = 100,
       .max_new = 8,
       .mean_gap_ms = 15.0,
       .cancel = 0.01,
       .deadline = 0.1,
       .time_limit = 0.1,
       .prompt_logprobs = 0.2},
  };
}

std::vector<SimulationShape> RoughShapes() {
  return {
      {.name = "Bursts",
       .limits = Limits(24, 200, 64, 128, 8, 100, 1),
       .requests = 45000,
       .max_prompt = 40,
       .max_new = 16,
       .mean_gap_ms = 20.0,
       .burst = 0.5,
       .cancel = 0.2,
       .deadline = 0.3,
       .time_limit = 0.2},
      {.name = "Failures",
       .limits = Limits(12, 40, 48, 128, 8, 80, 1),
       .requests = 30000,
       .max_prompt = 40,
       .max_new = 16,
       .mean_gap_ms = 2.0,
       .cancel = 0.05,
       .deadline = 0.1,
       .failure = 0.005},
  };
}

std::vector<SimulationShape> StepsInFlightShapes() {
  return {
      {.name = "TwoStepsInFlight",
       .limits = Limits(16, 64, 32, 128, 8, 90, 2),
       .requests = 45000,
       .max_prompt = 60,
       .max_new = 16,
       .mean_gap_ms = 1.5,
       .cancel = 0.2,
       .deadline = 0.1,
       .time_limit = 0.1,
       .prompt_logprobs = 0.2},
      {.name = "TwoStepsTinyPool",
       .limits = Limits(6, 32, 12, 64, 4, 20, 2),
       .requests = 30000,
       .max_prompt = 40,
       .max_new = 12,
       .mean_gap_ms = 3.0,
       .cancel = 0.5,
       .deadline = 0.2,
       .time_limit = 0.1,
       .failure = 0.002},
      {.name = "FourStepsInFlight",
       .limits = Limits(20, 64, 24, 128, 8, 64, 4),
       .requests = 30000,
       .max_prompt = 80,
       .max_new = 12,
       .mean_gap_ms = 1.5,
       .burst = 0.05,
       .cancel = 0.3,
       .deadline = 0.1,
       .prompt_logprobs = 0.1,
       .failure = 0.001,
       .bad_row = 0.0005},
  };
}

std::vector<SimulationShape> Shapes() {
  std::vector<SimulationShape> shapes;
  for (const auto& group : {PlainShapes(), RoughShapes(), StepsInFlightShapes()}) {
    shapes.insert(shapes.end(), group.begin(), group.end());
  }
  for (size_t i = 0; i < shapes.size(); ++i) shapes[i].seed = 1000 + i;
  return shapes;
}

// Requests that nobody and no clock interrupts: what they are told is theirs alone.
SimulationShape UndisturbedShape(int32_t steps_in_flight) {
  return {.name = "Undisturbed",
          .limits = Limits(12, 64, 24, 96, 8, 60, steps_in_flight),
          .requests = 20000,
          .max_prompt = 40,
          .max_new = 16,
          .mean_gap_ms = 2.0,
          .seed = 77};
}

class SimulationTest : public ::testing::TestWithParam<SimulationShape> {};

TEST_P(SimulationTest, HoldsEveryPropertyOnEveryStep) {
  const SimulationShape& shape = GetParam();
  Simulation simulation(shape);
  EXPECT_EQ(simulation.Run(), "");
  int64_t finished = 0;
  for (const FinishReason reason :
       {FinishReason::kLength, FinishReason::kStopToken, FinishReason::kTimeLimit,
        FinishReason::kCancelled, FinishReason::kDeadline, FinishReason::kDrained,
        FinishReason::kError}) {
    finished += simulation.count(reason);
  }
  EXPECT_EQ(finished, shape.requests);
  // The load was really mixed: otherwise the properties were checked on nothing.
  EXPECT_GT(simulation.count(FinishReason::kLength), shape.requests / 40);
  EXPECT_GT(simulation.count(FinishReason::kStopToken), shape.requests / 40);
  const auto happened = [&](FinishReason reason) { return simulation.count(reason) > 0; };
  EXPECT_EQ(happened(FinishReason::kCancelled), shape.cancel > 0);
  EXPECT_EQ(happened(FinishReason::kDeadline), shape.deadline > 0);
  EXPECT_EQ(happened(FinishReason::kTimeLimit), shape.time_limit > 0);
  EXPECT_EQ(happened(FinishReason::kError), shape.failure > 0 || shape.bad_row > 0);
  EXPECT_EQ(happened(FinishReason::kDrained), shape.failure > 0);
  // With one step in flight nothing is run for nobody, unless all ends while it runs.
  EXPECT_EQ(simulation.dropped_tokens() > 0,
            shape.limits.max_steps_in_flight > 1 || shape.failure > 0);
  std::printf("%s: %d requests, %lld steps, length %lld stop %lld cancelled %lld deadline %lld\n",
              shape.name.c_str(), shape.requests, static_cast<long long>(simulation.steps()),
              static_cast<long long>(simulation.count(FinishReason::kLength)),
              static_cast<long long>(simulation.count(FinishReason::kStopToken)),
              static_cast<long long>(simulation.count(FinishReason::kCancelled)),
              static_cast<long long>(simulation.count(FinishReason::kDeadline)));
}

INSTANTIATE_TEST_SUITE_P(Shapes, SimulationTest, ::testing::ValuesIn(Shapes()),
                         [](const auto& info) { return info.param.name; });

TEST(StepsInFlightTest, ResultsDoNotDependOnThem) {
  Simulation one(UndisturbedShape(1));
  ASSERT_EQ(one.Run(), "");
  for (const int32_t steps_in_flight : {2, 3}) {
    Simulation more(UndisturbedShape(steps_in_flight));
    ASSERT_EQ(more.Run(), "");
    int64_t stopped = 0;
    for (uint64_t id = 1; id <= 20000; ++id) {
      ASSERT_EQ(more.tokens(id), one.tokens(id)) << "request " << id;
      ASSERT_EQ(more.reason(id), one.reason(id)) << "request " << id;
      stopped += one.reason(id) == FinishReason::kStopToken;
    }
    // A length is known ahead; a stop costs at most what was planned behind it.
    EXPECT_GT(more.dropped_tokens(), 0);
    EXPECT_LE(more.dropped_tokens(), stopped * (steps_in_flight - 1));
  }
}

TEST(SimulationSizeTest, CoversAHundredThousandRequests) {
  const std::vector<SimulationShape> shapes = Shapes();
  const int32_t total =
      std::accumulate(shapes.begin(), shapes.end(), 0,
                      [](int32_t sum, const SimulationShape& s) { return sum + s.requests; });
  EXPECT_GE(total, 100000);
}

}  // namespace
}  // namespace fewbit
