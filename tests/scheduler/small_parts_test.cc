// BlockPool, SequenceList and the check macros.
#include <gtest/gtest.h>

#include <array>
#include <set>
#include <string>
#include <vector>

#include "scheduler/block_pool.h"
#include "scheduler/check.h"
#include "scheduler/ids.h"
#include "scheduler/sequence.h"

namespace fewbit {
namespace {

TEST(BlockPoolTest, GivesEachBlockOnce) {
  BlockPool pool(10);
  std::array<BlockId, 10> blocks;
  pool.Allocate({blocks.data(), 4});
  pool.Allocate({blocks.data() + 4, 6});
  std::set<BlockId> distinct(blocks.begin(), blocks.end());
  EXPECT_EQ(distinct.size(), 10u);
  EXPECT_EQ(*distinct.begin(), BlockId{0});
  EXPECT_EQ(*distinct.rbegin(), BlockId{9});
  EXPECT_EQ(pool.num_free(), 0);
  EXPECT_EQ(pool.num_used(), 10);
  pool.Free({blocks.data() + 2, 3});
  EXPECT_EQ(pool.num_free(), 3);
  EXPECT_FALSE(pool.held(blocks[3]));
  EXPECT_TRUE(pool.held(blocks[5]));
}

TEST(BlockPoolDeathTest, ChecksItsCallers) {
  BlockPool pool(2);
  std::array<BlockId, 3> blocks;
  EXPECT_DEATH(pool.Allocate(blocks), "3 vs 2");
  pool.Allocate({blocks.data(), 1});
  pool.Free({blocks.data(), 1});
  EXPECT_DEATH(pool.Free({blocks.data(), 1}), "freed twice");
}

TEST(SequenceListTest, KeepsOrderThroughRemovals) {
  std::vector<Sequence> nodes(5);
  SequenceList list;
  const auto order = [&list, &nodes] {
    std::string text;
    for (Sequence* s = list.front(); s != nullptr; s = s->next) {
      text += static_cast<char>('0' + (s - nodes.data()));
    }
    return text;
  };
  for (Sequence& node : nodes) list.PushBack(&node);
  EXPECT_EQ(order(), "01234");
  list.Remove(&nodes[2]);
  EXPECT_EQ(order(), "0134");
  list.Remove(&nodes[0]);
  EXPECT_EQ(order(), "134");
  list.Remove(&nodes[4]);
  EXPECT_EQ(order(), "13");
  list.PushBack(&nodes[0]);
  EXPECT_EQ(order(), "130");
  EXPECT_EQ(list.size(), 3);
  for (const int i : {1, 3, 0}) list.Remove(&nodes[i]);
  EXPECT_TRUE(list.empty());
  EXPECT_EQ(order(), "");
  list.PushBack(&nodes[3]);
  EXPECT_EQ(order(), "3");
}

TEST(CheckTest, PassingChecksEvaluateNothingOfTheMessage) {
  int evaluated = 0;
  const auto count = [&evaluated] { return ++evaluated; };
  FEWBIT_CHECK(true) << count();
  FEWBIT_CHECK_EQ(2, 2) << count();
  if (evaluated == 0)
    FEWBIT_CHECK_LT(1, 2) << count();
  else
    FAIL() << "the macro swallowed an else";
  EXPECT_EQ(evaluated, 0);
}

TEST(CheckDeathTest, SaysWhereWhatAndWhy) {
  const int answer = 41;
  EXPECT_DEATH(FEWBIT_CHECK(answer == 42) << "because " << answer,
               "small_parts_test.cc:[0-9]+: check failed: answer == 42 because 41");
  EXPECT_DEATH(FEWBIT_CHECK_EQ(BlockId{3}, BlockId{4}) << "blocks", "\\(3 vs 4\\) blocks");
}

}  // namespace
}  // namespace fewbit
