#include "runtime/weights/canary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

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

TEST_F(CanaryTest, ComesBackAsItWasWritten) {
  Canary canary;
  canary.token_ids = {TokenId{1}, TokenId{99}, TokenId{0}};
  canary.mean_logprob = -3.25;
  canary.tolerance = 0.125;
  ASSERT_TRUE(WriteCanary(directory_, canary).ok());
  const auto read = LoadCanary(directory_, 100);
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_TRUE(read->has_value());
  EXPECT_EQ((*read)->token_ids, canary.token_ids);
  EXPECT_EQ((*read)->mean_logprob, -3.25);
  EXPECT_EQ((*read)->tolerance, 0.125);
}

TEST_F(CanaryTest, NeedNotBeThere) {
  const auto read = LoadCanary(directory_, 100);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_FALSE(read->has_value());
}

TEST_F(CanaryTest, MayLeaveTheToleranceOpen) {
  Write(R"({"token_ids": [5, 6], "mean_logprob": -1})");
  const auto read = LoadCanary(directory_, 100);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ((*read)->tolerance, Canary::kTolerance);
}

TEST_F(CanaryTest, WhatIsWrongIsNamed) {
  const struct {
    const char* text;
    const char* said;
  } cases[] = {
      {"", "canary.json"},
      {"[]", "canary.json"},
      {R"({"mean_logprob": -1})", "token_ids"},
      {R"({"token_ids": [5], "mean_logprob": -1})", "2 to 1024 token ids"},
      {R"({"token_ids": [5, 100], "mean_logprob": -1})", "100 is no id"},
      {R"({"token_ids": [5, -1], "mean_logprob": -1})", "-1 is no id"},
      {R"({"token_ids": [5, 1.5], "mean_logprob": -1})", "1.5 is no id"},
      {R"({"token_ids": [5, 6]})", "mean_logprob"},
      {R"({"token_ids": [5, 6], "mean_logprob": 1})", "mean_logprob"},
      {R"({"token_ids": [5, 6], "mean_logprob": -1, "tolerance": 0})", "tolerance"},
  };
  for (const auto& test : cases) {
    Write(test.text);
    const auto read = LoadCanary(directory_, 100);
    EXPECT_EQ(read.status().code(), absl::StatusCode::kInvalidArgument) << test.text;
    EXPECT_THAT(std::string(read.status().message()),
                AllOf(HasSubstr(directory_ + "/canary.json"), HasSubstr(test.said)));
  }
}

}  // namespace
}  // namespace fewbit
