// The decoder once more, in double and as plainly as can be: what forward and backward passes are
// checked against. Shares no code with what it checks.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "runtime/models/model.h"

namespace fewbit::testing {

using Doubles = std::vector<double>;

struct DoubleLayer {
  Doubles linears[kNumLinearRoles];         // [rows, cols]
  Doubles input_norm, post_attention_norm;  // [E]
  Doubles q_norm, k_norm;                   // [D] or empty
  Doubles q_bias, k_bias, v_bias;           // or empty
};

struct DoubleModel {
  explicit DoubleModel(const Model& model);

  // Calls fn(name, array) for everything that has a gradient in tuning: linear layers and norms.
  void ForEachTuned(const std::function<void(const std::string&, Doubles&)>& fn);

  ModelSpec spec;
  Doubles embedding, head;  // [V, E]
  Doubles final_norm;       // [E]
  std::vector<DoubleLayer> layers;
};

// hidden [windows * context, E] of token ids, windows one after the other.
Doubles Embed(const DoubleModel& model, std::span<const int32_t> ids);
// Through all layers, in place; windows start at position 0.
void RunLayers(const DoubleModel& model, int context, Doubles* hidden);
// [rows, V] of hidden [rows, E].
Doubles Logits(const DoubleModel& model, const Doubles& hidden);
// Sum over rows of KL(teacher || student), nats.
double SumOfDivergences(const Doubles& teacher_logits, const Doubles& student_logits, int vocab);

}  // namespace fewbit::testing
