// The host parts of the CUDA runtime, which need no GPU: which launch a step gets, the bytes that
// are copied to the device, and how the memory is shared out.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/linear.h"
#include "kernels/cuda/linear.h"
#include "kernels/quant_pack.h"
#include "runtime/cuda/head_rounding.h"
#include "runtime/cuda/memory_plan.h"
#include "runtime/cuda/step_layout.h"
#include "runtime/device.h"

namespace fewbit {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::Field;
using ::testing::HasSubstr;

constexpr int32_t kMaxContext = 2048;

// Where contexts do not matter.
std::vector<DecodeBucket> PlainBuckets(int32_t max_sequences) {
  return DecodeBuckets(max_sequences, kMaxContext, [](int32_t) { return 0; });
}
std::vector<int32_t> Sizes(int32_t max_sequences) {
  std::vector<int32_t> sizes;
  for (const DecodeBucket& bucket : PlainBuckets(max_sequences)) {
    EXPECT_EQ(bucket.max_kv_len, kMaxContext);
    sizes.push_back(bucket.sequences);
  }
  return sizes;
}

TEST(DecodeBuckets, EndAtTheLimitAndWasteAtMostAThirdFromSixteenOn) {
  EXPECT_THAT(Sizes(1), ElementsAre(1));
  EXPECT_THAT(Sizes(2), ElementsAre(1, 2));
  EXPECT_THAT(Sizes(3), ElementsAre(1, 2, 3));
  EXPECT_THAT(Sizes(24), ElementsAre(1, 2, 4, 8, 16, 24));
  EXPECT_THAT(Sizes(64), ElementsAre(1, 2, 4, 8, 16, 24, 32, 48, 64));
  for (int most = 1; most <= 600; ++most) {
    const std::vector<int32_t> buckets = Sizes(most);
    EXPECT_EQ(buckets.back(), most);
    for (size_t i = 1; i < buckets.size(); ++i) {
      EXPECT_GT(buckets[i], buckets[i - 1]);
      if (buckets[i - 1] >= 16) {
        EXPECT_LE(buckets[i] - buckets[i - 1] - 1, buckets[i] / 3 + 1) << most;
      }
    }
  }
}

TEST(DecodeBuckets, ContextsThatAreLaunchedAnotherWayHaveTheirOwn) {
  const std::vector<DecodeBucket> buckets =
      DecodeBuckets(8, kMaxContext, [](int32_t sequences) { return 4096 / sequences / sequences; });
  const auto is = [](int32_t sequences, int32_t max_kv_len) {
    return AllOf(Field(&DecodeBucket::sequences, sequences),
                 Field(&DecodeBucket::max_kv_len, max_kv_len));
  };
  EXPECT_THAT(buckets, ElementsAre(is(1, kMaxContext), is(2, 1024), is(2, kMaxContext), is(4, 256),
                                   is(4, kMaxContext), is(8, 64), is(8, kMaxContext)));
}

// Sequences with `queries` new tokens and `before` tokens in the cache; each samples its last row.
ForwardBatch MakeBatch(const std::vector<int>& queries, const std::vector<int>& before) {
  ForwardBatch batch;
  batch.q_start = {0};
  for (size_t s = 0; s < queries.size(); ++s) {
    for (int i = 0; i < queries[s]; ++i) {
      batch.token_ids.push_back(TokenId(static_cast<int>(100 * s) + i));
      batch.positions.push_back(before[s] + i);
    }
    batch.q_start.push_back(static_cast<int32_t>(batch.token_ids.size()));
    batch.kv_len.push_back(before[s] + queries[s]);
    batch.slots.push_back(static_cast<int32_t>(7 + s));
    batch.block_table_stride = std::max(batch.block_table_stride, (batch.kv_len[s] + 15) / 16);
    SampleRow row;
    row.token_row = batch.q_start.back() - 1;
    row.slot = batch.slots.back();
    batch.samples.push_back(row);
  }
  for (size_t i = 0; i < queries.size() * batch.block_table_stride; ++i) {
    batch.block_table.push_back(BlockId(static_cast<int32_t>(i)));
  }
  return batch;
}

TEST(ChooseLaunch, DecodingGoesIntoABucketAndPromptsDoNot) {
  const std::vector<DecodeBucket> buckets = PlainBuckets(24);
  LaunchSizes launch = ChooseLaunch(MakeBatch({1, 1, 1}, {5, 9, 0}), buckets);
  EXPECT_EQ(launch.bucket, 2);
  EXPECT_EQ(launch.tokens, 4);
  EXPECT_EQ(launch.sequences, 4);
  EXPECT_EQ(launch.rows, 4);
  EXPECT_EQ(launch.max_query, 1);
  EXPECT_FALSE(launch.only_chunks);
  EXPECT_EQ(launch.max_kv_len, kMaxContext);

  launch = ChooseLaunch(MakeBatch({1, 6, 1}, {5, 0, 3}), buckets);
  EXPECT_EQ(launch.bucket, -1);
  EXPECT_EQ(launch.tokens, 8);
  EXPECT_EQ(launch.sequences, 3);
  EXPECT_EQ(launch.rows, 3);
  EXPECT_EQ(launch.max_query, 6);
  EXPECT_EQ(launch.max_kv_len, 0);
  EXPECT_FALSE(launch.only_chunks);
  EXPECT_TRUE(ChooseLaunch(MakeBatch({2, 6}, {5, 0}), buckets).only_chunks);

  ForwardBatch scored = MakeBatch({1}, {0});
  scored.samples[0].kind = SampleRow::Kind::kScorePrompt;
  EXPECT_EQ(ChooseLaunch(scored, buckets).bucket, -1);
}

TEST(ChooseLaunch, TakesTheBucketOfTheLongestContext) {
  const std::vector<DecodeBucket> buckets =
      DecodeBuckets(4, kMaxContext, [](int32_t sequences) { return sequences == 2 ? 64 : 0; });
  const auto chosen = [&](const std::vector<int>& before) {
    const LaunchSizes launch = ChooseLaunch(MakeBatch({1, 1}, before), buckets);
    EXPECT_EQ(launch.sequences, 2);
    EXPECT_EQ(launch.max_kv_len, buckets[launch.bucket].max_kv_len);
    return launch.max_kv_len;
  };
  EXPECT_EQ(chosen({0, 63}), 64);
  EXPECT_EQ(chosen({0, 64}), kMaxContext);
  EXPECT_EQ(chosen({64, 0}), kMaxContext);
  EXPECT_EQ(chosen({kMaxContext - 1, 0}), kMaxContext);
}

std::vector<int32_t> Ints(const int32_t* from, size_t count) { return {from, from + count}; }

TEST(StepLayout, FillsArraysAndPadding) {
  const ForwardBatch batch = MakeBatch({1, 1, 1}, {5, 33, 0});
  const StepLayout layout(ChooseLaunch(batch, PlainBuckets(8)));
  std::vector<uint8_t> host(layout.bytes(batch.block_table_stride), 0xAB);
  layout.Fill(batch, host.data());
  int32_t last_ids = 0;
  const cuda::StepView view = layout.View(host.data(), &last_ids);
  EXPECT_EQ(view.max_kv_len, kMaxContext);
  EXPECT_EQ(view.sizes->tokens, 3);
  EXPECT_EQ(view.sizes->sequences, 3);
  EXPECT_EQ(view.sizes->rows, 3);
  EXPECT_EQ(view.sizes->block_table_stride, 3);
  EXPECT_THAT(Ints(view.token_ids, 4), ElementsAre(0, 100, 200, 0));
  EXPECT_THAT(Ints(view.positions, 4), ElementsAre(5, 33, 0, 0));
  EXPECT_THAT(Ints(view.sequence_of, 4), ElementsAre(0, 1, 2, -1));
  EXPECT_THAT(Ints(view.q_start, 5), ElementsAre(0, 1, 2, 3, 3));
  EXPECT_THAT(Ints(view.kv_len, 4), ElementsAre(6, 34, 1, 0));
  EXPECT_THAT(Ints(view.slots, 4), ElementsAre(7, 8, 9, 0));
  EXPECT_THAT(Ints(view.row_tokens, 4), ElementsAre(0, 1, 2, 0));
  EXPECT_THAT(Ints(view.row_slots, 4), ElementsAre(7, 8, 9, -1));
  std::vector<int32_t> blocks(12, 0);
  for (int i = 0; i < 9; ++i) blocks[i] = i;
  EXPECT_THAT(Ints(view.block_table, 12), ElementsAreArray(blocks));
  EXPECT_EQ(view.last_ids, &last_ids);
}

TEST(StepLayout, ArraysDoNotOverlapAndStayWithinTheMost) {
  const ForwardBatch batch = MakeBatch({5, 1, 17}, {0, 40, 3});
  const LaunchSizes launch = ChooseLaunch(batch, PlainBuckets(8));
  const StepLayout layout(launch);
  std::vector<uint8_t> host(layout.bytes(batch.block_table_stride));
  layout.Fill(batch, host.data());
  int32_t last_ids = 0;
  const cuda::StepView view = layout.View(host.data(), &last_ids);
  // Written last to first, so that an overlap would spoil an earlier array.
  EXPECT_EQ(view.sizes->tokens, 23);
  EXPECT_THAT(Ints(view.q_start, 4), ElementsAreArray(batch.q_start));
  EXPECT_THAT(Ints(view.positions, 23), ElementsAreArray(batch.positions));
  EXPECT_THAT(Ints(view.row_tokens, 3), ElementsAre(4, 5, 22));
  EXPECT_EQ(view.sequence_of[4], 0);
  EXPECT_EQ(view.sequence_of[5], 1);
  EXPECT_EQ(view.sequence_of[22], 2);
  EXPECT_EQ(host.size() % 16, 0u);
  EXPECT_LE(host.size(), MostStepBytes(23, 3, batch.block_table_stride));
}

MemoryRequest SmallGpu() {
  MemoryRequest r;
  r.total = 10'000'000'000;
  r.free = 9'500'000'000;
  r.weights = 3'000'000'000;
  r.buffers = 500'000'000;
  r.block = 1'000'000;
  r.blocks_per_sequence = 256;
  r.max_sequences = 64;
  return r;
}

TEST(PlanKvBlocks, TakesWhatTheShareLeaves) {
  MemoryRequest r = SmallGpu();
  EXPECT_EQ(PlanKvBlocks(r).value(), 5000);  // 0.9 of all, less 0.5 of others, 3.5 of ours
  r.utilization = 1.0;
  EXPECT_EQ(PlanKvBlocks(r).value(), (9'500'000'000 - (256 << 20) - 3'500'000'000) / 1'000'000);
  r.max_sequences = 2;
  EXPECT_EQ(PlanKvBlocks(r).value(), 512);  // two full contexts need no more
}

TEST(PlanKvBlocks, KeepsToWhatIsAsked) {
  MemoryRequest r = SmallGpu();
  r.kv = 600'000'000;
  EXPECT_EQ(PlanKvBlocks(r).value(), 600);
  r.num_blocks = 300;
  EXPECT_EQ(PlanKvBlocks(r).value(), 300);
  r.kv = 0;
  r.num_blocks = 255;
  const absl::Status status = PlanKvBlocks(r).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("num_blocks is 255"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("256000000 bytes"));
}

TEST(PlanKvBlocks, SaysWhatDoesNotFit) {
  MemoryRequest r = SmallGpu();
  r.weights = 8'400'000'000;
  absl::Status status = PlanKvBlocks(r).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  for (const char* part : {"weights 8400000000", "buffers 500000000", "256000000 bytes",
                           "9156000000 bytes", "9500000000 are free"}) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(part));
  }
  r = SmallGpu();
  r.kv = 6'000'000'000;
  status = PlanKvBlocks(r).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("6000 blocks"));
}

