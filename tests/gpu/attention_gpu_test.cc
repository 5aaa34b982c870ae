// Attention on a real device: against float64 for every head size, cache type and length around the
// edges of blocks, runs and tiles; and bit for bit against itself in other batches and chunks.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <tuple>

#include "tests/gpu/gpu_attention.h"
#include "tests/gpu/gpu_linear.h"
#include "tests/gpu/gpu_values.h"
#include "tests/gpu/on_device.h"
#include "tests/kernels/random_matrix.h"

namespace fewbit::testing {
namespace {

using kv::KvType;

constexpr KvType kTypes[] = {KvType::kF16, KvType::kBF16, KvType::kI8};

// Queries and weights are rounded to 11 bits, with bf16 to 8; a key or value of this step once
// more.
double Tolerance(KvType type) { return type == KvType::kBF16 ? 8e-3 : 1.2e-3; }
double NewRowTolerance(KvType type) {
  return type == KvType::kBF16 ? 4e-3 : type == KvType::kI8 ? 1.5e-2 : 4e-4;
}

AttentionOptions Options(KvType type, int heads, int kv_heads, int dim) {
  AttentionOptions o;
  o.desc.num_heads = heads;
  o.desc.num_kv_heads = kv_heads;
  o.desc.head_dim = dim;
  o.desc.kv_type = type;
  o.desc.rotary_dim = dim;
  return o;
}

std::string Name(const AttentionOptions& o) {
  return std::string(kv::KvTypeName(o.desc.kv_type)) + " H " + std::to_string(o.desc.num_heads) +
         " K " + std::to_string(o.desc.num_kv_heads) + " D " + std::to_string(o.desc.head_dim) +
         " window " + std::to_string(o.desc.window);
}

void ExpectRows(const GpuAttention& gpu, const AttentionOptions& o, const std::vector<float>& out,
                const std::vector<int>& rows) {
  for (int r : rows) {
    const std::vector<float> got(out.begin() + r * gpu.cols(), out.begin() + (r + 1) * gpu.cols());
    EXPECT_LT(RelativeError(got, gpu.ExpectedRow(r)), Tolerance(o.desc.kv_type))
        << Name(o) << ", row " << r;
  }
  EXPECT_LT(gpu.WorstNewRow(), NewRowTolerance(o.desc.kv_type)) << Name(o);
}

// Runs a step and checks all its rows.
void ExpectStep(GpuAttention* gpu, const AttentionOptions& o, const std::vector<StepPart>& parts) {
  const std::vector<float> out = gpu->Step(parts);
  std::vector<int> rows(gpu->rows());
  std::iota(rows.begin(), rows.end(), 0);
  ASSERT_FALSE(rows.empty());
  ExpectRows(*gpu, o, out, rows);
}

// One decoded sequence of each length.
void CheckDecode(AttentionOptions o, const std::vector<int>& lengths) {
  o.padding_tokens = o.padding_sequences = 3;
  GpuAttention gpu(o);
  std::vector<StepPart> parts;
  for (int kv_len : lengths) {
    parts.push_back({gpu.AddSequence(kv_len - 1, 100u * o.seed + kv_len), 1});
  }
  ExpectStep(&gpu, o, parts);
  ExpectStep(&gpu, o, parts);  // the step after it reads what this one wrote
}

TEST(AttentionGpu, DecodeEveryHeadSizeAndCacheType) {
  for (KvType type : kTypes) {
    for (int dim : {8, 16, 24, 32, 64, 80, 96, 128, 256}) {
      CheckDecode(Options(type, 2, 1, dim), {1, 2, 15, 16, 17, 100, 127, 129, 300});
    }
  }
}

TEST(AttentionGpu, DecodeLengths) {
  for (KvType type : kTypes) {
    CheckDecode(Options(type, 2, 2, 128), {511, 512, 513, 3000, 128, 64, 1});
  }
}

TEST(AttentionGpu, DecodeGroups) {
  for (const auto& [heads, kv_heads] :
       {std::pair{3, 3}, {4, 2}, {12, 3}, {7, 1}, {16, 2}, {16, 1}, {20, 1}}) {
    for (KvType type : kTypes) CheckDecode(Options(type, heads, kv_heads, 64), {1, 77, 530});
  }
}

TEST(AttentionGpu, DecodeWindow) {
  for (KvType type : kTypes) {
    for (int window : {1, 16, 33, 500}) {
      AttentionOptions o = Options(type, 4, 2, 64);
      o.desc.window = window;
      CheckDecode(o, {1, 16, 33, 34, 49, 600, 1100});
    }
  }
}

// Runs of more than 128 keys, many of them, and positions whose angles a float cannot hold.
TEST(AttentionGpu, DecodeLongContext) {
  for (KvType type : kTypes) {
    AttentionOptions o = Options(type, 1, 1, 16);
    o.max_context = 65536;
    CheckDecode(o, {40001, 9000});
  }
}

TEST(AttentionGpu, RopeBiasesAndNorms) {
  for (KvType type : kTypes) {
    for (const auto& [qkv_type, dim] :
         {std::pair{DType::kF32, 80}, {DType::kF16, 80}, {DType::kF32, 128}, {DType::kF16, 128}}) {
      for (bool interleaved : {false, true}) {
        AttentionOptions o = Options(type, 4, 2, dim);
        o.qkv_type = qkv_type;
        o.desc.interleaved = interleaved;
        o.desc.rotary_dim = interleaved ? 40 : dim;
        o.biases = true;
        o.norms = !interleaved;
        o.theta = 5e5;
        CheckDecode(o, {1, 20, 140});
        GpuAttention gpu(o);
        ExpectRows(gpu, o, gpu.Step({{gpu.AddSequence(9, 5), 20}}), {0, 7, 19});
      }
    }
  }
}

void CheckPrefill(AttentionOptions o, int cached, int tokens) {
  o.padding_tokens = 2;
  GpuAttention gpu(o);
  const std::vector<float> out = gpu.Step({{gpu.AddSequence(cached, cached + tokens), tokens}});
  std::vector<int> rows = {0, 1, tokens / 3, tokens / 2, tokens - 1};
  for (int edge = 64; edge < tokens; edge += 64) rows.insert(rows.end(), {edge - 1, edge});
  if (rows.size() > 14) rows.resize(14);
  ExpectRows(gpu, o, out, rows);
}

TEST(AttentionGpu, PrefillEveryHeadSizeAndCacheType) {
  for (KvType type : kTypes) {
    for (int dim : {8, 16, 24, 32, 64, 80, 96, 128, 256}) {
      CheckPrefill(Options(type, 2, 1, dim), 0, 130);
      CheckPrefill(Options(type, 2, 1, dim), 37, 65);
    }
  }
}

TEST(AttentionGpu, PrefillLengths) {
  for (KvType type : kTypes) {
    for (int tokens : {2, 15, 16, 17, 63, 64, 65, 511, 513}) {
      CheckPrefill(Options(type, 4, 1, 64), 0, tokens);
    }
    CheckPrefill(Options(type, 4, 1, 128), 2990, 70);
    CheckPrefill(Options(type, 1, 1, 128), 1, 1300);
  }
}

TEST(AttentionGpu, PrefillWindow) {
  for (KvType type : kTypes) {
    for (int window : {1, 16, 65, 200}) {
      AttentionOptions o = Options(type, 4, 2, 64);
      o.desc.window = window;
      CheckPrefill(o, 0, 300);
      CheckPrefill(o, 333, 100);
    }
  }
}

TEST(AttentionGpu, MixedBatch) {
  for (KvType type : kTypes) {
    AttentionOptions o = Options(type, 8, 2, 64);
    o.padding_tokens = 5;
    o.padding_sequences = 4;
    GpuAttention gpu(o);
    std::vector<StepPart> parts;
    for (const auto& [cached, tokens] :
         {std::pair{40, 1}, {0, 70}, {511, 1}, {100, 2}, {0, 1}, {20, 33}, {700, 1}, {0, 129}}) {
      parts.push_back({gpu.AddSequence(cached, 31 * cached + tokens), tokens});
    }
    ExpectRows(gpu, o, gpu.Step(parts),
               {0, 1, 33, 70, 71, 72, 73, 74, 75, 100, 107, 108, 109, 236});
    for (StepPart& p : parts) p.tokens = 1;
    ExpectStep(&gpu, o, parts);
  }
}

// Decoding beside prompts of hundreds of tokens, with many heads.
TEST(AttentionGpu, MixedBatchOfManyHeads) {
  AttentionOptions o = Options(KvType::kF16, 8, 8, 128);
  GpuAttention gpu(o);
  std::vector<StepPart> parts;
  for (int cached : {512, 513, 511, 700}) parts.push_back({gpu.AddSequence(cached, cached), 1});
  for (int tokens : {436, 400, 500}) parts.push_back({gpu.AddSequence(0, tokens), tokens});
  ExpectRows(gpu, o, gpu.Step(parts), {0, 1, 2, 3, 4, 439, 440, 839, 840, 1339});
}

bool SameRow(const std::vector<float>& a, int row_a, const std::vector<float>& b, int row_b,
             int cols) {
  return std::memcmp(&a[static_cast<size_t>(row_a) * cols], &b[static_cast<size_t>(row_b) * cols],
                     sizeof(float) * cols) == 0;
}

// A sequence's rows have the same bits alone, in any company, and (prefill) in any chunks.
void CheckInvariance(const AttentionOptions& o) {
  const int lengths[] = {1, 17, 130, 513, 900};
  GpuAttention batch(o);
  std::vector<StepPart> parts;
  for (int cached : lengths) parts.push_back({batch.AddSequence(cached, cached), 1});
  parts.push_back({batch.AddSequence(50, 7), 150});
  const std::vector<float> all = batch.Step(parts);
  for (int i = 0; i < 5; ++i) {
    GpuAttention alone(o);
    const std::vector<float> row = alone.Step({{alone.AddSequence(lengths[i], lengths[i]), 1}});
    EXPECT_TRUE(SameRow(all, i, row, 0, alone.cols())) << Name(o) << ", cached " << lengths[i];
  }
  GpuAttention chunks(o);
  const int s = chunks.AddSequence(50, 7);
  int at = 5;
  for (int tokens : {33, 2, 64, 51}) {
    const std::vector<float> rows = chunks.Step({{s, tokens}});
    for (int r = 0; r < tokens; ++r) {
      EXPECT_TRUE(SameRow(all, at + r, rows, r, chunks.cols())) << Name(o) << ", row " << at + r;
    }
    at += tokens;
  }
}

TEST(AttentionGpu, BatchInvariant) {
  for (KvType type : kTypes) {
    CheckInvariance(Options(type, 2, 2, 128));
    AttentionOptions o = Options(type, 8, 1, 64);
    o.desc.window = 100;
    CheckInvariance(o);
  }
}

// One graph serves steps of any lengths and fewer sequences.
TEST(AttentionGpu, GraphReplay) {
  for (KvType type : kTypes) {
    const AttentionOptions o = Options(type, 4, 2, 128);
    GpuAttention graph(o), eager(o);
    graph.CaptureDecode(6);
    std::vector<StepPart> parts;
    for (int cached : {3, 700, 2000, 127}) {
      eager.AddSequence(cached, cached);
      parts.push_back({graph.AddSequence(cached, cached), 1});
    }
    for (int step = 0; step < 3; ++step) {
      const std::vector<float> a = graph.ReplayDecode(parts), b = eager.Step(parts);
      EXPECT_EQ(std::memcmp(a.data(), b.data(), sizeof(float) * b.size()), 0)
          << Name(o) << ", step " << step;
      ASSERT_EQ(a.size(), b.size());
      parts.erase(parts.begin());
    }
  }
}

// The staged form is that of the plain rows.
TEST(AttentionGpu, StagedInput) {
  const AttentionOptions o = Options(KvType::kF16, 8, 2, 80);
  std::mt19937 rng(3);
  const quant::UnpackedMatrix plain = RandomUnpacked({48, 640, 0.25}, &rng);
  const GpuMatrix matrix(quant::Pack(plain));
  for (int sequences : {1, 5, 20}) {
    GpuAttention gpu(o);
    std::vector<StepPart> parts;
    for (int i = 0; i < sequences; ++i) parts.push_back({gpu.AddSequence(90 * i, i), 1});
    const std::vector<float> rows = gpu.Step(parts);
    cuda::Desc desc;
    desc.shapes[0] = plain.shape;
    desc.m = sequences;
    desc.x_type = DType::kF32;
    desc.y_type = DType::kF32;
    const cuda::Plan plan = cuda::Select(desc, ThisDevice());
    ASSERT_EQ(plan.error, "");
    cuda::DeviceGroup group;
    group.count = 1;
    group.parts[0] = matrix.view();
    const cuda::DeviceBuffer<float> x(rows);
    std::vector<std::vector<uint8_t>> staged;
    for (bool fused : {false, true}) {
      const cuda::DeviceBuffer<uint8_t> to(cuda::StagedBytes(desc, plan));
      cuda::CheckCuda(cudaMemset(to.get(), 0xAB, to.bytes()), "poison");
      const cuda::LinearInput in = cuda::InputOf(desc, plan, group, to.get(), nullptr);
      if (fused) {
        gpu.RunInto(in);
      } else {
        cuda::CheckCuda(cuda::StageActivations(desc, x.get(), gpu.cols(), in, nullptr), "stage");
        cuda::CheckCuda(cudaDeviceSynchronize(), "stage");
      }
      staged.push_back(to.Download());
    }
    EXPECT_TRUE(staged[0] == staged[1]) << sequences << " sequences";
  }
}

// Prefilled rows go straight to their places where nothing is staged, and through the combining
// kernel otherwise; as floats and in 16 bits.
TEST(AttentionGpu, PlainRowsAreTheSameOnBothWays) {
  std::mt19937 rng(4);
  const quant::UnpackedMatrix plain = RandomUnpacked({32, 1024, 0.25}, &rng);
  const GpuMatrix matrix(quant::Pack(plain));
  for (KvType type : kTypes) {
    for (int dim : {128, 64, 32}) {
      const AttentionOptions o = Options(type, 1024 / dim, 2, dim);
      GpuAttention gpu(o);
      const std::vector<float> rows = gpu.Step(
          {{gpu.AddSequence(50, 1), 1}, {gpu.AddSequence(7, 2), 30}, {gpu.AddSequence(0, 3), 20}});
      cuda::Desc desc;
      desc.shapes[0] = plain.shape;
      desc.m = gpu.rows();
      desc.x_type = DType::kF32;
      const cuda::Plan plan = cuda::Select(desc, ThisDevice());
      ASSERT_EQ(plan.error, "");
      const cuda::DeviceGroup group = {1, {matrix.view()}};
      const cuda::DeviceBuffer<uint8_t> staged(cuda::StagedBytes(desc, plan));
      const cuda::DeviceBuffer<float> to(std::vector<float>(rows.size(), -1.0f));
      const cuda::LinearInput both = cuda::InputOf(desc, plan, group, staged.get(), to.get());
      ASSERT_EQ(both.count, 1);
      gpu.RunInto(both);
      EXPECT_TRUE(to.Download() == rows) << Name(o);
      for (DType half : {DType::kF16, DType::kBF16}) {
        cuda::LinearInput alone;
        alone.plain = to.get();
        alone.plain_type = half;
        gpu.RunInto(alone);
        EXPECT_TRUE(ReadAs(half, to.get(), rows.size()) == RoundTo(half, rows)) << Name(o);
      }
    }
  }
}

// Rows of some tokens alone, of all kinds: prefilled, in tiles with others, decoded.
TEST(AttentionGpu, WantedRowsAreThoseOfAllRows) {
  for (KvType type : kTypes) {
    for (int dim : {128, 32}) {
      const AttentionOptions o = Options(type, 1024 / dim, 2, dim);
      GpuAttention gpu(o);
      const std::vector<float> rows = gpu.Step(
          {{gpu.AddSequence(50, 1), 1}, {gpu.AddSequence(7, 2), 300}, {gpu.AddSequence(0, 3), 20}});
      const std::vector<int32_t> wanted = {0, 127, 300, 320};
      const cuda::DeviceBuffer<int32_t> tokens(wanted);
      const cuda::DeviceBuffer<float> to(std::vector<float>(wanted.size() * gpu.cols(), -1.0f));
      cuda::LinearInput out;
      out.plain = to.get();
      out.plain_type = DType::kF32;
      gpu.RunInto(out, {tokens.get(), static_cast<int32_t>(wanted.size())});
      std::vector<float> expected;
      for (const int32_t token : wanted) {
        const auto from = rows.begin() + token * gpu.cols();
        expected.insert(expected.end(), from, from + gpu.cols());
      }
      EXPECT_TRUE(to.Download() == expected) << Name(o);
    }
  }
}

// The block that ends a head's last run adds up all of them, many times over, as the kernel that
// does nothing else.
TEST(AttentionGpu, RowsInOneLaunch) {
  for (KvType type : kTypes) {
    for (const auto& [heads, kv_heads, dim] :
         {std::tuple{32, 32, 128}, {16, 2, 80}, {12, 1, 256}, {3, 3, 16}}) {
      AttentionOptions o = Options(type, heads, kv_heads, dim);
      o.max_context = 8192;
      GpuAttention gpu(o);
      std::vector<StepPart> parts;
      for (int cached : {512, 0, 127, 128, 5000}) {
        parts.push_back({gpu.AddSequence(cached, cached + 1), 1});
      }
      const std::vector<float> rows = gpu.Step(parts);
      for (int i = 0; i < OnDevice(20, 2); ++i) {
        EXPECT_EQ(std::memcmp(gpu.RunIntoRows().data(), rows.data(), sizeof(float) * rows.size()),
                  0)
            << Name(o) << ", time " << i;
      }
    }
  }
}

// Blocks that go through their units in order, one each and more.
TEST(AttentionGpu, RowsInOrderAreTheSame) {
  for (KvType type : kTypes) {
    for (const auto& [heads, kv_heads, dim] :
         {std::tuple{16, 16, 128}, {16, 2, 80}, {12, 1, 256}, {3, 3, 16}}) {
      AttentionOptions o = Options(type, heads, kv_heads, dim);
      o.max_context = 8192;
      o.biases = o.norms = true;
      GpuAttention gpu(o);
      const int most = std::min(cuda::OneUnitContext(gpu.plan(), 2), 1024);
      ASSERT_GT(most, 0);
      for (int longest : {most, 5000}) {
        const std::vector<StepPart> parts = {{gpu.AddSequence(longest - 1, longest), 1},
                                             {gpu.AddSequence(most / 3 + 5, 2), 1}};
        const std::vector<float> rows = gpu.Step(parts);
        for (int i = 0; i < 5; ++i) {
          EXPECT_EQ(
              std::memcmp(gpu.RunIntoRows(most).data(), rows.data(), sizeof(float) * rows.size()),
              0)
              << Name(o) << ", " << longest << " keys, time " << i;
        }
      }
    }
  }
}

TEST(AttentionGpu, NonFiniteStaysInItsRow) {
  // A sequence whose keys are full of NaN beside one that is well.
  for (KvType type : kTypes) {
    const AttentionOptions o = Options(type, 2, 2, 64);
    GpuAttention gpu(o), well(o);
    const int good = gpu.AddSequence(100, 1);
    well.AddSequence(100, 1);
    const int bad = gpu.AddSequence(200, 2);
    gpu.SpoilCache(bad);
    const std::vector<float> rows = gpu.Step({{bad, 1}, {good, 1}});
    const std::vector<float> alone = well.Step({{0, 1}});
    EXPECT_TRUE(SameRow(rows, 1, alone, 0, gpu.cols())) << Name(o);
    EXPECT_TRUE(std::any_of(rows.begin(), rows.begin() + gpu.cols(), [](float v) {
      return !std::isfinite(v);
    })) << Name(o);
  }
}

TEST(AttentionGpu, ReducedSetForSanitizers) {
  for (const auto& [type, dim] :
       {std::pair{KvType::kF16, 80}, {KvType::kBF16, 80}, {KvType::kI8, 80}, {KvType::kF16, 128}}) {
    AttentionOptions o = Options(type, 4, 2, dim);
    o.biases = o.norms = true;
    o.desc.window = 200;
    o.padding_tokens = o.padding_sequences = 2;
    GpuAttention gpu(o);
    const std::vector<StepPart> parts = {
        {gpu.AddSequence(300, 1), 1}, {gpu.AddSequence(5, 2), 70}, {gpu.AddSequence(0, 3), 1}};
    ExpectRows(gpu, o, gpu.Step(parts), {0, 1, 70, 71});
    gpu.Step({parts[0], parts[2]});
    gpu.RunIntoRows();
    gpu.RunIntoRows(cuda::kSplitTokens);
  }
}

}  // namespace
}  // namespace fewbit::testing
