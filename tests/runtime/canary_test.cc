#include "runtime/weights/canary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace fewbit {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class CanaryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = ::testing::TempDir() + "/fewbit_canary_XXXXXX";
    ASSERT_NE(mkdtemp(directory_.data()), nullptr);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  void Write(const std::string& text) { std::ofstream(directory_ + "/canary.json") << text; }

  std::string directory_;
};

Canary TwoPrompts() {
  Canary canary;
  canary.prompts.push_back({.token_ids = {TokenId{1}, TokenId{99}, TokenId{0}},
                            .original = TopTokens{{TokenId{7}, TokenId{8}}, {-0.5f, -1.25f}},
                            .expected = {{TokenId{8}}, {-0.75f}}});
  canary.prompts.push_back({.token_ids = {TokenId{5}},
                            .original = TopTokens{{TokenId{7}}, {-0.125f}},
                            .expected = {{TokenId{8}}, {0.0f}}});
  return canary;
}

void ExpectSame(const TopTokens& a, const TopTokens& b) {
  EXPECT_EQ(a.ids, b.ids);
  EXPECT_EQ(a.logprobs, b.logprobs);
}

TEST_F(CanaryTest, ComesBackAsItWasWritten) {
  Canary canary = TwoPrompts();
  for (const bool original : {true, false}) {
    if (!original) {
      for (CanaryPrompt& prompt : canary.prompts) prompt.original.reset();
    }
    ASSERT_TRUE(WriteCanary(directory_, canary).ok());
    const auto read = LoadCanary(directory_, 100);
    ASSERT_TRUE(read.ok()) << read.status();
    ASSERT_TRUE(read->has_value());
    ASSERT_EQ((*read)->prompts.size(), 2u);
    for (int i = 0; i < 2; ++i) {
      const CanaryPrompt& prompt = (*read)->prompts[i];
      EXPECT_EQ(prompt.token_ids, canary.prompts[i].token_ids);
      ASSERT_EQ(prompt.original.has_value(), original);
      if (original) ExpectSame(*prompt.original, *canary.prompts[i].original);
      ExpectSame(prompt.expected, canary.prompts[i].expected);
    }
  }
}

TEST_F(CanaryTest, NeedNotBeThere) {
  const auto read = LoadCanary(directory_, 100);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_FALSE(read->has_value());
}

TEST_F(CanaryTest, WhatIsWrongIsNamed) {
  const std::string expected = R"("expected": {"ids": [5, 6], "logprobs": [-1, -2]})";
  const auto prompt = [](const std::string& text) {
    return R"({"version": 2, "prompts": [)" + text + "]}";
  };
  const auto answer = [&](const std::string& text) {
    return prompt(R"({"token_ids": [5], "expected": )" + text + "}");
  };
  const struct {
    std::string text;
    const char* said;
  } cases[] = {
      {"", "canary.json"},
      {"[]", "canary.json"},
      {R"({"token_ids": [5, 6], "mean_logprob": -1})", "version: missing"},
      {R"({"version": 1, "prompts": []})", "version"},
      {R"({"version": 2})", "prompts"},
      {prompt(""), "1 to 64 prompts"},
      {prompt("5"), "prompts[0].must be an object"},
      {prompt("{" + expected + "}"), "prompts[0].token_ids"},
      {prompt(R"({"token_ids": [], )" + expected + "}"), "1 to 1024 token ids"},
      {prompt(R"({"token_ids": [5, 100], )" + expected + "}"), "100 is no id"},
      {prompt(R"({"token_ids": [5, -1], )" + expected + "}"), "-1 is no id"},
      {prompt(R"({"token_ids": [5, 1.5], )" + expected + "}"), "1.5 is no id"},
      {prompt(R"({"token_ids": [5]})"), "expected"},
      {prompt(R"({"token_ids": [5], "original": 3, )" + expected + "}"), "original"},
      {answer("[]"), "expected: must be an object"},
      {answer(R"({"ids": [100], "logprobs": [-1]})"), "expected: ids: 100 is no id"},
      {answer(R"({"ids": [5], "logprobs": [-1, -2]})"), "a list of 1 numbers"},
      {answer(R"({"ids": [5], "logprobs": [0.5]})"), "0.5 is not the logarithm"},
      {answer(R"({"ids": [5], "logprobs": ["x"]})"), "is not the logarithm"},
      {answer(R"({"ids": [5, 6], "logprobs": [-2, -1]})"), "begin with the largest"},
      {prompt(R"({"token_ids": [5], )" + expected + R"(}, {"token_ids": [5], "original": )" +
              R"({"ids": [5], "logprobs": [-1]}, )" + expected + "}"),
       "prompts[1]: some prompts have an original"},
  };
  for (const auto& test : cases) {
    Write(test.text);
    const auto read = LoadCanary(directory_, 100);
    EXPECT_EQ(read.status().code(), absl::StatusCode::kInvalidArgument) << test.text;
    EXPECT_THAT(std::string(read.status().message()),
                AllOf(HasSubstr(directory_ + "/canary.json"), HasSubstr(test.said)));
  }
}

