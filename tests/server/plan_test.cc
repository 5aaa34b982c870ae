// The arithmetic of fewbit-plan against published numbers, the KV cache's real layout, and by hand.
#include "server/tools/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kernels/kv_layout.h"

namespace fewbit::plan {
namespace {

using ::testing::HasSubstr;

TEST(PlanTest, ShapesHaveThePublishedNumberOfParameters) {
  // Without norms and biases, which are 16 bits wherever the rest is few.
  const std::pair<const char*, int64_t> published[] = {
      {"llama-2-7b", 6'738'415'616 - 65 * 4096},
      {"llama-2-13b", 13'015'864'320 - 81 * 5120},
      {"llama-2-70b", 68'976'648'192 - 161 * 8192},
      {"llama-3-8b", 8'030'261'248 - 65 * 4096},
      {"mistral-7b", 7'241'732'096 - 65 * 4096},
      {"qwen2-7b", 7'615'616'512 - 57 * 3584 - 28 * (3584 + 2 * 512)},
      {"chatglm3-6b", 6'243'584'000 - 57 * 4096 - 28 * (4096 + 2 * 256)},
  };
  ASSERT_EQ(std::size(published), Shapes().size());
  for (const auto& [name, parameters] : published) {
    const absl::StatusOr<ModelSpec> spec = SpecOf(name);
    ASSERT_TRUE(spec.ok()) << spec.status();
    EXPECT_EQ(LinearParameters(*spec) + EmbeddingParameters(*spec), parameters) << name;
    EXPECT_EQ(WeightBytes(*spec, 16, 16), 2.0 * static_cast<double>(parameters)) << name;
  }
  EXPECT_THAT(SpecOf("gpt-5").status().message(), HasSubstr("llama-2-70b"));
}

TEST(PlanTest, BitsCountLinearsAndEmbeddingsApart) {
  ModelSpec spec = *SpecOf("llama-2-7b");
  EXPECT_EQ(LinearParameters(spec), 6'476'005'376);
  EXPECT_DOUBLE_EQ(WeightBytes(spec, 3, 8), 6'476'005'376 * 3.0 / 8 + 262'144'000);
  spec.tied_head = true;
  EXPECT_DOUBLE_EQ(WeightBytes(spec, 3, 8), 6'476'005'376 * 3.0 / 8 + 131'072'000);
}

TEST(PlanTest, KvBytesAreThoseOfTheCachesLayout) {
  EXPECT_EQ(KvBytesPerToken(*SpecOf("llama-2-7b"), KvType::kF16), 524288);
  EXPECT_EQ(KvBytesPerToken(*SpecOf("llama-2-70b"), KvType::kF16), 327680);
  const std::pair<KvType, kv::KvType> types[] = {{KvType::kF16, kv::KvType::kF16},
                                                 {KvType::kBf16, kv::KvType::kBF16},
                                                 {KvType::kF32, kv::KvType::kF32},
                                                 {KvType::kI8, kv::KvType::kI8}};
  for (const Shape& shape : Shapes()) {
    const ModelSpec spec = *SpecOf(absl::string_view(shape.name));
    for (const auto& [type, layout_type] : types) {
      EXPECT_STREQ(KvTypeName(type), kv::KvTypeName(layout_type));
      const kv::DeviceBlockShape block{layout_type, spec.num_kv_heads, spec.head_dim};
      EXPECT_EQ(KvBytesPerToken(spec, type) * kv::kBlockTokens,
                static_cast<int64_t>(block.block_bytes()) * spec.num_layers)
          << shape.name << " " << KvTypeName(type);
    }
  }
  EXPECT_EQ(*ParseKvType("i8"), KvType::kI8);
  EXPECT_THAT(ParseKvType("fp4").status().message(), HasSubstr("f16, bf16, f32, i8"));
}

TEST(PlanTest, WholeBlocksFitIntoWhatIsLeft) {
  // 0.5 * 10000 - 1000 - 800 = 3200 bytes: 20 blocks of 16 tokens with 10 bytes each.
  const Budget budget{.memory = 10000,
                      .utilization = 0.5,
                      .buffers = 800,
                      .weights = 1000,
                      .kv_bytes_per_token = 10};
  EXPECT_DOUBLE_EQ(FitOn(budget, 16).kv_bytes, 3200);
  EXPECT_EQ(FitOn(budget, 16).tokens, 320);
  EXPECT_EQ(FitOn(budget, 16).sequences, 20);
  EXPECT_EQ(FitOn(budget, 17).sequences, 10);  // two blocks each
  EXPECT_EQ(FitOn(budget, 321).sequences, 0);
  Budget heavy = budget;
  heavy.weights = 5000;
  EXPECT_DOUBLE_EQ(FitOn(heavy, 16).kv_bytes, -800);
  EXPECT_EQ(FitOn(heavy, 16).tokens, 0);
  EXPECT_EQ(FitOn(heavy, 16).sequences, 0);
}

TEST(PlanTest, MemoryIsTheInverseOfWhatFits) {
  Budget budget{.utilization = 0.9,
                .buffers = 2e9,
                .weights = 2.87e9,
                .kv_bytes_per_token = KvBytesPerToken(*SpecOf("llama-2-7b"), KvType::kF16)};
  for (const int64_t sequences : {1, 7, 100}) {
    const double memory = MemoryFor(budget, 2048, sequences);
    budget.memory = memory + 1;
    EXPECT_EQ(FitOn(budget, 2048).sequences, sequences);
    budget.memory = memory - 1e6;
    EXPECT_EQ(FitOn(budget, 2048).sequences, sequences - 1);
  }
}

constexpr char kCsv[] =
    "gpu,date,commit,shape,batch,context,kv,tokens_per_s,gpu_busy_pct\n"
    "NVIDIA H200,2026-01-01,abc,m,1,512,f16,100,90\n"
    "NVIDIA H200,2026-01-01,abc,m,16,512,f16,800,90\n"
    "NVIDIA H200,2026-01-01,abc,m,4,512,f16,400,90\n"
    "NVIDIA H200,2026-01-01,abc,m,4,2048,f16,200,90\r\n"
    "\n"
    "NVIDIA H200,2026-01-01,abc,other,4,512,f16,1,90\n"
    "NVIDIA H200,2026-01-01,abc,m,4,512,i8,500,90\n";

TEST(PlanTest, RatesAreReadByColumnName) {
  const absl::StatusOr<std::vector<Rate>> rates = ParseRates(kCsv);
  ASSERT_TRUE(rates.ok()) << rates.status();
  ASSERT_EQ(rates->size(), 6u);
  EXPECT_EQ((*rates)[3].gpu, "NVIDIA H200");
  EXPECT_EQ((*rates)[3].context, 2048);
  EXPECT_EQ((*rates)[3].tokens_per_second, 200);
  const absl::StatusOr<std::vector<Rate>> turned =
      ParseRates("tokens_per_s,kv,context,batch,shape,gpu\n5,f16,64,2,m,G");
  ASSERT_TRUE(turned.ok()) << turned.status();
  EXPECT_EQ((*turned)[0].shape, "m");
  EXPECT_EQ((*turned)[0].batch, 2);
}

TEST(PlanTest, WrongRatesAreNamed) {
  const std::string header = "gpu,shape,batch,context,kv,tokens_per_s\n";
  for (const auto& [text, expected] : std::vector<std::pair<std::string, std::string>>{
           {"", "no rates"},
           {header, "no rates"},
           {"gpu,shape,batch,context,tokens_per_s\n", "line 1 has no column kv"},
           {header + "g,m,-1,512,f16,5\n", "line 2: batch is '-1'"},
           {header + "g,m,1,many,f16,5\n", "line 2: context is 'many'"},
           {header + "g,m,1,512,f16,nan\n", "line 2: tokens_per_s is 'nan'"},
           {header + "g,m,1,512,f16,5\ng,m,1\n", "line 3: context is ''"}}) {
    EXPECT_THAT(ParseRates(text).status().message(), HasSubstr(expected)) << text;
  }
}

TEST(PlanTest, AMeasuredBatchIsTakenAsItIs) {
  const std::vector<Rate> rates = *ParseRates(kCsv);
  const absl::StatusOr<Estimate> estimate = EstimateRate(rates, "h200", "m", "f16", 4, 512);
  ASSERT_TRUE(estimate.ok()) << estimate.status();
  EXPECT_DOUBLE_EQ(estimate->tokens_per_second, 400);
  EXPECT_DOUBLE_EQ(EstimateRate(rates, "h200", "m", "i8", 4, 512)->tokens_per_second, 500);
}

TEST(PlanTest, BetweenBatchesTheTimeOfAStepIsInterpolated) {
  // Steps of 10 ms at batch 4 and 20 ms at batch 16: 15 ms at batch 10.
  const std::vector<Rate> rates = *ParseRates(kCsv);
  const Estimate estimate = *EstimateRate(rates, "h200", "m", "f16", 10, 512);
  EXPECT_DOUBLE_EQ(estimate.tokens_per_second, 10 / 0.015);
  EXPECT_EQ(estimate.batch, 10);
  EXPECT_THAT(estimate.source, HasSubstr("4 and 16"));
}

TEST(PlanTest, NothingIsExtrapolated) {
  const std::vector<Rate> rates = *ParseRates(kCsv);
  const Estimate above = *EstimateRate(rates, "h200", "m", "f16", 64, 512);
  EXPECT_DOUBLE_EQ(above.tokens_per_second, 800);
  EXPECT_EQ(above.batch, 16);
  // A step of batch 4 is 20 ms long, whatever is in it.
  const Estimate below = *EstimateRate(rates, "h200", "m", "f16", 2, 2048);
  EXPECT_DOUBLE_EQ(below.tokens_per_second, 100);
  EXPECT_EQ(below.batch, 2);
}

TEST(PlanTest, TheNextLargerContextCounts) {
  const std::vector<Rate> rates = *ParseRates(kCsv);
  EXPECT_EQ(EstimateRate(rates, "h200", "m", "f16", 4, 100)->context, 512);
  EXPECT_EQ(EstimateRate(rates, "h200", "m", "f16", 4, 513)->context, 2048);
  EXPECT_EQ(EstimateRate(rates, "h200", "m", "f16", 4, 9999)->context, 2048);
}

TEST(PlanTest, PromptsTakeTheirTime) {
  const std::vector<Rate> rates = *ParseRates(std::string(kCsv) +
                                              "NVIDIA H200,2026-01-01,abc,m,0,1000,f16,10000,90\n"
                                              "NVIDIA H200,2026-01-01,abc,m,0,4000,f16,8000,90\n");
  EXPECT_DOUBLE_EQ(*PromptRate(rates, "h200", "m", "f16", 1), 10000);
  EXPECT_DOUBLE_EQ(*PromptRate(rates, "h200", "m", "f16", 3000), 8000);
  EXPECT_EQ(PromptRate(rates, "h200", "m", "i8", 1).status().code(), absl::StatusCode::kNotFound);
  // Rows of prompts are no batches: the smallest one generated is 1.
  EXPECT_DOUBLE_EQ(EstimateRate(rates, "h200", "m", "f16", 1, 512)->tokens_per_second, 100);
  // 0.1 s for the prompt, 0.25 s for 100 tokens.
  EXPECT_DOUBLE_EQ(WithPrompts(400, 10000, 1000, 100), 100 / 0.35);
}

TEST(PlanTest, WithoutAMeasurementThereIsNoRate) {
  const std::vector<Rate> rates = *ParseRates(kCsv);
  for (const auto& [gpu, shape, kv] :
       {std::tuple("l4", "m", "f16"), {"h200", "n", "f16"}, {"h200", "m", "bf16"}}) {
    EXPECT_EQ(EstimateRate(rates, gpu, shape, kv, 4, 512).status().code(),
              absl::StatusCode::kNotFound);
  }
}

TEST(PlanTest, BoundAndDollars) {
  const Budget budget{.weights = 1000, .kv_bytes_per_token = 10};
  // A step reads 1000 + 4 * 100 * 10 = 5000 bytes: 2 steps a second of 4 tokens.
  EXPECT_DOUBLE_EQ(BandwidthBound(10000, budget, 4, 100), 8);
  EXPECT_DOUBLE_EQ(DollarsPerMillion(3.6, 1000), 1);
}

TEST(PlanTest, GpusAscendByMemory) {
  for (size_t i = 1; i < Gpus().size(); ++i) {
    EXPECT_LE(Gpus()[i - 1].memory, Gpus()[i].memory);
  }
  EXPECT_EQ(FindGpu("H200")->memory, 150e9);
  EXPECT_THAT(FindGpu("h300").status().message(), HasSubstr("--gpu_memory"));
}

}  // namespace
}  // namespace fewbit::plan
