#include "runtime/weights/config_reader.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "kernels/quant_layout.h"
#include "runtime/weights/config_fields.h"
#include "runtime/weights/file.h"
#include "runtime/weights/quantized_format.h"

namespace fewbit {
namespace {

constexpr double kDefaultTheta = 10000.0;
constexpr double kMaxTheta = 1e12;
constexpr double kMaxFactor = 1e6;
constexpr double kSmallest = 1e-12;

// Numbers and objects that, when there and not zero, make a model that the decoder does not
// compute.
constexpr const char* kForeignFeatures[] = {
    "num_experts",      "num_local_experts",      "n_routed_experts",       "pre_seq_len",
    "quantization_bit", "attn_logit_softcapping", "final_logit_softcapping"};

constexpr const char* kWeightTypes[] = {"bfloat16", "float16", "float32", "auto"};

bool IsZeroOrFalse(const nlohmann::json& value) {
  return (value.is_number() && value.get<double>() == 0.0) ||
         (value.is_boolean() && !value.get<bool>());
}

const ArchRow* ReadArch(ConfigFields* fields) {
  const nlohmann::json* names = fields->Find("architectures");
  if (names == nullptr || !names->is_array() || names->empty() || !(*names)[0].is_string()) {
    fields->Refuse("architectures", "must be a list that begins with the model's class name");
    return nullptr;
  }
  const ArchRow* row = FindArch((*names)[0].get_ref<const std::string&>());
  if (row == nullptr) {
    fields->Refuse("architectures",
                   StrCat("unknown architecture; known are ", KnownArchitectures()));
  }
  return row;
}

void RefuseForeignFeatures(const ArchRow& row, ConfigFields* fields) {
  for (const FixedKey& fixed : row.fixed) {
    const std::optional<bool> value = fields->Bool(fixed.key);
    if (value && *value != fixed.value) {
      fields->Refuse(fixed.key, StrCat("only ", fixed.value ? "true" : "false",
                                       " is supported for ", row.family));
    }
  }
  for (const char* key : kForeignFeatures) {
    const nlohmann::json* value = fields->Find(key);
    if (value != nullptr && !IsZeroOrFalse(*value)) fields->Refuse(key, "not supported");
  }
  if (fields->Has("hidden_act") && fields->Text("hidden_act") != "silu") {
    fields->Refuse("hidden_act", "only \"silu\" is supported");
  }
  for (const char* key : {"torch_dtype", "dtype"}) {
    const std::optional<std::string> type = fields->Text(key);
    if (type && std::find(std::begin(kWeightTypes), std::end(kWeightTypes), *type) ==
                    std::end(kWeightTypes)) {
      fields->Refuse(key, "weights must be bfloat16, float16 or float32");
    }
  }
}

void ReadSizes(const ArchRow& row, ConfigFields* fields, ModelSpec* spec) {
  const ConfigKeys& keys = *row.keys;
  const auto required = [fields](const char* key, int64_t max) {
    return static_cast<int32_t>(fields->RequiredInt(key, 1, max));
  };
  spec->num_layers = required(keys.num_layers, ConfigLimits::kLayers);
  spec->hidden_size = required(keys.hidden_size, ConfigLimits::kHidden);
  spec->ffn_size = required(keys.ffn_size, ConfigLimits::kFfn);
  spec->num_heads = required(keys.num_heads, ConfigLimits::kHeads);
  spec->vocab_size = required(keys.vocab_size, ConfigLimits::kVocab);
  spec->max_context = required(keys.max_context, ConfigLimits::kContext);
  spec->rms_eps = static_cast<float>(fields->RequiredNumber(keys.rms_eps, kSmallest, 1.0));

  const bool grouped = row.grouped_key == nullptr || fields->Bool(row.grouped_key).value_or(false);
  std::optional<int64_t> kv_heads;
  if (grouped) kv_heads = fields->Int(keys.num_kv_heads, 1, ConfigLimits::kHeads);
  spec->num_kv_heads = static_cast<int32_t>(kv_heads.value_or(spec->num_heads));
  if (fields->ok() && spec->num_heads % spec->num_kv_heads != 0) {
    fields->Refuse(keys.num_kv_heads,
                   StrCat("must divide ", keys.num_heads, " (", spec->num_heads, ")"));
  }
  const std::optional<int64_t> head_dim = fields->Int(keys.head_dim, 1, ConfigLimits::kHeadDim);
  if (!fields->ok()) return;
  if (!head_dim && spec->hidden_size % spec->num_heads != 0) {
    fields->Refuse(keys.num_heads, StrCat("must divide ", keys.hidden_size, " (", spec->hidden_size,
                                          ") where ", keys.head_dim, " is missing"));
  }
  spec->head_dim = static_cast<int32_t>(head_dim.value_or(spec->hidden_size / spec->num_heads));
  if (spec->head_dim % 2 != 0 || spec->head_dim > ConfigLimits::kHeadDim) {
    fields->Refuse(keys.head_dim,
                   StrCat("a head size of ", spec->head_dim, " is not supported: even, at most ",
                          ConfigLimits::kHeadDim));
  }
}

void ReadRopeScaling(ConfigFields* scaling, RopeSpec* rope) {
  std::optional<std::string> type = scaling->Text("rope_type");
  if (!type) type = scaling->Text("type");
  if (!type && scaling->Has("factor")) {
    scaling->Refuse("rope_type", "needed beside a factor");
  }
  if (!type || *type == "default") return;
  const char* type_key = scaling->Has("rope_type") ? "rope_type" : "type";
  if (*type != "linear" && *type != "llama3") {
    scaling->Refuse(type_key, "not supported; known are default, linear, llama3");
    return;
  }
  rope->factor = scaling->RequiredNumber("factor", 1.0, kMaxFactor);
  if (*type == "linear") {
    rope->scaling = RopeScaling::kLinear;
    return;
  }
  rope->scaling = RopeScaling::kLlama3;
  rope->low_freq_factor = scaling->RequiredNumber("low_freq_factor", kSmallest, kMaxFactor);
  rope->high_freq_factor = scaling->RequiredNumber("high_freq_factor", kSmallest, kMaxFactor);
  rope->original_max_positions = static_cast<int32_t>(
      scaling->RequiredInt("original_max_position_embeddings", 1, ConfigLimits::kContext));
  if (scaling->ok() && rope->high_freq_factor <= rope->low_freq_factor) {
    scaling->Refuse("high_freq_factor", "must be greater than low_freq_factor");
  }
}

// rope_parameters is transformers 5's way to say all of rope; before, rope_theta stood alone and
// rope_scaling held the rest.
void ReadRope(const ArchRow& row, ConfigFields* fields, ModelSpec* spec) {
  RopeSpec& rope = spec->rope;
  rope.interleaved = row.interleaved_rope;
  const nlohmann::json* parameters = fields->Object("rope_parameters");
  const nlohmann::json* scaling = fields->Object("rope_scaling");
  const nlohmann::json none = nlohmann::json::object();
  const char* name = parameters != nullptr ? "rope_parameters" : "rope_scaling";
  const nlohmann::json& chosen =
      parameters != nullptr ? *parameters : (scaling != nullptr ? *scaling : none);
  ConfigFields inner(chosen, StrCat(fields->file(), ": ", name));
  for (const auto& [key, value] : chosen.items()) {
    if (value.is_object()) inner.Refuse(key, "rope that differs between layers is not supported");
  }

  std::optional<double> theta = inner.Number("rope_theta", 1.0, kMaxTheta);
  if (!theta) theta = fields->Number("rope_theta", 1.0, kMaxTheta);
  rope.theta = theta.value_or(kDefaultTheta);
  if (row.rope_ratio_key != nullptr) {
    rope.theta *= fields->Number(row.rope_ratio_key, 1e-3, kMaxFactor).value_or(1.0);
  }
  std::optional<double> fraction = inner.Number("partial_rotary_factor", kSmallest, 1.0);
  if (!fraction) fraction = fields->Number("partial_rotary_factor", kSmallest, 1.0);
  ReadRopeScaling(&inner, &rope);
  fields->Refuse(inner.status());
  if (!fields->ok()) return;
  rope.rotary_dim = static_cast<int32_t>(spec->head_dim * fraction.value_or(row.rotary_fraction));
  if (rope.rotary_dim < 2 || rope.rotary_dim % 2 != 0) {
    fields->Refuse("partial_rotary_factor",
                   StrCat("turns ", rope.rotary_dim, " dimensions of a head of ", spec->head_dim,
                          "; must be an even number, at least 2"));
  }
}

// Whether `layer_types` says that all layers slide (1), none does (0), or nothing (-1).
int ReadLayerTypes(ConfigFields* fields) {
  const nlohmann::json* types = fields->Find("layer_types");
  if (types == nullptr) return -1;
  if (!types->is_array() || types->empty()) {
    fields->Refuse("layer_types", "must be a list of names");
    return -1;
  }
  for (const nlohmann::json& type : *types) {
    if (type != (*types)[0] || (type != "full_attention" && type != "sliding_attention")) {
      fields->Refuse("layer_types", "all must be full_attention or all sliding_attention");
      return -1;
    }
  }
  return (*types)[0] == "sliding_attention" ? 1 : 0;
}

void ReadWindow(const ArchRow& row, ConfigFields* fields, ModelSpec* spec) {
  const int by_layer = ReadLayerTypes(fields);
  if (row.window == WindowRule::kNone) {
    if (by_layer == 1) {
      fields->Refuse("layer_types", StrCat("a sliding window is not supported for ", row.family));
    }
    return;
  }
  int64_t window = fields->Int("sliding_window", 1, INT32_MAX).value_or(0);
  if (!fields->Mentions("sliding_window")) {
    window = row.default_window;
  }
  if (row.window == WindowRule::kFlagged) {
    if (!fields->Bool("use_sliding_window").value_or(false)) window = 0;
    const int64_t first = fields->Int("max_window_layers", 0, INT32_MAX).value_or(0);
    if (window > 0 && by_layer < 0 && first >= spec->num_layers) window = 0;
    if (window > 0 && by_layer < 0 && first > 0) {
      fields->Refuse("max_window_layers",
                     "a sliding window in only some of the layers is not supported");
    }
  }
  if (by_layer == 0) window = 0;
  if (by_layer == 1 && window == 0) {
    fields->Refuse("layer_types", "sliding_attention without a sliding_window in use");
  }
  spec->sliding_window = static_cast<int32_t>(window);
}

void AddEos(ConfigFields* fields, ModelSpec* spec) {
  const nlohmann::json* value = fields->Find("eos_token_id");
  if (value == nullptr) return;
  const nlohmann::json list = value->is_array() ? *value : nlohmann::json::array({*value});
  for (const nlohmann::json& id : list) {
    const bool valid =
        id.is_number_unsigned() && id.get<uint64_t>() < static_cast<uint64_t>(spec->vocab_size);
    if (!valid) {
      fields->Refuse("eos_token_id", StrCat("must be one or a list of token ids below the "
                                            "vocabulary size ",
                                            spec->vocab_size));
      return;
    }
    const TokenId token{id.get<int32_t>()};
    if (std::find(spec->eos.begin(), spec->eos.end(), token) == spec->eos.end()) {
      spec->eos.push_back(token);
    }
  }
}

void ReadSpec(const ArchRow& row, ConfigFields* fields, ModelSpec* spec) {
  RefuseForeignFeatures(row, fields);
  spec->family = row.family;
  ReadSizes(row, fields, spec);
  if (!fields->ok()) return;
  ReadRope(row, fields, spec);
  ReadWindow(row, fields, spec);
  spec->qk_norm = row.qk_norm;
  spec->qkv_bias =
      row.qkv_bias == BiasRule::kAlways ||
      (row.qkv_bias == BiasRule::kByKey && fields->Bool(row.qkv_bias_key).value_or(false));
  spec->tied_head = fields->Bool("tie_word_embeddings").value_or(false);
  const std::optional<int64_t> bos = fields->Int("bos_token_id", 0, spec->vocab_size - 1);
  if (bos) spec->bos = TokenId{static_cast<int32_t>(*bos)};
  AddEos(fields, spec);
}

void ReadQuantization(ConfigFields* fields, std::optional<QuantizedConfig>* quantized) {
  namespace format = quantized_format;
  const nlohmann::json* object = fields->Object(format::kConfigKey);
  if (object == nullptr) return;
  ConfigFields inner(*object, StrCat(fields->file(), ": ", format::kConfigKey));
  if (inner.Text(format::kMethodNameKey) != format::kMethodName) {
    inner.Refuse(format::kMethodNameKey, StrCat("only \"", format::kMethodName,
                                                "\" is supported: take the original "
                                                "bf16, f16 or f32 checkpoint"));
  }
  const int64_t version = inner.RequiredInt(format::kLayoutVersionKey, 1, INT32_MAX);
  if (inner.ok() && version != quant::kLayoutVersion) {
    inner.Refuse(absl::FailedPreconditionError(
        StrCat(inner.file(), ": ", format::kLayoutVersionKey, ": the checkpoint has version ",
               version, ", this program reads version ", quant::kLayoutVersion,
               ": quantize the original again or use a matching program")));
  }
  QuantizedConfig config;
  config.method = inner.Text(format::kRecipeKey).value_or("");
  if (config.method.empty()) inner.Refuse(format::kRecipeKey, "must be a name");
  if (!inner.Has(format::kZeroPointsKey)) inner.Refuse(format::kZeroPointsKey, "is needed");
  config.zero_points = inner.Bool(format::kZeroPointsKey).value_or(false);
  config.embedding_bits = static_cast<int>(inner.RequiredInt(format::kEmbeddingBitsKey, 8, 32));
  if (inner.ok() && config.embedding_bits != 8 && config.embedding_bits != 16) {
    inner.Refuse(format::kEmbeddingBitsKey, "must be 8 or 16");
  }
  fields->Refuse(inner.status());
  *quantized = std::move(config);
}

void ReadGeneration(ConfigFields* fields, ModelConfig* config) {
  AddEos(fields, &config->spec);
  GenerationDefaults& defaults = config->generation;
  defaults.do_sample = fields->Bool("do_sample");
  if (const auto value = fields->Number("temperature", 0.0, 100.0)) {
    defaults.temperature = static_cast<float>(*value);
  }
  if (const auto value = fields->Number("top_p", 1e-6, 1.0)) {
    defaults.top_p = static_cast<float>(*value);
  }
  if (const auto value = fields->Int("top_k", 0, ConfigLimits::kVocab)) {
    defaults.top_k = static_cast<int32_t>(*value);
  }
  if (const auto value = fields->Number("repetition_penalty", 1e-6, 100.0)) {
    defaults.repetition_penalty = static_cast<float>(*value);
  }
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view config_text,
                                             std::optional<std::string_view> generation_text,
                                             std::string_view directory) {
  ModelConfig config;
  const std::string config_path = StrCat(directory, "/config.json");
  absl::StatusOr<nlohmann::json> json = ParseJsonObject(config_text, config_path);
  if (!json.ok()) return json.status();
  config.json = *std::move(json);
  ConfigFields fields(config.json, config_path);
  config.arch = ReadArch(&fields);
  if (config.arch == nullptr) return fields.status();
  ReadQuantization(&fields, &config.quantized);
  ReadSpec(*config.arch, &fields, &config.spec);
  if (!fields.ok()) return fields.status();

  if (generation_text) {
    const std::string path = StrCat(directory, "/generation_config.json");
    const absl::StatusOr<nlohmann::json> generation = ParseJsonObject(*generation_text, path);
    if (!generation.ok()) return generation.status();
    ConfigFields generation_fields(*generation, path);
    ReadGeneration(&generation_fields, &config);
    if (!generation_fields.ok()) return generation_fields.status();
  }
  return config;
}

absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& directory) {
  const absl::StatusOr<std::string> text =
      ReadSmallFile(StrCat(directory, "/config.json"), ConfigLimits::kFileBytes);
  if (!text.ok()) return text.status();
  const absl::StatusOr<std::string> generation =
      ReadSmallFile(StrCat(directory, "/generation_config.json"), ConfigLimits::kFileBytes);
  if (!generation.ok() && !absl::IsNotFound(generation.status())) return generation.status();
  std::optional<std::string_view> generation_text;
  if (generation.ok()) generation_text = *generation;
  return ParseModelConfig(*text, generation_text, directory);
}

}  // namespace fewbit