TEST(TopOfTest, TakesTheLargestWithTheProbabilitiesOfAll) {
  const std::vector<float> logits = {1.0f, 3.0f, 2.0f, 3.0f};
  const TopTokens top = TopOf(logits, 3);
  EXPECT_EQ(top.ids, (std::vector<TokenId>{TokenId{1}, TokenId{3}, TokenId{2}}));
  const double sum = std::exp(1.0) + 2 * std::exp(3.0) + std::exp(2.0);
  EXPECT_NEAR(top.logprobs[0], 3.0 - std::log(sum), 1e-6);
  EXPECT_NEAR(top.logprobs[2], 2.0 - std::log(sum), 1e-6);
  EXPECT_EQ(TopOf(logits, 20).ids.size(), 4u);
}

// Against the whole distributions.
double Divergence(std::span<const float> p, std::span<const float> q) {
  double sum = 0.0;
  const TopTokens all_p = TopOf(p, static_cast<int>(p.size()));
  const TopTokens all_q = TopOf(q, static_cast<int>(q.size()));
  for (size_t i = 0; i < all_p.ids.size(); ++i) {
    const auto at = std::find(all_q.ids.begin(), all_q.ids.end(), all_p.ids[i]);
    const double log_q = all_q.logprobs[at - all_q.ids.begin()];
    sum += std::exp(all_p.logprobs[i]) * (all_p.logprobs[i] - log_q);
  }
  return sum;
}

TEST(TopDivergenceTest, IsAtMostThatOfTheWholeDistributions) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<float> p(200), q(200);
    const float noise = 0.02f * static_cast<float>(trial);
    for (int i = 0; i < 200; ++i) {
      p[i] = 2.0f * normal(random);
      q[i] = p[i] + noise * normal(random);
    }
    const double whole = Divergence(p, q);
    const double top = TopDivergence(TopOf(p, 20), TopOf(q, 20));
    EXPECT_LE(top, whole + 1e-6);
    EXPECT_GE(top, 0.25 * whole - 1e-6) << "noise " << noise;
    EXPECT_EQ(TopDivergence(TopOf(p, 20), TopOf(p, 20)), 0.0);
    EXPECT_NEAR(TopDivergence(TopOf(p, 200), TopOf(q, 200)), whole, 1e-4);
  }
}

TEST(TopDivergenceTest, SeesModelsThatHaveNothingInCommon) {
  std::vector<float> p(8192, 0.0f), q(8192, 0.0f);
  for (int i = 0; i < 20; ++i) p[i] = q[100 + i] = 8.0f;
  EXPECT_GT(TopDivergence(TopOf(p, 20), TopOf(q, 20)), 0.5);
  const std::vector<float> flat(8192, 0.0f);
  EXPECT_GT(TopDivergence(TopOf(p, 20), TopOf(flat, 20)), 0.5);
  EXPECT_GT(TopDivergence(TopOf(flat, 20), TopOf(p, 20)), 0.5);
}

TEST(MeasureCanaryTest, MeansOverThePrompts) {
  const Canary canary = TwoPrompts();
  const std::vector<TopTokens> served = {canary.prompts[0].expected, {{TokenId{7}}, {-0.5f}}};
  const CanaryDistances distances = MeasureCanary(canary, served);
  const auto half = [](double a, double b) { return 0.5 * a + 0.5 * b; };
  const auto of = [&](int i, const TopTokens& q) {
    return TopDivergence(*canary.prompts[i].original, q);
  };
  EXPECT_DOUBLE_EQ(distances.expected_served,
                   half(0.0, TopDivergence(canary.prompts[1].expected, served[1])));
  EXPECT_DOUBLE_EQ(*distances.original_served, half(of(0, served[0]), of(1, served[1])));
  EXPECT_DOUBLE_EQ(*distances.original_expected,
                   half(of(0, canary.prompts[0].expected), of(1, canary.prompts[1].expected)));
}

}  // namespace
}  // namespace fewbit