// Whatever a step's tokens, its linear layers find the room that they need.
TEST(MemorySampleCounts, NoOtherCountNeedsMore) {
  cuda::DeviceProps integers = {9, 0, 132, 228 * 1024, 227 * 1024};
  integers.wide_teams = 33;
  integers.wide_clusters = 30;
  cuda::DeviceProps all = integers;
  all.half_clusters = 66;
  const cuda::DeviceProps old = {8, 0, 108, 164 * 1024, 163 * 1024};
  constexpr int kMost = 1500;
  for (const cuda::DeviceProps& device : {all, integers, old}) {
    struct Bytes {
      size_t staged = 0, plain = 0;
      void Add(const Bytes& b) {
        staged = std::max(staged, b.staged);
        plain = std::max(plain, b.plain);
      }
    };
    std::vector<Bytes> of(kMost + 1);
    for (int m = 1; m <= kMost; ++m) {
      cuda::Desc desc;
      desc.shapes[0] = {4096, 4096, 24, 16, false};
      desc.m = m;
      const cuda::Plan plan = cuda::Select(desc, device);
      ASSERT_EQ(plan.error, "");
      of[m] = {cuda::StagedBytes(desc, plan), plan.plain() ? size_t{2} * m * 4096 : 0};
    }
    Bytes need;
    for (int most = 1; most <= kMost; ++most) {
      need.Add(of[most]);
      Bytes found;
      for (const int32_t m : MemorySampleCounts(most)) found.Add(of[m]);
      ASSERT_EQ(found.staged, need.staged) << most;
      ASSERT_EQ(found.plain, need.plain) << most;
    }
  }
}

