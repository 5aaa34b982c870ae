// Every golden checkpoint against the logits that the reference implementation computed from the
// same weights.
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/models/arch_table.h"
#include "tests/golden/checkpoints.h"
#include "tests/npy.h"
#include "tests/runtime/model_runner.h"

namespace fewbit {
namespace {

using ::testing::ElementsAreArray;
using testing::kGoldenCheckpoints;
using testing::ModelRunner;
using ::testing::UnorderedElementsAreArray;

struct Golden {
  std::unique_ptr<Model> model;
  std::vector<int32_t> prompt;
  std::vector<int32_t> greedy;
  std::vector<float> logits;  // [T, V]
};

Golden Load(const std::string& name) {
  const std::string directory = std::string(FEWBIT_SOURCE_DIR) + "/tests/golden/" + name;
  Golden golden;
  auto model = LoadModel(directory);
  EXPECT_TRUE(model.ok()) << model.status();
  if (!model.ok()) return golden;
  golden.model = *std::move(model);
  std::ifstream in(directory + "/golden.json");
  const nlohmann::json json = nlohmann::json::parse(in);
  golden.prompt = json["prompt_ids"].get<std::vector<int32_t>>();
  golden.greedy = json["greedy_ids"].get<std::vector<int32_t>>();
  golden.logits = testing::ReadNpy<float>(directory + "/logits.npy").values;
  return golden;
}

float LargestError(const std::vector<float>& got, const std::vector<float>& want) {
  if (got.size() != want.size()) return INFINITY;
  float error = 0.0f;
  for (size_t i = 0; i < got.size(); ++i) {
    const float e = std::fabs(got[i] - want[i]);
    if (!(e <= error)) error = e;
  }
  return error;
}

// The first `count` values of what a sequence collected.
std::vector<float> Head(const std::vector<float>& values, size_t count) {
  return {values.begin(), values.begin() + std::min(count, values.size())};
}

TEST(GoldenCheckpoints, AreAllThereAreAndCoverEveryFamily) {
  std::vector<std::string> folders;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::string(FEWBIT_SOURCE_DIR) + "/tests/golden")) {
    if (entry.is_directory()) folders.push_back(entry.path().filename());
  }
  EXPECT_THAT(kGoldenCheckpoints, UnorderedElementsAreArray(folders));
  std::set<std::string> known, covered;
  for (const ArchRow& row : ArchTable()) known.insert(row.family);
  for (const char* name : kGoldenCheckpoints) covered.insert(Load(name).model->spec.family);
  EXPECT_EQ(covered, known);
}

class GoldenTest : public ::testing::TestWithParam<const char*> {};

TEST_P(GoldenTest, OnePrompt) {
  const Golden golden = Load(GetParam());
  ASSERT_NE(golden.model, nullptr);
  ModelRunner runner(*golden.model);
  const int i = runner.Add(golden.prompt);
  EXPECT_THAT(runner.Greedy(i, 1000, golden.greedy.size()), ElementsAreArray(golden.greedy));
  const float error =
      LargestError(Head(runner.sequence(i).logits, golden.logits.size()), golden.logits);
  EXPECT_LE(error, 2e-3f);
  RecordProperty("largest_error", std::to_string(error));
}

TEST_P(GoldenTest, ChunksGiveTheSameBits) {
  const Golden golden = Load(GetParam());
  ASSERT_NE(golden.model, nullptr);
  ModelRunner whole(*golden.model);
  const int w = whole.Add(golden.prompt);
  whole.Greedy(w, 1000, golden.greedy.size());
  for (const int chunk : {1, 7, 16}) {
    SCOPED_TRACE(chunk);
    ModelRunner runner(*golden.model);
    const int i = runner.Add(golden.prompt);
    EXPECT_THAT(runner.Greedy(i, chunk, golden.greedy.size()), ElementsAreArray(golden.greedy));
    EXPECT_EQ(runner.sequence(i).logits, whole.sequence(w).logits);
  }
}

// The prompts of all checkpoints, in one model, at different paces and with decoding beside
// prefill.
TEST_P(GoldenTest, BatchedWithOthers) {
  const Golden golden = Load(GetParam());
  ASSERT_NE(golden.model, nullptr);
  ModelRunner alone(*golden.model);
  const int a = alone.Add(golden.prompt);
  alone.Greedy(a, 1000, golden.greedy.size());

  ModelRunner runner(*golden.model);
  std::vector<int> others;
  for (const char* name : kGoldenCheckpoints) others.push_back(runner.Add(Load(name).prompt));
  const int i = runner.Add(golden.prompt);
  std::vector<int32_t> ids;
  for (int step = 0; ids.size() < golden.greedy.size(); ++step) {
    std::vector<ModelRunner::Part> parts;
    for (size_t k = 0; k < others.size(); ++k) {
      ModelRunner::Sequence& s = runner.sequence(others[k]);
      if (s.computed == static_cast<int>(s.tokens.size())) s.tokens.push_back(TokenId(step));
      parts.push_back({others[k], 1 + static_cast<int>(k) * 2});
    }
    parts.insert(parts.begin() + step % (parts.size() + 1), {i, 11});
    runner.Step(parts);
    ModelRunner::Sequence& s = runner.sequence(i);
    if (s.computed < static_cast<int>(s.tokens.size())) continue;
    ids.push_back(runner.Best(i));
    s.tokens.push_back(TokenId(ids.back()));
  }
  EXPECT_THAT(ids, ElementsAreArray(golden.greedy));
  EXPECT_EQ(runner.sequence(i).logits, alone.sequence(a).logits);
}

// What serving uses: a cache of halves.
TEST_P(GoldenTest, HalfPrecisionCache) {
  const Golden golden = Load(GetParam());
  ASSERT_NE(golden.model, nullptr);
  ModelRunner::Options options;
  options.kv_type = kv::KvType::kF16;
  ModelRunner runner(*golden.model, options);
  const int i = runner.Add(golden.prompt);
  EXPECT_THAT(runner.Greedy(i, 16, golden.greedy.size()), ElementsAreArray(golden.greedy));
  const float error =
      LargestError(Head(runner.sequence(i).logits, golden.logits.size()), golden.logits);
  EXPECT_LE(error, 1e-2f);
  RecordProperty("largest_error", std::to_string(error));
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, GoldenTest, ::testing::ValuesIn(kGoldenCheckpoints),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::erase(name, '-');
                           return name;
                         });

}  // namespace
}  // namespace fewbit
