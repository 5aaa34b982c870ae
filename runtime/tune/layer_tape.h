// Forward and backward of one decoder layer, and of the last norm, the head and the loss, on any
// device. Nothing here knows a family: ModelSpec's flags drive it, as they do the decoder.
//
// Only a layer's input is kept between forward and backward; backward runs the layer again. Windows
// are independent sequences of `context` tokens from position 0.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "runtime/models/model.h"
#include "runtime/tune/ops.h"

namespace fewbit::tune {

// A layer's weights as float32 on the device; what a family does not have is null.
struct LayerParams {
  const float* linears[kNumLinearRoles] = {};  // [rows, cols] of ShapeOf
  const float* input_norm = nullptr;           // [E]
  const float* post_attention_norm = nullptr;  // [E]
  const float* q_norm = nullptr;               // [D]
  const float* k_norm = nullptr;               // [D]
  const float* q_bias = nullptr;
  const float* k_bias = nullptr;
  const float* v_bias = nullptr;
};

// Where the gradients of a layer's norms are added to.
struct NormGradients {
  float* input_norm = nullptr;
  float* post_attention_norm = nullptr;
  float* q_norm = nullptr;
  float* k_norm = nullptr;
};

// Takes the gradient of a linear layer's weights, [rows, cols] on the device, which is scratch that
// the next one overwrites.
class WeightGradientSink {
 public:
  virtual ~WeightGradientSink() = default;
  virtual void OnWeightGradient(LinearRole role, const float* d_weights) = 0;
};

// Scratch for one layer at a time over `windows` windows. Thread rule: one caller at a time.
class LayerTape {
 public:
  static constexpr int64_t kScoreBytes = int64_t{256} << 20;

  // `spec` and `ops` outlive the tape. Attention's scores and their gradients are made for as many
  // windows at once as fit in `score_bytes`, and for at least one. RESOURCE_EXHAUSTED: no memory
  // for the activations of one layer; the message says how many bytes for how many windows of how
  // many tokens.
  static absl::StatusOr<std::unique_ptr<LayerTape>> Create(const ModelSpec& spec, Ops* ops,
                                                           int windows, int context,
                                                           int64_t score_bytes = kScoreBytes);
  ~LayerTape();

  // hidden [windows * context, E] in place.
  void Forward(const LayerParams& params, float* hidden);

  // `input` as Forward got it; d_hidden: gradient of the layer's output, replaced by that of its
  // input. Every linear role is given to `sink` once.
  void Backward(const LayerParams& params, const float* input, float* d_hidden,
                const NormGradients& norms, WeightGradientSink* sink);

 private:
  struct Impl;
  explicit LayerTape(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// One of the two models' ends.
struct HeadParams {
  const float* final_norm = nullptr;  // [E]
  const float* head = nullptr;        // [V, E]
};

// Thread rule: one caller at a time.
class HeadLoss {
 public:
  // Logits are made for at most `max_rows` rows at once, for teacher and student.
  static absl::StatusOr<std::unique_ptr<HeadLoss>> Create(const ModelSpec& spec, Ops* ops,
                                                          int max_rows);
  ~HeadLoss();

  // KL(teacher || student) over the rows of both hidden states [rows, E], added to *sums (on the
  // device). When `d_hidden` is not null: the gradient of scale * (sum of KL) with respect to the
  // student's hidden states replaces *d_hidden [rows, E], and that of its final norm is added to
  // d_final_norm [E].
  void Run(const HeadParams& teacher, const float* teacher_hidden, const HeadParams& student,
           const float* student_hidden, int rows, float scale, LossSums* sums, float* d_hidden,
           float* d_final_norm);

 private:
  struct Impl;
  explicit HeadLoss(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace fewbit::tune
