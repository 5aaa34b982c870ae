// config.json and generation_config.json: every key style that is understood, and for every feature
// or number that is not, the words.
#include <optional>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/weights/config_reader.h"
#include "runtime/weights/json.h"
#include "tests/runtime/checkpoint_files.h"

namespace fewbit {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

json GoldenConfig(std::string_view name) {
  return json::parse(ReadText(GoldenDirectory(name) + "/config.json"));
}

// A golden config with keys replaced; a discarded value removes the key.
json Changed(std::string_view golden, const std::vector<std::pair<std::string, json>>& changes) {
  json config = GoldenConfig(golden);
  for (const auto& [key, value] : changes) {
    if (value.is_discarded()) {
      config.erase(key);
    } else {
      config[key] = value;
    }
  }
  return config;
}
const json kRemoved(json::value_t::discarded);

absl::StatusOr<ModelConfig> Parse(const json& config,
                                  std::optional<std::string> generation = std::nullopt) {
  std::optional<std::string_view> text;
  if (generation) text = *generation;
  return ParseModelConfig(config.dump(), text, "dir");
}

TEST(ModelConfigTest, Llama3RopeScaling) {
  const auto config = Parse(GoldenConfig("llama3"));
  ASSERT_TRUE(config.ok()) << config.status();
  const ModelSpec& spec = config->spec;
  EXPECT_EQ(spec.family, "llama");
  EXPECT_EQ(spec.num_kv_heads, 2);
  EXPECT_EQ(spec.head_dim, 16);
  EXPECT_EQ(spec.rope.scaling, RopeScaling::kLlama3);
  EXPECT_EQ(spec.rope.theta, 500000.0);
  EXPECT_EQ(spec.rope.factor, 8.0);
  EXPECT_EQ(spec.rope.original_max_positions, 64);
  EXPECT_EQ(spec.rope.rotary_dim, 16);
  EXPECT_FALSE(spec.rope.interleaved);
  EXPECT_FALSE(spec.tied_head);
  EXPECT_EQ(spec.bos, TokenId{1});
  EXPECT_THAT(spec.eos, ElementsAre(TokenId{2}));
  EXPECT_EQ(spec.sliding_window, 0);
}

TEST(ModelConfigTest, FamiliesSetTheirFlags) {
  const ModelSpec qwen2 = Parse(GoldenConfig("qwen2"))->spec;
  EXPECT_TRUE(qwen2.qkv_bias && qwen2.tied_head && !qwen2.qk_norm);
  const ModelSpec qwen3 = Parse(GoldenConfig("qwen3"))->spec;
  EXPECT_TRUE(qwen3.qk_norm && qwen3.tied_head && !qwen3.qkv_bias);
  EXPECT_EQ(qwen3.head_dim, 32);
  EXPECT_EQ(Parse(GoldenConfig("mistral-swa"))->spec.sliding_window, 24);
  const ModelSpec glm = Parse(GoldenConfig("glm"))->spec;
  EXPECT_TRUE(glm.qkv_bias && glm.rope.interleaved);
  EXPECT_EQ(glm.rope.rotary_dim, 8);
}

TEST(ModelConfigTest, ChatGlmKeys) {
  const auto config = Parse(Changed("chatglm2", {{"rope_ratio", 50}, {"eos_token_id", {2, 7, 9}}}));
  ASSERT_TRUE(config.ok()) << config.status();
  const ModelSpec& spec = config->spec;
  EXPECT_EQ(spec.num_layers, 2);
  EXPECT_EQ(spec.num_kv_heads, 2);
  EXPECT_EQ(spec.head_dim, 16);
  EXPECT_EQ(spec.vocab_size, 320);
  EXPECT_EQ(spec.ffn_size, 96);
  EXPECT_EQ(spec.max_context, 512);
  EXPECT_EQ(spec.rope.theta, 500000.0);
  EXPECT_EQ(spec.rope.rotary_dim, 8);
  EXPECT_TRUE(spec.rope.interleaved && spec.qkv_bias);
  EXPECT_EQ(spec.bos, TokenId{-1});
  EXPECT_THAT(spec.eos, ElementsAre(TokenId{2}, TokenId{7}, TokenId{9}));
  const auto ungrouped = Parse(Changed("chatglm2", {{"multi_query_attention", false}}));
  ASSERT_TRUE(ungrouped.ok());
  EXPECT_EQ(ungrouped->spec.num_kv_heads, 4);
  EXPECT_TRUE(
      Parse(Changed("chatglm2", {{"architectures", {"ChatGLMForConditionalGeneration"}}})).ok());
}

TEST(ModelConfigTest, NewKeyStyleMeansTheSame) {
  const json old_style = GoldenConfig("llama3");
  json parameters = old_style["rope_scaling"];
  parameters["rope_theta"] = old_style["rope_theta"];
  const auto config = Parse(Changed("llama3", {{"rope_parameters", parameters},
                                               {"rope_scaling", kRemoved},
                                               {"rope_theta", kRemoved},
                                               {"torch_dtype", kRemoved},
                                               {"dtype", "bfloat16"}}));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->spec.rope.scaling, RopeScaling::kLlama3);
  EXPECT_EQ(config->spec.rope.theta, 500000.0);
  EXPECT_EQ(config->spec.rope.original_max_positions, 64);

