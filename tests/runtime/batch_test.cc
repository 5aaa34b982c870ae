#include "runtime/batch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "scheduler/scheduler.h"

namespace fewbit {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

SchedulerLimits Limits(int32_t steps_in_flight = 1) {
  return {.max_running = 4,
          .max_waiting = 8,
          .step_token_budget = 10,
          .max_context = 64,
          .block_tokens = 4,
          .num_blocks = 40,
          .vocab_size = 1000,
          .max_steps_in_flight = steps_in_flight};
}

std::vector<int32_t> Ints(const std::vector<TokenId>& tokens) {
  std::vector<int32_t> ints;
  for (const TokenId token : tokens) ints.push_back(ToInt(token));
  return ints;
}

class BatchTest : public ::testing::Test {
 protected:
  explicit BatchTest(const SchedulerLimits& limits = Limits()) : scheduler_(limits) {}

  // Prompt tokens are 100 * id, 100 * id + 1, ...
  Request* Add(uint64_t id, int32_t prompt_tokens, int32_t max_new_tokens) {
    auto request = std::make_unique<Request>();
    request->id = RequestId{id};
    for (int32_t i = 0; i < prompt_tokens; ++i) {
      request->prompt.push_back(TokenId{static_cast<int32_t>(100 * id) + i});
    }
    request->max_new_tokens = max_new_tokens;
    Request* const raw = request.get();
    added_.push_back(std::move(request));
    return raw;
  }

  void Build() {
    for (auto& request : added_) scheduler_.Add(std::move(request));
    added_.clear();
    plan_ = scheduler_.PlanStep(absl::UnixEpoch(), &events_);
    ASSERT_NE(plan_, nullptr);
    BuildBatch(*plan_, Limits().block_tokens, &batch_);
  }

  // Every row becomes token 999.
  void Apply() {
    std::vector<SampledToken> rows(plan_->num_rows);
    for (SampledToken& row : rows) row.token = TokenId{999};
    scheduler_.ApplyStep(rows, absl::UnixEpoch(), &events_);
  }

