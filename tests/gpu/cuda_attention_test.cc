// The host side of attention on the GPU: the cache's layout, runs of keys, geometry and workspace.
// Runs without a GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <tuple>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_args.h"

namespace fewbit::cuda {
namespace {

using kv::KvType;

constexpr DeviceProps kH200 = {9, 0, 132, 228 * 1024, 227 * 1024};
constexpr DeviceProps kA100 = {8, 0, 108, 164 * 1024, 163 * 1024};
constexpr DeviceProps kL4 = {8, 9, 58, 100 * 1024, 99 * 1024};
constexpr KvType kTypes[] = {KvType::kF16, KvType::kBF16, KvType::kI8};

AttentionDesc DescOf(int heads, int kv_heads, int dim, KvType type = KvType::kF16) {
  AttentionDesc d;
  d.num_heads = heads;
  d.num_kv_heads = kv_heads;
  d.head_dim = d.rotary_dim = dim;
  d.kv_type = type;
  return d;
}

TEST(DeviceBlockShape, ElementsLieBesideOneAnotherWithoutOverlap) {
  for (KvType type : kTypes) {
    for (int dim : {8, 16, 24, 64, 72, 80, 96, 128, 200, 256}) {
      const kv::DeviceBlockShape s = {type, 3, dim};
      EXPECT_GE(s.padded_dim(), dim);
      std::set<int> places;
      for (int token = 0; token < kv::kBlockTokens; ++token) {
        for (int d = 0; d < s.padded_dim(); ++d) {
          const int at = s.element_offset(token, d);
          EXPECT_EQ(at % kv::KvTypeBytes(type), 0);
          EXPECT_GE(at, 0);
          EXPECT_LE(at + kv::KvTypeBytes(type), s.half_bytes());
          places.insert(at);
        }
      }
      EXPECT_EQ(places.size(), static_cast<size_t>(kv::kBlockTokens) * s.padded_dim());
      EXPECT_EQ(s.head_bytes() % 16, 0);
      EXPECT_EQ(s.block_bytes(), static_cast<size_t>(3) * s.head_bytes());
    }
  }
}

// A matrix load takes the same piece of 8 neighbouring tokens: 8 x 16 bytes on 32 banks of 4.
TEST(DeviceBlockShape, APieceOfEightTokensMeetsEveryBankOnce) {
  for (KvType type : kTypes) {
    for (int dim : kv::kDeviceDims) {
      const kv::DeviceBlockShape s = {type, 1, dim};
      const int per_piece = 16 / kv::KvTypeBytes(type);
      for (int first = 0; first < kv::kBlockTokens; first += 8) {
        for (int piece = 0; piece < s.padded_dim() / per_piece; ++piece) {
          std::set<int> banks;
          for (int token = first; token < first + 8; ++token) {
            banks.insert(s.element_offset(token, piece * per_piece) % 128);
          }
          EXPECT_EQ(banks.size(), 8u) << kv::KvTypeName(type) << " D " << dim;
        }
      }
    }
  }
}

TEST(AttentionRuns, CoverAllKeysAndStayWithinTheMost) {
  int most = 0;
  for (int keys = 1; keys <= 140000; keys += keys < 5000 ? 1 : 97) {
    const int length = SplitTokens(keys), count = SplitCount(keys);
    EXPECT_EQ(length % kSplitUnit, 0);
    EXPECT_LE(length, kMaxSplitTokens);
    EXPECT_GE(length * count, keys);
    EXPECT_LT(length * (count - 1), keys);
    most = std::max(most, count);
    EXPECT_LE(most, MaxSplits(keys)) << keys;
  }
}

TEST(AttentionRuns, TheWindowStartsAtABlock) {
  EXPECT_EQ(FirstKey(1000, 0), 0);
  EXPECT_EQ(FirstKey(1000, 1000), 0);
  EXPECT_EQ(FirstKey(10, 4096), 0);
  for (int kv_len = 1; kv_len < 200; ++kv_len) {
    for (int window = 1; window < 200; ++window) {
      const int first = FirstKey(kv_len, window);
      EXPECT_EQ(first % kv::kBlockTokens, 0);
      EXPECT_LE(first, std::max(0, kv_len - window));
      EXPECT_GT(first + kv::kBlockTokens, std::max(0, kv_len - window));
    }
  }
}

TEST(SelectAttention, EveryShapeFitsItsDevice) {
  for (const DeviceProps& device : {kH200, kA100, kL4}) {
    for (KvType type : kTypes) {
      for (int dim : {8, 40, 64, 80, 96, 128, 256}) {
        for (int group : {1, 3, 7, 8, 9, 16, 32}) {
          const AttentionPlan p =
              SelectAttention(DescOf(2 * group, 2, dim, type), {512, 64, 32768}, device);
          if (device.shared_per_block < 128 * 1024 && dim == 256) continue;  // see below
          ASSERT_EQ(p.error, "") << kv::KvTypeName(type) << " D " << dim << " group " << group;
          EXPECT_LE(p.decode_shared, p.lone_shared);
          EXPECT_LE(p.lone_shared, static_cast<size_t>(device.shared_per_block));
          EXPECT_LE(p.prefill_shared, static_cast<size_t>(device.shared_per_block));
          EXPECT_GE(p.stages, 2);
          EXPECT_GE(p.decode_blocks, device.multiprocessors);
          EXPECT_LE(p.part_heads, kMostGroupHeads);
          EXPECT_GE(p.part_heads * p.head_parts, p.group);
          EXPECT_LT(p.part_heads * (p.head_parts - 1), p.group);
          EXPECT_EQ(p.bulk, device.major >= 9);
        }
      }
    }
  }
}

TEST(SelectAttention, TheWorkspaceHoldsItsPartsInOrder) {
  const AttentionPlan p = SelectAttention(DescOf(32, 8, 128), {2048, 64, 4096}, kH200);
  ASSERT_EQ(p.error, "");
  EXPECT_EQ(p.max_splits, MaxSplits(4096));
  const size_t starts[] = {p.counts,   p.decode_items, p.prefill_items, p.turns,          p.queries,
                           p.attended, p.partial_sums, p.partials,      p.workspace_bytes};
  const size_t rows = size_t{64} * 32 * p.max_splits;
  const size_t least[] = {sizeof(WorkCounts),
                          sizeof(DecodeItem) * 64 * p.max_splits,
                          sizeof(PrefillItem) * (2048 / kQueryTile + 64),
                          size_t{2048} * 128 * 4,
                          size_t{2048} * 32 * 128 * 2,
                          size_t{2048} * 32 * 128 * 4,
                          rows * 8,
                          rows * 128 * 4};
  for (int i = 0; i < 8; ++i) {
    EXPECT_EQ(starts[i] % 256, 0u);
    EXPECT_GE(starts[i + 1] - starts[i], least[i]) << i;
  }
}

TEST(SelectAttention, RowsInOrderWhereNoBlockGetsASecondUnit) {
  for (KvType type : kTypes) {
    for (const auto& [heads, kv_heads, dim] :
         {std::tuple{32, 32, 128}, {32, 8, 128}, {12, 1, 256}, {3, 3, 16}}) {
      for (int sequences : {1, 2, 3, 500}) {
        const AttentionPlan p =
            SelectAttention(DescOf(heads, kv_heads, dim, type), {512, 512, 1 << 20}, kH200);
        ASSERT_EQ(p.error, "");
        const auto units = [&](int kv_len) {
          return int64_t{1} * sequences * MaxSplits(kv_len) * kv_heads * p.head_parts;
        };
        const int most = OneUnitContext(p, sequences);
        if (most > 0) {
          EXPECT_LE(units(most), p.decode_blocks);
        }
        EXPECT_GT(units(most + 1), p.decode_blocks);
        StepView step;
        step.sequences = sequences;
        const auto form = [&](int kv_len) {
          step.max_kv_len = kv_len;
          return ChooseDecode(p, step, true);
        };
        if (most > 0) {
          EXPECT_EQ(form(most), DecodeForm::kRowsInOrder);
        }
        EXPECT_EQ(form(most + 1), DecodeForm::kRows);
        EXPECT_EQ(form(0),
                  p.limits.max_context <= most ? DecodeForm::kRowsInOrder : DecodeForm::kRows);
        EXPECT_EQ(ChooseDecode(p, step, false), DecodeForm::kRuns);
      }
    }
  }
  // The shape that both ways were measured with.
  for (KvType type : {KvType::kF16, KvType::kI8}) {
    const AttentionPlan p = SelectAttention(DescOf(32, 32, 128, type), {512, 64, 4096}, kH200);
    EXPECT_EQ(OneUnitContext(p, 1), type == KvType::kI8 ? 1536 : 1024);
    EXPECT_EQ(OneUnitContext(p, 2), type == KvType::kI8 ? 768 : 512);
    EXPECT_EQ(OneUnitContext(p, 16), 0);
  }
}

TEST(SelectAttention, MostPrefillTilesHoldsAnyMix) {
  for (int sequences = 1; sequences < 40; ++sequences) {
    // One long prompt, the others as short as a prefill can be; and all of them just over a tile.
    const int tokens = 3 * kQueryTile + 8 + 2 * (sequences - 1);
    EXPECT_GE(MostPrefillTiles(tokens, sequences), 4 + sequences - 1);
    EXPECT_GE(MostPrefillTiles((kQueryTile + 1) * sequences, sequences), 2 * sequences);
  }
}

TEST(SelectAttention, ErrorsNameTheFieldAndTheLimit) {
  const AttentionLimits limits = {512, 64, 4096};
  const auto error = [&](const AttentionDesc& d, const DeviceProps& device = kH200) {
    return SelectAttention(d, limits, device).error;
  };
  EXPECT_NE(error(DescOf(4, 4, 12)).find("head_dim is 12"), std::string::npos);
  EXPECT_NE(error(DescOf(4, 4, 264)).find("256"), std::string::npos);
  EXPECT_NE(error(DescOf(6, 4, 64)).find("num_heads is 6"), std::string::npos);
  EXPECT_NE(error(DescOf(4, 4, 64, KvType::kF32)).find("f32"), std::string::npos);
  AttentionDesc d = DescOf(4, 4, 64);
  d.rotary_dim = 65;
  EXPECT_NE(error(d).find("rotary_dim is 65"), std::string::npos);
  d = DescOf(4, 4, 64);
  d.window = -1;
  EXPECT_NE(error(d).find("window is -1"), std::string::npos);
  EXPECT_NE(error(DescOf(8, 1, 256), kL4).find("shared memory"), std::string::npos);
  DeviceProps old = kA100;
  old.major = 7;
  EXPECT_NE(error(DescOf(4, 4, 64), old).find("7.0"), std::string::npos);
}

}  // namespace
}  // namespace fewbit::cuda