  const auto glm = Parse(Changed(
      "glm",
      {{"partial_rotary_factor", kRemoved},
       {"rope_theta", kRemoved},
       {"rope_parameters",
        {{"rope_type", "default"}, {"rope_theta", 20000.0}, {"partial_rotary_factor", 1.0}}}}));
  ASSERT_TRUE(glm.ok()) << glm.status();
  EXPECT_EQ(glm->spec.rope.rotary_dim, 16);
  EXPECT_EQ(glm->spec.rope.theta, 20000.0);
  EXPECT_EQ(glm->spec.rope.scaling, RopeScaling::kNone);
}

TEST(ModelConfigTest, LinearScalingUnderTheOldTypeKey) {
  const auto config =
      Parse(Changed("llama2", {{"rope_scaling", {{"type", "linear"}, {"factor", 4}}}}));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->spec.rope.scaling, RopeScaling::kLinear);
  EXPECT_EQ(config->spec.rope.factor, 4.0);
}

TEST(ModelConfigTest, DefaultsOfMissingKeys) {
  const auto config = Parse(Changed("llama2", {{"rope_theta", kRemoved},
                                               {"num_key_value_heads", kRemoved},
                                               {"hidden_act", kRemoved},
                                               {"tie_word_embeddings", kRemoved},
                                               {"bos_token_id", nullptr},
                                               {"eos_token_id", kRemoved}}));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->spec.rope.theta, 10000.0);
  EXPECT_EQ(config->spec.num_kv_heads, 4);
  EXPECT_EQ(config->spec.head_dim, 16);
  EXPECT_FALSE(config->spec.tied_head);
  EXPECT_EQ(config->spec.bos, TokenId{-1});
  EXPECT_THAT(config->spec.eos, IsEmpty());
}

TEST(ModelConfigTest, SlidingWindowStyles) {
  const auto window = [](std::string_view golden,
                         const std::vector<std::pair<std::string, json>>& changes) {
    const auto config = Parse(Changed(golden, changes));
    EXPECT_TRUE(config.ok()) << config.status();
    return config.ok() ? config->spec.sliding_window : -1;
  };
  EXPECT_EQ(window("mistral-swa", {{"sliding_window", nullptr}}), 0);
  EXPECT_EQ(window("mistral-swa", {{"sliding_window", kRemoved}}), 4096);
  EXPECT_EQ(window("llama2", {{"sliding_window", 77}}), 0);
  EXPECT_EQ(window("qwen2", {{"sliding_window", 77}, {"use_sliding_window", false}}), 0);
  EXPECT_EQ(window("qwen2", {{"sliding_window", nullptr}, {"use_sliding_window", true}}), 0);
  EXPECT_EQ(window("qwen2", {{"sliding_window", 77}, {"use_sliding_window", true}}), 77);
  EXPECT_EQ(
      window("qwen2",
             {{"sliding_window", 77}, {"use_sliding_window", true}, {"max_window_layers", 2}}),
      0);
  EXPECT_EQ(window("qwen2", {{"sliding_window", 77},
                             {"use_sliding_window", true},
                             {"max_window_layers", 1},
                             {"layer_types", {"sliding_attention", "sliding_attention"}}}),
            77);
  EXPECT_EQ(window("mistral-swa", {{"layer_types", {"full_attention", "full_attention"}}}), 0);
}

TEST(ModelConfigTest, GenerationDefaultsAndUnionOfEos) {
  const auto config =
      Parse(GoldenConfig("llama2"), R"({"eos_token_id":[2,5],"do_sample":true,"temperature":0.75,)"
                                    R"("top_p":0.5,"top_k":40,"repetition_penalty":1.25})");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(config->spec.eos, ElementsAre(TokenId{2}, TokenId{5}));
  EXPECT_EQ(config->generation.do_sample, true);
  EXPECT_EQ(config->generation.temperature, 0.75f);
  EXPECT_EQ(config->generation.top_p, 0.5f);
  EXPECT_EQ(config->generation.top_k, 40);
  EXPECT_EQ(config->generation.repetition_penalty, 1.25f);
  const auto none = Parse(GoldenConfig("llama2"));
  EXPECT_FALSE(none->generation.temperature.has_value());
}

