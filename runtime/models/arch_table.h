// The model families, one row each: what their checkpoints are called inside and which flags of the
// decoder they set. A Llama-shaped model is one more row. Owns no code of the decoder and reads no
// file.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "runtime/models/model.h"

namespace fewbit {

// Tensor names of a checkpoint. Linear roles that carry the same name are one fused tensor, cut by
// rows in the order of LinearRole.
struct TensorNames {
  const char* embedding;
  const char* head;
  const char* final_norm;
  const char* layer_prefix;  // followed by the layer's number and a dot, then by what is below
  const char* linears[kNumLinearRoles];  // followed by ".weight", and by ".bias" where there is one
  const char* input_norm;
  const char* post_attention_norm;
  const char* q_norm;
  const char* k_norm;

  std::string InLayer(int layer, std::string_view name) const;
};

// Names of the numbers in config.json.
struct ConfigKeys {
  const char* hidden_size;
  const char* ffn_size;
  const char* num_layers;
  const char* num_heads;
  const char* num_kv_heads;
  const char* head_dim;
  const char* vocab_size;
  const char* max_context;
  const char* rms_eps;
};

// A key that, where present and not null, must have this value: anything else is a feature the
// decoder lacks.
struct FixedKey {
  const char* key;
  bool value;
};

enum class BiasRule : uint8_t { kNever, kAlways, kByKey };

enum class WindowRule : uint8_t {
  kNone,     // sliding_window is ignored, as transformers does for the family
  kPlain,    // sliding_window, null meaning none
  kFlagged,  // only with use_sliding_window, and from layer max_window_layers on
};

// The defaults are Llama's: a row says what its family does differently.
struct ArchRow {
  const char* family = nullptr;
  // Values of config.json's architectures[0]; the second may be null.
  const char* architectures[2] = {};
  const TensorNames* names = nullptr;
  const ConfigKeys* keys = nullptr;
  std::span<const FixedKey> fixed;
  BiasRule qkv_bias = BiasRule::kNever;
  const char* qkv_bias_key = nullptr;  // for kByKey
  bool qk_norm = false;
  bool interleaved_rope = false;
  double rotary_fraction = 1.0;  // of head_dim, where the config does not say
  WindowRule window = WindowRule::kNone;
  int default_window = 0;  // tokens, when sliding_window is missing; 0: none
  // num_kv_heads counts only where this key is true; null: always.
  const char* grouped_key = nullptr;
  const char* rope_ratio_key = nullptr;  // multiplies rope's theta; null: no such key
};

std::span<const ArchRow> ArchTable();
const ArchRow* FindArch(std::string_view architecture);  // null: unknown
std::string KnownArchitectures();                        // "LlamaForCausalLM, ..." for messages

// The names that a quantized checkpoint uses, whatever its family: unfused, as Llama's.
const TensorNames& CanonicalNames();

}  // namespace fewbit
