#include "runtime/models/arch_table.h"

#include "runtime/weights/text.h"

namespace fewbit {
namespace {

constexpr TensorNames kLlamaNames = {
    .embedding = "model.embed_tokens.weight",
    .head = "lm_head.weight",
    .final_norm = "model.norm.weight",
    .layer_prefix = "model.layers.",
    .linears = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"},
    .input_norm = "input_layernorm.weight",
    .post_attention_norm = "post_attention_layernorm.weight",
    .q_norm = "self_attn.q_norm.weight",
    .k_norm = "self_attn.k_norm.weight",
};

constexpr TensorNames kGlmNames = {
    .embedding = "model.embed_tokens.weight",
    .head = "lm_head.weight",
    .final_norm = "model.norm.weight",
    .layer_prefix = "model.layers.",
    .linears = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                "mlp.gate_up_proj", "mlp.gate_up_proj", "mlp.down_proj"},
    .input_norm = "input_layernorm.weight",
    .post_attention_norm = "post_attention_layernorm.weight",
    .q_norm = nullptr,
    .k_norm = nullptr,
};

constexpr TensorNames kChatGlmNames = {
    .embedding = "transformer.embedding.word_embeddings.weight",
    .head = "transformer.output_layer.weight",
    .final_norm = "transformer.encoder.final_layernorm.weight",
    .layer_prefix = "transformer.encoder.layers.",
    .linears = {"self_attention.query_key_value", "self_attention.query_key_value",
                "self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h",
                "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"},
    .input_norm = "input_layernorm.weight",
    .post_attention_norm = "post_attention_layernorm.weight",
    .q_norm = nullptr,
    .k_norm = nullptr,
};

constexpr ConfigKeys kLlamaKeys = {
    .hidden_size = "hidden_size",
    .ffn_size = "intermediate_size",
    .num_layers = "num_hidden_layers",
    .num_heads = "num_attention_heads",
    .num_kv_heads = "num_key_value_heads",
    .head_dim = "head_dim",
    .vocab_size = "vocab_size",
    .max_context = "max_position_embeddings",
    .rms_eps = "rms_norm_eps",
};

constexpr ConfigKeys kChatGlmKeys = {
    .hidden_size = "hidden_size",
    .ffn_size = "ffn_hidden_size",
    .num_layers = "num_layers",
    .num_heads = "num_attention_heads",
    .num_kv_heads = "multi_query_group_num",
    .head_dim = "kv_channels",
    .vocab_size = "padded_vocab_size",
    .max_context = "seq_length",
    .rms_eps = "layernorm_epsilon",
};

constexpr FixedKey kNoBiases[] = {{"attention_bias", false}, {"mlp_bias", false}};
constexpr FixedKey kNoMlpBias[] = {{"mlp_bias", false}};
constexpr FixedKey kChatGlmFixed[] = {
    {"rmsnorm", true},
    {"post_layer_norm", true},
    {"original_rope", true},
    {"add_bias_linear", false},
    {"apply_residual_connection_post_layernorm", false},
    {"interleaved_qkv", false},
};

constexpr ArchRow kArchTable[] = {
    {.family = "llama",
     .architectures = {"LlamaForCausalLM"},
     .names = &kLlamaNames,
     .keys = &kLlamaKeys,
     .fixed = kNoBiases},
    {.family = "mistral",
     .architectures = {"MistralForCausalLM"},
     .names = &kLlamaNames,
     .keys = &kLlamaKeys,
     .fixed = kNoBiases,
     .window = WindowRule::kPlain,
     .default_window = 4096},
    {.family = "qwen2",
     .architectures = {"Qwen2ForCausalLM"},
     .names = &kLlamaNames,
     .keys = &kLlamaKeys,
     .fixed = kNoMlpBias,
     .qkv_bias = BiasRule::kAlways,
     .window = WindowRule::kFlagged,
     .default_window = 4096},
    {.family = "qwen3",
     .architectures = {"Qwen3ForCausalLM"},
     .names = &kLlamaNames,
     .keys = &kLlamaKeys,
     .fixed = kNoBiases,
     .qk_norm = true,
     .window = WindowRule::kFlagged,
     .default_window = 4096},
    {.family = "glm",
     .architectures = {"GlmForCausalLM"},
     .names = &kGlmNames,
     .keys = &kLlamaKeys,
     .fixed = kNoMlpBias,
     .qkv_bias = BiasRule::kByKey,
     .qkv_bias_key = "attention_bias",
     .interleaved_rope = true,
     .rotary_fraction = 0.5},
    {.family = "chatglm",
     .architectures = {"ChatGLMModel", "ChatGLMForConditionalGeneration"},
     .names = &kChatGlmNames,
     .keys = &kChatGlmKeys,
     .fixed = kChatGlmFixed,
     .qkv_bias = BiasRule::kByKey,
     .qkv_bias_key = "add_qkv_bias",
     .interleaved_rope = true,
     .rotary_fraction = 0.5,
     .grouped_key = "multi_query_attention",
     .rope_ratio_key = "rope_ratio"},
};

}  // namespace

std::string TensorNames::InLayer(int layer, std::string_view name) const {
  return StrCat(layer_prefix, layer, ".", name);
}

std::span<const ArchRow> ArchTable() { return kArchTable; }

const ArchRow* FindArch(std::string_view architecture) {
  for (const ArchRow& row : kArchTable) {
    for (const char* name : row.architectures) {
      if (name != nullptr && architecture == name) return &row;
    }
  }
  return nullptr;
}

std::string KnownArchitectures() {
  std::string known;
  for (const ArchRow& row : kArchTable) {
    for (const char* name : row.architectures) {
      if (name != nullptr) known += StrCat(known.empty() ? "" : ", ", name);
    }
  }
  return known;
}

const TensorNames& CanonicalNames() { return kLlamaNames; }

}  // namespace fewbit