struct Refusal {
  const char* name;
  const char* golden;
  std::vector<std::pair<std::string, json>> changes;
  std::vector<std::string> text;
};

class RefusalTest : public testing::TestWithParam<Refusal> {};

TEST_P(RefusalTest, NamesFileKeyAndValue) {
  const auto config = Parse(Changed(GetParam().golden, GetParam().changes));
  ASSERT_FALSE(config.ok());
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  const std::string message(config.status().message());
  EXPECT_THAT(message, HasSubstr("dir/config.json"));
  for (const std::string& text : GetParam().text) EXPECT_THAT(message, HasSubstr(text));
}

json Scaling(const char* type) { return {{"rope_type", type}, {"factor", 2.0}}; }

INSTANTIATE_TEST_SUITE_P(
    Features, RefusalTest,
    testing::Values(
        Refusal{"unknown_architecture",
                "llama2",
                {{"architectures", {"MambaForCausalLM"}}},
                {"architectures: [\"MambaForCausalLM\"]: unknown", "LlamaForCausalLM"}},
        Refusal{"no_architecture", "llama2", {{"architectures", kRemoved}}, {"architectures"}},
        Refusal{"activation", "llama2", {{"hidden_act", "gelu"}}, {"hidden_act", "gelu", "silu"}},
        Refusal{"rope_yarn",
                "llama2",
                {{"rope_scaling", Scaling("yarn")}},
                {"rope_scaling", "rope_type", "yarn"}},
        Refusal{"rope_dynamic",
                "llama2",
                {{"rope_parameters", Scaling("dynamic")}},
                {"rope_parameters", "rope_type", "dynamic"}},
        Refusal{"rope_no_type", "llama2", {{"rope_scaling", {{"factor", 2}}}}, {"rope_type"}},
        Refusal{"rope_no_object", "llama2", {{"rope_scaling", 2}}, {"rope_scaling", "object"}},
        Refusal{"rope_per_layer",
                "llama2",
                {{"rope_parameters", {{"full_attention", {{"rope_type", "default"}}}}}},
                {"full_attention", "differs between layers"}},
        Refusal{"rope_llama3_incomplete",
                "llama2",
                {{"rope_scaling", Scaling("llama3")}},
                {"low_freq_factor", "missing"}},
        Refusal{"mixture_of_experts",
                "llama2",
                {{"num_local_experts", 8}},
                {"num_local_experts", "8", "not supported"}},
        Refusal{"attention_bias", "llama2", {{"attention_bias", true}}, {"attention_bias", "true"}},
        Refusal{"mlp_bias", "llama2", {{"mlp_bias", true}}, {"mlp_bias", "true"}},
        Refusal{"qwen3_attention_bias", "qwen3", {{"attention_bias", true}}, {"attention_bias"}},
        Refusal{"softcapping",
                "llama2",
                {{"final_logit_softcapping", 30.0}},
                {"final_logit_softcapping"}},
        Refusal{"foreign_quantization",
                "llama2",
                {{"quantization_config", {{"quant_method", "gptq"}, {"bits", 4}}}},
                {"quantization_config", "quant_method", "gptq"}},
        Refusal{"chatglm_quantized", "chatglm2", {{"quantization_bit", 4}}, {"quantization_bit"}},
        Refusal{"chatglm_layernorm", "chatglm2", {{"rmsnorm", false}}, {"rmsnorm", "false"}},
        Refusal{
            "chatglm_linear_bias", "chatglm2", {{"add_bias_linear", true}}, {"add_bias_linear"}},
        Refusal{"mixed_layers",
                "qwen2",
                {{"layer_types", {"full_attention", "sliding_attention"}}},
                {"layer_types"}},
        Refusal{"partial_window",
                "qwen2",
                {{"use_sliding_window", true}, {"sliding_window", 8}, {"max_window_layers", 1}},
                {"max_window_layers", "some of the layers"}},
        Refusal{"weight_type",
                "llama2",
                {{"torch_dtype", "float8_e4m3fn"}},
                {"torch_dtype", "float8_e4m3fn"}}),
    [](const testing::TestParamInfo<Refusal>& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Numbers, RefusalTest,
    testing::Values(
        Refusal{"hidden_missing", "llama2", {{"hidden_size", kRemoved}}, {"hidden_size: missing"}},
        Refusal{"hidden_zero", "llama2", {{"hidden_size", 0}}, {"hidden_size: 0", "[1, "}},
        Refusal{
            "layers_negative", "llama2", {{"num_hidden_layers", -3}}, {"num_hidden_layers: -3"}},
        Refusal{"layers_absurd", "llama2", {{"num_hidden_layers", 1 << 20}}, {"num_hidden_layers"}},
        Refusal{"layers_text", "llama2", {{"num_hidden_layers", "2"}}, {"integer"}},
        Refusal{"layers_fraction", "llama2", {{"num_hidden_layers", 2.5}}, {"2.5", "integer"}},
        Refusal{"vocab_huge", "llama2", {{"vocab_size", uint64_t{1} << 63}}, {"vocab_size"}},
        Refusal{"heads_not_divisible",
                "llama2",
                {{"num_key_value_heads", 3}},
                {"num_key_value_heads: 3", "num_attention_heads (4)"}},
        Refusal{"kv_above_heads", "llama2", {{"num_key_value_heads", 8}}, {"num_key_value_heads"}},
        Refusal{"hidden_not_divisible",
                "llama2",
                {{"num_attention_heads", 5}, {"num_key_value_heads", 5}},
                {"num_attention_heads: 5"}},
        Refusal{"odd_head", "llama2", {{"head_dim", 15}}, {"head_dim: 15", "even"}},
        Refusal{"eps_zero", "llama2", {{"rms_norm_eps", 0.0}}, {"rms_norm_eps"}},
        Refusal{"eps_text", "llama2", {{"rms_norm_eps", "1e-5"}}, {"rms_norm_eps"}},
        Refusal{"theta_negative", "llama2", {{"rope_theta", -1.0}}, {"rope_theta"}},
        Refusal{"factor_below_one",
                "llama2",
                {{"rope_scaling", {{"type", "linear"}, {"factor", 0.5}}}},
                {"factor: 0.5"}},
        Refusal{"odd_rotary", "glm", {{"partial_rotary_factor", 0.2}}, {"partial_rotary_factor"}},
        Refusal{"window_zero", "mistral-swa", {{"sliding_window", 0}}, {"sliding_window: 0"}},
        Refusal{
            "eos_beyond_vocab", "llama2", {{"eos_token_id", 320}}, {"eos_token_id: 320", "320"}},
        Refusal{"eos_negative", "llama2", {{"eos_token_id", {2, -1}}}, {"eos_token_id"}},
        Refusal{"bos_beyond_vocab", "llama2", {{"bos_token_id", 320}}, {"bos_token_id: 320"}}),
    [](const testing::TestParamInfo<Refusal>& info) { return info.param.name; });

TEST(ModelConfigTest, RefusesOtherLayoutVersions) {
  const auto config = Parse(Changed("llama2", {{"quantization_config",
                                                {{"quant_method", "fewbit"},
                                                 {"layout_version", 99},
                                                 {"method", "default"},
                                                 {"zero_points", false},
                                                 {"embedding_bits", 16}}}}));
  EXPECT_EQ(config.status().code(), absl::StatusCode::kFailedPrecondition) << config.status();
  EXPECT_THAT(
      std::string(config.status().message()),
      AllOf(HasSubstr("dir/config.json"), HasSubstr("version 99"), HasSubstr("reads version 1")));
}

TEST(ModelConfigTest, RefusesBadGenerationConfigs) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "bad JSON"},
      {"[1]", "not an object"},
      {R"({"temperature":-1})", "temperature: -1"},
      {R"({"top_p":1.5})", "top_p: 1.5"},
      {R"({"top_k":-2})", "top_k: -2"},
      {R"({"repetition_penalty":0})", "repetition_penalty: 0"},
      {R"({"do_sample":1})", "do_sample: 1"},
      {R"({"eos_token_id":4000})", "eos_token_id: 4000"},
  };
  for (const auto& [text, expected] : cases) {
    const auto config = Parse(GoldenConfig("llama2"), text);
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(config.status().message()),
                AllOf(HasSubstr("dir/generation_config.json"), HasSubstr(expected)));
  }
}

TEST(ModelConfigTest, OddTextInAMessageIsEscapedAndShort) {
  EXPECT_EQ(JsonText(json("a\"\n\x7F")), "\"a\\\"\\n\\u007f\"");
  EXPECT_EQ(JsonText(json(std::string("\xFF"))), "\"\\ufffd\"");
  EXPECT_EQ(JsonText(json(std::string(300, 'x'))), "\"" + std::string(199, 'x') + "...");
}

TEST(ModelConfigTest, SyntaxErrorNamesFileAndPlace) {
  const auto config = ParseModelConfig("{\n \"hidden_size\": ,}", std::nullopt, "dir");
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(config.status().message()),
              AllOf(HasSubstr("dir/config.json"), HasSubstr("line 2")));
  const auto twice = ParseModelConfig(R"({"hidden_size":1,"hidden_size":2})", std::nullopt, "dir");
  EXPECT_THAT(std::string(twice.status().message()), HasSubstr("'hidden_size' occurs twice"));
}

}  // namespace
}  // namespace fewbit
