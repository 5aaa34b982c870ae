#include "tests/fuzz/fuzz_entries.h"

#include <cmath>
#include <optional>
#include <string_view>

#include "runtime/weights/config_reader.h"
#include "runtime/weights/safetensors.h"
#include "scheduler/check.h"

namespace fewbit {
namespace {

void CheckStatus(const absl::Status& status, std::string_view file) {
  const std::string_view message(status.message().data(), status.message().size());
  FEWBIT_CHECK(message.find(file) != message.npos) << message;
  FEWBIT_CHECK(message.size() < 4096) << message.size();
  for (const char c : message) FEWBIT_CHECK(c >= ' ' && c <= '~') << static_cast<int>(c);
}

}  // namespace

void FuzzSafetensors(std::span<const uint8_t> input) {
  const auto parsed = ParseSafetensors(input, "input.safetensors");
  if (!parsed.ok()) {
    CheckStatus(parsed.status(), "input.safetensors");
    return;
  }
  // Accepted: the tensors are exactly the bytes behind the header.
  FEWBIT_CHECK(parsed->data_offset >= 8 && parsed->data_offset <= input.size());
  size_t total = 0;
  for (const auto& [name, tensor] : parsed->tensors) {
    size_t bytes = static_cast<size_t>(TensorTypeBytes(tensor.type));
    for (const int64_t dimension : tensor.shape) {
      FEWBIT_CHECK(dimension >= 0);
      bytes *= static_cast<size_t>(dimension);
    }
    FEWBIT_CHECK_EQ(bytes, tensor.data.size());
    if (bytes > 0) {
      FEWBIT_CHECK(tensor.data.data() >= input.data() + parsed->data_offset);
      FEWBIT_CHECK(tensor.data.data() + bytes <= input.data() + input.size());
    }
    total += bytes;
  }
  FEWBIT_CHECK_EQ(total, input.size() - parsed->data_offset);
}

void FuzzModelConfig(std::span<const uint8_t> input) {
  const std::string_view text(reinterpret_cast<const char*>(input.data()), input.size());
  const size_t split = text.find('\0');
  std::optional<std::string_view> generation;
  if (split != text.npos) generation = text.substr(split + 1);
  const auto config = ParseModelConfig(text.substr(0, split), generation, "dir");
  if (!config.ok()) {
    CheckStatus(config.status(), "dir/");
    return;
  }
  // Accepted: every number is one that the decoder may divide by, allocate for and index with.
  const ModelSpec& spec = config->spec;
  FEWBIT_CHECK(config->arch != nullptr && spec.family == config->arch->family);
  FEWBIT_CHECK(spec.num_layers > 0 && spec.num_layers <= ConfigLimits::kLayers);
  FEWBIT_CHECK(spec.hidden_size > 0 && spec.hidden_size <= ConfigLimits::kHidden);
  FEWBIT_CHECK(spec.ffn_size > 0 && spec.ffn_size <= ConfigLimits::kFfn);
  FEWBIT_CHECK(spec.num_kv_heads > 0 && spec.num_heads % spec.num_kv_heads == 0);
  FEWBIT_CHECK(spec.num_heads <= ConfigLimits::kHeads);
  FEWBIT_CHECK(spec.head_dim > 0 && spec.head_dim % 2 == 0);
  FEWBIT_CHECK(spec.head_dim <= ConfigLimits::kHeadDim);
  FEWBIT_CHECK(spec.vocab_size > 0 && spec.vocab_size <= ConfigLimits::kVocab);
  FEWBIT_CHECK(spec.max_context > 0 && spec.max_context <= ConfigLimits::kContext);
  FEWBIT_CHECK(spec.rms_eps > 0.0f && spec.rms_eps <= 1.0f);
  FEWBIT_CHECK(spec.sliding_window >= 0);
  const RopeSpec& rope = spec.rope;
  FEWBIT_CHECK(rope.rotary_dim > 0 && rope.rotary_dim % 2 == 0 && rope.rotary_dim <= spec.head_dim);
  FEWBIT_CHECK(std::isfinite(rope.theta) && rope.theta > 0.0);
  FEWBIT_CHECK(rope.factor >= 1.0 && std::isfinite(rope.factor));
  FEWBIT_CHECK(rope.scaling != RopeScaling::kLlama3 ||
               (rope.original_max_positions > 0 && rope.high_freq_factor > rope.low_freq_factor));
  FEWBIT_CHECK(ToInt(spec.bos) >= -1 && ToInt(spec.bos) < spec.vocab_size);
  for (const TokenId id : spec.eos) {
    FEWBIT_CHECK(ToInt(id) >= 0 && ToInt(id) < spec.vocab_size);
  }
  const GenerationDefaults& defaults = config->generation;
  FEWBIT_CHECK(defaults.temperature.value_or(0.0f) >= 0.0f);
  FEWBIT_CHECK(defaults.top_p.value_or(1.0f) > 0.0f && defaults.top_p.value_or(1.0f) <= 1.0f);
  FEWBIT_CHECK(defaults.top_k.value_or(0) >= 0);
  FEWBIT_CHECK(defaults.repetition_penalty.value_or(1.0f) > 0.0f);
}

}  // namespace fewbit