TEST(Carver, MeasuresWhatItPlaces) {
  alignas(256) static uint8_t memory[2048];
  Carver count(nullptr), place(memory);
  for (Carver* c : {&count, &place}) {
    uint8_t* const a = c->Take<uint8_t>(3);
    float* const b = c->Take<float>(65);
    EXPECT_EQ(a == nullptr, c == &count);
    EXPECT_EQ(reinterpret_cast<uint8_t*>(b), a == nullptr ? nullptr : a + 256);
  }
  EXPECT_EQ(count.used(), 256u + 512u);
  EXPECT_EQ(place.used(), count.used());
}

// Every weight comes back within half a step of its strip, whatever lies beside it.
TEST(HeadRounding, WeightsAreTheNearestOfSixteenLevels) {
  constexpr int kRows = 37, kCols = 1040;  // a part row block, a part chunk, two tiles and a bit
  std::mt19937 rng(3);
  std::normal_distribution<float> normal;
  std::vector<float> weights(kRows * kCols);
  for (size_t i = 0; i < weights.size(); ++i) {
    const size_t strip = i / 16;
    weights[i] = strip % 7 == 0 ? 0.0f : normal(rng) * (strip % 5 == 0 ? 1.0f : 0.05f);
  }
  const DenseMatrix head = {weights.data(), DType::kF32, kRows, kCols};
  const quant::PackedShape shape = RoundedHeadShape(kRows, kCols);
  std::vector<uint8_t> tiles(shape.total_bytes(), 0xAB);
  for (int block = 0; block < shape.row_blocks(); ++block) {
    RoundRowBlock(head, shape, block, tiles.data() + block * shape.row_block_bytes());
  }
  const std::vector<uint16_t> order = HeadStripOrder(shape);
  const quant::PackedMatrix packed = {shape, tiles.data(), order.data(), nullptr, nullptr};
  ASSERT_EQ(quant::ValidatePacked(packed, tiles.size(), order.size(), 0, 0), nullptr);
  std::vector<float> row(kCols);
  for (int r = 0; r < kRows; ++r) {
    cpu::DequantizeRow(packed, r, row.data());
    const float* const want = &weights[static_cast<size_t>(r) * kCols];
    for (int tile = 0; tile < kCols; tile += 256) {
      const int end = std::min(tile + 256, kCols);
      float of_tile = 0.0f;
      for (int c = tile; c < end; ++c) of_tile = std::max(of_tile, std::fabs(want[c]));
      for (int strip = tile; strip < end; strip += 16) {
        float of_strip = 0.0f;
        for (int c = strip; c < strip + 16; ++c) of_strip = std::max(of_strip, std::fabs(want[c]));
        // Half a step, the step rounded up to a multiple of d, and d rounded to fp16.
        const float bound = 1.01f * (of_strip + of_tile / 15) / 15 + of_tile * 1e-3f;
        for (int c = strip; c < strip + 16; ++c) {
          ASSERT_LE(std::fabs(row[c] - want[c]), bound) << "row " << r << ", column " << c;
        }
      }
    }
  }
}

TEST(Device, NamesAreCheckedAndResolved) {
  for (const char* good : {"auto", "cpu", "cuda", "cuda:0", "cuda:7"}) {
    EXPECT_TRUE(CheckDeviceName(good).ok()) << good;
  }
  for (const char* bad : {"", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda0", "cuda:1 ", "CPU"}) {
    const absl::Status status = CheckDeviceName(bad);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(status.message()), HasSubstr("must be auto, cpu, cuda or cuda:N"));
  }
  EXPECT_EQ(ResolveDevice("cpu").value(), "cpu");
  EXPECT_TRUE(ResolveDevice("auto").ok());
  const absl::Status status = ResolveDevice("cuda:4711").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("device cuda:4711: "));
}

}  // namespace
}  // namespace fewbit
