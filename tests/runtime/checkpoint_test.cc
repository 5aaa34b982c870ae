// Every golden checkpoint loads with the shapes that its config.json states, and fused tensors are cut where they should be.
#include "runtime/weights/checkpoint.h"

#include <cstring>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/models/model.h"

namespace fewbit {
namespace {

std::string Golden(const std::string& name) {
  return std::string(FEWBIT_SOURCE_DIR) + "/tests/golden/" + name;
}

class GoldenTest : public testing::TestWithParam<const char*> {};

TEST_P(GoldenTest, LoadsWithTheShapesOfItsConfig) {
  const auto loaded = LoadModel(Golden(GetParam()));
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const Model& model = **loaded;
  const ModelSpec& spec = model.spec;
  EXPECT_EQ(spec.vocab_size, 320);
  EXPECT_EQ(spec.max_context, 512);
  ASSERT_EQ(model.layers.size(), 2u);
  EXPECT_EQ(MatrixRows(model.embedding), 320);
  EXPECT_EQ(MatrixCols(model.embedding), 64);
  EXPECT_EQ(MatrixRows(model.head), 320);
  EXPECT_EQ(model.final_norm.size(), 64u);
  EXPECT_FALSE(model.quantization.quantized);
  for (const LayerWeights& layer : model.layers) {
    const auto shape = [&layer](LinearRole role) {
      return std::pair(MatrixRows(layer[role]), MatrixCols(layer[role]));
    };
    EXPECT_EQ(shape(LinearRole::kQ), std::pair(spec.q_size(), 64));
    EXPECT_EQ(shape(LinearRole::kK), std::pair(spec.kv_size(), 64));
    EXPECT_EQ(shape(LinearRole::kV), std::pair(spec.kv_size(), 64));
    EXPECT_EQ(shape(LinearRole::kO), std::pair(64, spec.q_size()));
    EXPECT_EQ(shape(LinearRole::kGate), std::pair(96, 64));
    EXPECT_EQ(shape(LinearRole::kUp), std::pair(96, 64));
    EXPECT_EQ(shape(LinearRole::kDown), std::pair(64, 96));
    EXPECT_EQ(layer.input_norm.size(), 64u);
    EXPECT_EQ(layer.post_attention_norm.size(), 64u);
    EXPECT_EQ(layer.q_norm.size(), spec.qk_norm ? static_cast<size_t>(spec.head_dim) : 0u);
    EXPECT_EQ(layer.q_bias.size(), spec.qkv_bias ? static_cast<size_t>(spec.q_size()) : 0u);
    EXPECT_EQ(layer.v_bias.size(), spec.qkv_bias ? static_cast<size_t>(spec.kv_size()) : 0u);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenTest,
                         testing::Values("llama2", "llama3", "mistral-swa", "qwen2", "qwen3", "glm",
                                         "chatglm2"));

}  // namespace
}  // namespace fewbit
