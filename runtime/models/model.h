// A model's weights, bound to a ModelSpec: matrices point into mapped files, vectors (norms,
// biases) are float copies.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/matrix.h"
#include "runtime/models/model_spec.h"

namespace fewbit {

// The seven linear layers of a decoder layer. Fused checkpoints (GLM, ChatGLM) are split into these
// by rows at load.
enum class LinearRole : uint8_t { kQ, kK, kV, kO, kGate, kUp, kDown };
inline constexpr int kNumLinearRoles = 7;
const char* LinearRoleName(LinearRole role);  // "q_proj", ...

struct LinearShape {
  int32_t rows = 0;  // output channels
  int32_t cols = 0;  // input channels
  bool operator==(const LinearShape&) const = default;
};
LinearShape ShapeOf(const ModelSpec& spec, LinearRole role);

struct LayerWeights {
  Matrix linears[kNumLinearRoles];
  std::vector<float> input_norm, post_attention_norm;  // [E]
  std::vector<float> q_norm, k_norm;                   // [D], empty without qk_norm
  std::vector<float> q_bias, k_bias, v_bias;           // [H*D] [K*D] [K*D], empty without qkv_bias

  const Matrix& operator[](LinearRole role) const { return linears[static_cast<int>(role)]; }
  Matrix& operator[](LinearRole role) { return linears[static_cast<int>(role)]; }
};

// How a quantized checkpoint was made and what it weighs; `quantized` is false for a bf16/f16/f32
// one.
struct QuantizationInfo {
  bool quantized = false;
  std::string method;         // "published", "default"
  double average_bits = 0.0;  // over the linear layers, from bytes
  double embedding_bits = 16.0;
};

// Sampling defaults of generation_config.json; empty where the file does not say. Values are
// checked: temperature and repetition penalty finite and not negative, top_p in (0, 1], top_k >= 0
// (0: off).
struct GenerationDefaults {
  std::optional<bool> do_sample;
  std::optional<float> temperature;
  std::optional<float> top_p;
  std::optional<int32_t> top_k;
  std::optional<float> repetition_penalty;
};

// Thread rule: immutable once loaded.
struct Model {
  ModelSpec spec;
  QuantizationInfo quantization;
  GenerationDefaults generation;
  Matrix embedding;                  // [V, E]
  Matrix head;                       // [V, E]; the embedding itself when tied
  std::vector<float> final_norm;     // [E]
  std::vector<LayerWeights> layers;  // [L]; empty in a model opened for streaming
  int64_t weight_bytes = 0;
  std::vector<std::shared_ptr<const void>> mappings;  // keeps the files mapped
};

// Opens a Hugging Face directory, quantized by fewbit or not. Errors name file, tensor and reason:
// NOT_FOUND, PERMISSION_DENIED, INVALID_ARGUMENT (malformed or unsupported), FAILED_PRECONDITION
// (layout version), DATA_LOSS (truncated).
absl::StatusOr<std::unique_ptr<Model>> LoadModel(const std::string& directory);

}  // namespace fewbit