  Scheduler scheduler_;
  std::vector<std::unique_ptr<Request>> added_;
  std::vector<TokenEvent> events_;
  const StepPlan* plan_ = nullptr;
  ForwardBatch batch_;
};

TEST_F(BatchTest, FlattensDecodesAndChunks) {
  Add(1, 3, 9);
  Build();
  Apply();
  Add(2, 12, 9);
  Build();
  EXPECT_THAT(Ints(batch_.token_ids),
              ElementsAre(999, 200, 201, 202, 203, 204, 205, 206, 207, 208));
  EXPECT_THAT(batch_.positions, ElementsAre(3, 0, 1, 2, 3, 4, 5, 6, 7, 8));
  EXPECT_THAT(batch_.q_start, ElementsAre(0, 1, 10));
  EXPECT_THAT(batch_.kv_len, ElementsAre(4, 9));
  EXPECT_NE(batch_.slots[0], batch_.slots[1]);
  ASSERT_EQ(batch_.samples.size(), 1u) << "the chunk does not end its prompt";
  const SampleRow& row = batch_.samples[0];
  EXPECT_EQ(row.kind, SampleRow::Kind::kSample);
  EXPECT_EQ(row.token_row, 0);
  EXPECT_EQ(row.position, 4);
  EXPECT_EQ(row.num_prompt_tokens, 3);
  EXPECT_EQ(ToInt(row.request->id), 1u);
  EXPECT_THAT(Ints({row.context.begin(), row.context.end()}), ElementsAre(100, 101, 102, 999));
}

TEST_F(BatchTest, BlockTableIsAsWideAsTheStepNeedsAndPadded) {
  Add(1, 1, 40);  // holds 11 blocks, uses one
  Add(2, 9, 40);
  Build();
  EXPECT_EQ(batch_.block_table_stride, 3);
  ASSERT_EQ(batch_.block_table.size(), 6u);
  std::vector<BlockId> used = {batch_.block_table[0], batch_.block_table[3], batch_.block_table[4],
                               batch_.block_table[5]};
  for (size_t i = 0; i < used.size(); ++i) {
    EXPECT_GE(ToInt(used[i]), 0);
    for (size_t j = 0; j < i; ++j) EXPECT_NE(used[i], used[j]);
  }
  EXPECT_EQ(batch_.block_table[1], BlockId{-1});
  EXPECT_EQ(batch_.block_table[2], BlockId{-1});
  Apply();
  Build();  // positions 1 and 9: the same blocks go on
  EXPECT_EQ(batch_.block_table[0], used[0]);
  EXPECT_EQ(batch_.block_table[3], used[1]);
  EXPECT_EQ(batch_.block_table[5], used[3]);
}

TEST_F(BatchTest, RowsOfAScoredPromptThenItsSample) {
  Add(1, 4, 2)->want_prompt_logprobs = true;
  Build();
  ASSERT_EQ(batch_.samples.size(), 4u);
  for (int32_t i = 0; i < 3; ++i) {
    const SampleRow& row = batch_.samples[i];
    EXPECT_EQ(row.kind, SampleRow::Kind::kScorePrompt);
    EXPECT_EQ(row.token_row, i);
    EXPECT_EQ(row.position, i + 1);
    EXPECT_EQ(ToInt(row.context[row.position]), 101 + i) << "the target";
  }
  EXPECT_EQ(batch_.samples[3].kind, SampleRow::Kind::kSample);
  EXPECT_EQ(batch_.samples[3].token_row, 3);
  EXPECT_EQ(batch_.samples[3].position, 4);
}

TEST_F(BatchTest, ForbidsStopsUntilMinNewTokens) {
  Add(1, 1, 9)->min_new_tokens = 2;
  std::vector<bool> forbids;
  for (int i = 0; i < 4; ++i) {
    Build();
    forbids.push_back(batch_.samples.at(0).forbid_stop);
    Apply();
  }
  EXPECT_THAT(forbids, ElementsAre(true, true, false, false));
}

class BatchAheadTest : public BatchTest {
 protected:
  BatchAheadTest() : BatchTest(Limits(/*steps_in_flight=*/3)) {}
};

TEST_F(BatchAheadTest, TheDevicePutsInWhatTheHostDoesNotKnow) {
  Add(1, 3, 9)->min_new_tokens = 2;
  Build();
  EXPECT_TRUE(batch_.samples.at(0).starts_request());
  const int32_t slot = batch_.slots.at(0);
  std::vector<bool> forbids = {batch_.samples[0].forbid_stop};
  for (int32_t position = 3; position < 5; ++position) {
    Build();
    EXPECT_THAT(batch_.token_ids, ElementsAre(kLastSampled));
    EXPECT_THAT(batch_.positions, ElementsAre(position));
    EXPECT_THAT(batch_.kv_len, ElementsAre(position + 1));
    EXPECT_THAT(batch_.slots, ElementsAre(slot));
    const SampleRow& row = batch_.samples.at(0);
    EXPECT_EQ(row.slot, slot);
    EXPECT_EQ(row.position, position + 1);
    EXPECT_FALSE(row.starts_request());
    EXPECT_EQ(row.context.size(), 3u) << "the prompt is what the host knows";
    EXPECT_EQ(row.num_prompt_tokens, 3);
    forbids.push_back(row.forbid_stop);
  }
  EXPECT_THAT(forbids, ElementsAre(true, true, false)) << "counted ahead of the tokens";
}

TEST_F(BatchTest, BuffersAreReserved) {
  ReserveBatch(Limits(), &batch_);
  const auto* tokens = batch_.token_ids.data();
  const auto* table = batch_.block_table.data();
  const auto* samples = batch_.samples.data();
  for (uint64_t id = 1; id <= 4; ++id) Add(id, 2, 7);
  for (int i = 0; i < 7; ++i) {
    Build();
    Apply();
  }
  EXPECT_EQ(batch_.token_ids.data(), tokens);
  EXPECT_EQ(batch_.block_table.data(), table);
  EXPECT_EQ(batch_.samples.data(), samples);
  EXPECT_THAT(Ints(batch_.token_ids), Each(999));
}

}  // namespace
}  // namespace fewbit
