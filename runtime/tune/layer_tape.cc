#include "runtime/tune/layer_tape.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/models/rope.h"
#include "runtime/tune/device_array.h"
#include "runtime/tune/linear_products.h"
#include "scheduler/check.h"

namespace fewbit::tune {
struct LayerTape::Impl {
  Impl(const ModelSpec& model_spec, Ops* device, int num_windows, int window_tokens,
       int64_t score_bytes)
      : spec(model_spec),
        ops(device),
        windows(num_windows),
        context(window_tokens),
        tokens(num_windows * window_tokens),
        group(model_spec.num_heads / model_spec.num_kv_heads),
        score_scale(1.0f / std::sqrt(static_cast<float>(model_spec.head_dim))) {
    const int64_t per_window =
        2 * static_cast<int64_t>(sizeof(float)) * spec.num_heads * context * context;
    windows_at_once = static_cast<int>(std::clamp<int64_t>(score_bytes / per_window, 1, windows));
  }

  absl::Status Allocate() {
    const int64_t e = spec.hidden_size;
    const int64_t q_size = spec.q_size();
    const int64_t kv_size = spec.kv_size();
    const int64_t scores_size =
        static_cast<int64_t>(windows_at_once) * spec.num_heads * context * context;
    int64_t largest_linear = 0;
    for (int role = 0; role < kNumLinearRoles; ++role) {
      const LinearShape shape = Shape(static_cast<LinearRole>(role));
      largest_linear = std::max(largest_linear, static_cast<int64_t>(shape.rows) * shape.cols);
    }
    const std::vector<std::pair<DeviceArray<float>*, int64_t>> sizes = {
        {&normed, tokens * e},
        {&inverse_rms, tokens},
        {&q, tokens * q_size},
        {&k, tokens * kv_size},
        {&v, tokens * kv_size},
        {&raw_q, spec.qk_norm ? tokens * q_size : 0},
        {&raw_k, spec.qk_norm ? tokens * kv_size : 0},
        {&q_inverse_rms, spec.qk_norm ? tokens * spec.num_heads : 0},
        {&k_inverse_rms, spec.qk_norm ? tokens * spec.num_kv_heads : 0},
        {&scores, scores_size},
        {&d_scores, scores_size},
        {&attended, tokens * q_size},
        {&middle, tokens * e},
        {&middle_normed, tokens * e},
        {&middle_inverse_rms, tokens},
        {&gate, tokens * spec.ffn_size},
        {&up, tokens * spec.ffn_size},
        {&activated, tokens * spec.ffn_size},
        {&d_normed, tokens * e},
        {&d_attended, tokens * q_size},
        {&d_q, tokens * q_size},
        {&d_k, tokens * kv_size},
        {&d_v, tokens * kv_size},
        {&d_weights, largest_linear}};
    int64_t total = 0;
    for (const auto& [array, size] : sizes) total += size * sizeof(float);
    for (const auto& [array, size] : sizes) {
      if (size == 0) continue;
      absl::StatusOr<DeviceArray<float>> made = DeviceArray<float>::Create(ops, size);
      if (!made.ok()) {
        return absl::Status(
            made.status().code(),
            absl::StrCat("activations of one layer for ", windows, " windows of ", context,
                         " tokens take ", total, " bytes: ", made.status().message()));
      }
      *array = *std::move(made);
    }
    return MakeRope();
  }

  absl::Status MakeRope() {
    const RopeTable table(spec.rope, context);
    const int pairs = table.pairs();
    std::vector<float> host_cosines(static_cast<size_t>(context) * pairs);
    std::vector<float> host_sines(host_cosines.size());
    for (int i = 0; i < context; ++i) {
      const size_t at = static_cast<size_t>(i) * pairs;
      table.Fill(i, &host_cosines[at], &host_sines[at]);
    }
    auto made_cosines = DeviceArray<float>::Upload(ops, host_cosines);
    if (!made_cosines.ok()) return made_cosines.status();
    auto made_sines = DeviceArray<float>::Upload(ops, host_sines);
    if (!made_sines.ok()) return made_sines.status();
    cosines = *std::move(made_cosines);
    sines = *std::move(made_sines);
    return absl::OkStatus();
  }

  LinearShape Shape(LinearRole role) const { return ShapeOf(spec, role); }

  static const float* Weights(const LayerParams& params, LinearRole role) {
    return params.linears[static_cast<int>(role)];
  }

  void Linear(const LayerParams& params, LinearRole role, const float* x, float beta, float* y) {
    ops->Multiply(
        LinearOutput(x, Weights(params, role), static_cast<int>(tokens), Shape(role), beta, y));
  }

  // Gives the gradient of `role`'s weights to `sink`, and that of its input to dx.
  void LinearBackward(const LayerParams& params, LinearRole role, const float* x, const float* dy,
                      float beta, float* dx, WeightGradientSink* sink) {
    const int m = static_cast<int>(tokens);
    ops->Multiply(LinearWeightGradient(dy, x, m, Shape(role), d_weights.data()));
    sink->OnWeightGradient(role, d_weights.data());
    ops->Multiply(LinearInputGradient(dy, Weights(params, role), m, Shape(role), beta, dx));
  }

  void Rope(int heads, bool inverse, float* x) {
    RopeArgs args;
    args.rows = static_cast<int>(tokens);
    args.context = context;
    args.heads = heads;
    args.head_dim = spec.head_dim;
    args.pairs = spec.rope.rotary_dim / 2;
    args.interleaved = spec.rope.interleaved;
    args.cosines = cosines.data();
    args.sines = sines.data();
    ops->Rope(args, inverse, x);
  }

  // Rows of q or k on their way to attention: bias, norm (which keeps `raw`), rope.
  void Turn(const float* bias, const float* norm, int heads, float* x, float* raw,
            float* inverse_rms_of_heads) {
    const int size = heads * spec.head_dim;
    if (bias != nullptr) ops->AddBias(bias, static_cast<int>(tokens), size, x);
    if (spec.qk_norm) {
      ops->Copy(x, tokens * size * sizeof(float), raw);
      ops->RmsNorm(raw, norm, spec.rms_eps, static_cast<int>(tokens) * heads, spec.head_dim, x,
                   inverse_rms_of_heads);
    }
    Rope(heads, false, x);
  }

  void TurnBackward(const float* norm, int heads, const float* raw,
                    const float* inverse_rms_of_heads, float* dx, float* d_norm) {
    Rope(heads, true, dx);
    if (!spec.qk_norm) return;
    ops->RmsNormBackward(raw, norm, inverse_rms_of_heads, dx, static_cast<int>(tokens) * heads,
                         spec.head_dim, false, dx, d_norm);
  }

  // A batch of products over windows [first, first + count) and kv heads, for the query heads of
  // number `member` in their groups. Operands: x is one of [tokens, heads, head_dim], s one of
  // [count, heads, context, context].
  struct Heads {
    int first = 0;
    int count = 0;
    int member = 0;
  };

  Product Batch(const Heads& heads, int m, int n, int k_size) const {
    Product p;
    p.m = m;
    p.n = n;
    p.k = k_size;
    p.outer = heads.count;
    p.inner = spec.num_kv_heads;
    return p;
  }
  Operand QuerySide(const Heads& heads, const float* x, bool transposed = false) const {
    const int64_t stride = spec.q_size();
    return {.data = x + heads.first * context * stride + heads.member * spec.head_dim,
            .row_stride = stride,
            .transposed = transposed,
            .outer_stride = context * stride,
            .inner_stride = static_cast<int64_t>(group) * spec.head_dim};
  }
  Operand KeySide(const Heads& heads, const float* x, bool transposed = false) const {
    const int64_t stride = spec.kv_size();
    return {.data = x + heads.first * context * stride,
            .row_stride = stride,
            .transposed = transposed,
            .outer_stride = context * stride,
            .inner_stride = spec.head_dim};
  }
  Operand Square(const Heads& heads, const float* s, bool transposed = false) const {
    const int64_t matrix = static_cast<int64_t>(context) * context;
    return {.data = s + heads.member * matrix,
            .row_stride = context,
            .transposed = transposed,
            .outer_stride = spec.num_heads * matrix,
            .inner_stride = group * matrix};
  }
  static void SetOutput(const Operand& place, Product* p) {
    p->c = const_cast<float*>(place.data);
    p->c_row_stride = place.row_stride;
    p->c_outer_stride = place.outer_stride;
    p->c_inner_stride = place.inner_stride;
  }

  int64_t Matrices(int count) const { return static_cast<int64_t>(count) * spec.num_heads; }

  // scores <- softmax(q k^T) of windows [first, first + count).
  void Probabilities(int first, int count) {
    for (int member = 0; member < group; ++member) {
      const Heads heads = {first, count, member};
      Product p = Batch(heads, context, context, spec.head_dim);
      p.a = QuerySide(heads, q.data());
      p.b = KeySide(heads, k.data(), true);
      p.alpha = score_scale;
      SetOutput(Square(heads, scores.data()), &p);
      ops->Multiply(p);
    }
    ops->CausalSoftmax(Matrices(count), context, spec.sliding_window, scores.data());
  }

  void Attend() {
    for (int first = 0; first < windows; first += windows_at_once) {
      const int count = std::min(windows_at_once, windows - first);
      Probabilities(first, count);
      for (int member = 0; member < group; ++member) {
        const Heads heads = {first, count, member};
        Product p = Batch(heads, context, spec.head_dim, context);
        p.a = Square(heads, scores.data());
        p.b = KeySide(heads, v.data());
        SetOutput(QuerySide(heads, attended.data()), &p);
        ops->Multiply(p);
      }
    }
  }

  // d_attended -> d_q, d_k, d_v.
  void AttendBackward() {
    for (int first = 0; first < windows; first += windows_at_once) {
      const int count = std::min(windows_at_once, windows - first);
      // Attend has left those of all windows if they fit.
      if (windows_at_once < windows) Probabilities(first, count);
      for (int member = 0; member < group; ++member) {
        const Heads heads = {first, count, member};
        Product p = Batch(heads, context, context, spec.head_dim);
        p.a = QuerySide(heads, d_attended.data());
        p.b = KeySide(heads, v.data(), true);
        SetOutput(Square(heads, d_scores.data()), &p);
        ops->Multiply(p);
        p = Batch(heads, context, spec.head_dim, context);
        p.a = Square(heads, scores.data(), true);
        p.b = QuerySide(heads, d_attended.data());
        p.beta = member == 0 ? 0.0f : 1.0f;
        SetOutput(KeySide(heads, d_v.data()), &p);
        ops->Multiply(p);
      }
      ops->CausalSoftmaxBackward(Matrices(count), context, spec.sliding_window, scores.data(),
                                 d_scores.data());
      for (int member = 0; member < group; ++member) {
        const Heads heads = {first, count, member};
        Product p = Batch(heads, context, spec.head_dim, context);
        p.alpha = score_scale;
        p.a = Square(heads, d_scores.data());
        p.b = KeySide(heads, k.data());
        SetOutput(QuerySide(heads, d_q.data()), &p);
        ops->Multiply(p);
        p.a = Square(heads, d_scores.data(), true);
        p.b = QuerySide(heads, q.data());
        p.beta = member == 0 ? 0.0f : 1.0f;
        SetOutput(KeySide(heads, d_k.data()), &p);
        ops->Multiply(p);
      }
    }
  }

  // hidden <- hidden + attention(norm(hidden)), leaving what AttentionBackward needs.
  void Attention(const LayerParams& params, float* hidden) {
    ops->RmsNorm(hidden, params.input_norm, spec.rms_eps, static_cast<int>(tokens),
                 spec.hidden_size, normed.data(), inverse_rms.data());
    Linear(params, LinearRole::kQ, normed.data(), 0.0f, q.data());
    Linear(params, LinearRole::kK, normed.data(), 0.0f, k.data());
    Linear(params, LinearRole::kV, normed.data(), 0.0f, v.data());
    Turn(params.q_bias, params.q_norm, spec.num_heads, q.data(), raw_q.data(),
         q_inverse_rms.data());
    Turn(params.k_bias, params.k_norm, spec.num_kv_heads, k.data(), raw_k.data(),
         k_inverse_rms.data());
    if (params.v_bias != nullptr) {
      ops->AddBias(params.v_bias, static_cast<int>(tokens), spec.kv_size(), v.data());
    }
    Attend();
    Linear(params, LinearRole::kO, attended.data(), 1.0f, hidden);
  }

  // What the MLP adds to `hidden`, up to its last product.
  void MlpInput(const LayerParams& params, const float* hidden) {
    ops->RmsNorm(hidden, params.post_attention_norm, spec.rms_eps, static_cast<int>(tokens),
                 spec.hidden_size, middle_normed.data(), middle_inverse_rms.data());
    Linear(params, LinearRole::kGate, middle_normed.data(), 0.0f, gate.data());
    Linear(params, LinearRole::kUp, middle_normed.data(), 0.0f, up.data());
    ops->SiluMul(gate.data(), up.data(), tokens * spec.ffn_size, activated.data());
  }

  // d_hidden: of the layer's output -> of the MLP's input.
  void MlpBackward(const LayerParams& params, float* d_hidden, const NormGradients& norms,
                   WeightGradientSink* sink) {
    const float* x = activated.data();
    // The product that reads it comes before the one that overwrites it.
    float* d_activated = activated.data();
    LinearBackward(params, LinearRole::kDown, x, d_hidden, 0.0f, d_activated, sink);
    ops->SiluMulBackward(d_activated, tokens * spec.ffn_size, gate.data(), up.data());
    LinearBackward(params, LinearRole::kGate, middle_normed.data(), gate.data(), 0.0f,
                   d_normed.data(), sink);
    LinearBackward(params, LinearRole::kUp, middle_normed.data(), up.data(), 1.0f, d_normed.data(),
                   sink);
    ops->RmsNormBackward(middle.data(), params.post_attention_norm, middle_inverse_rms.data(),
                         d_normed.data(), static_cast<int>(tokens), spec.hidden_size, true,
                         d_hidden, norms.post_attention_norm);
  }

  // d_hidden: of attention's output -> of its input, the layer's.
  void AttentionBackward(const LayerParams& params, const float* input, float* d_hidden,
                         const NormGradients& norms, WeightGradientSink* sink) {
    LinearBackward(params, LinearRole::kO, attended.data(), d_hidden, 0.0f, d_attended.data(),
                   sink);
    AttendBackward();
    TurnBackward(params.q_norm, spec.num_heads, raw_q.data(), q_inverse_rms.data(), d_q.data(),
                 norms.q_norm);
    TurnBackward(params.k_norm, spec.num_kv_heads, raw_k.data(), k_inverse_rms.data(), d_k.data(),
                 norms.k_norm);
    LinearBackward(params, LinearRole::kQ, normed.data(), d_q.data(), 0.0f, d_normed.data(), sink);
    LinearBackward(params, LinearRole::kK, normed.data(), d_k.data(), 1.0f, d_normed.data(), sink);
    LinearBackward(params, LinearRole::kV, normed.data(), d_v.data(), 1.0f, d_normed.data(), sink);
    ops->RmsNormBackward(input, params.input_norm, inverse_rms.data(), d_normed.data(),
                         static_cast<int>(tokens), spec.hidden_size, true, d_hidden,
                         norms.input_norm);
  }

  const ModelSpec& spec;
  Ops* const ops;
  const int windows;
  const int context;
  const int64_t tokens;
  const int group;  // query heads per kv head
  const float score_scale;
  int windows_at_once = 1;

  DeviceArray<float> cosines, sines;                     // [context, pairs]
  DeviceArray<float> normed, inverse_rms;                // [T, E], [T]
  DeviceArray<float> q, k, v;                            // [T, heads, D]
  DeviceArray<float> raw_q, raw_k;                       // before their norms; empty without
  DeviceArray<float> q_inverse_rms, k_inverse_rms;       // [T, heads]
  DeviceArray<float> scores, d_scores;                   // [windows at once, H, context, context]
  DeviceArray<float> attended;                           // [T, H * D]
  DeviceArray<float> middle;                             // [T, E] between attention and MLP
  DeviceArray<float> middle_normed, middle_inverse_rms;  // [T, E], [T]
  DeviceArray<float> gate, up, activated;                // [T, F]
  DeviceArray<float> d_normed;                           // [T, E]
  DeviceArray<float> d_attended, d_q, d_k, d_v;          // [T, heads, D]
  DeviceArray<float> d_weights;                          // of the largest linear layer
};

LayerTape::LayerTape(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
LayerTape::~LayerTape() = default;

absl::StatusOr<std::unique_ptr<LayerTape>> LayerTape::Create(const ModelSpec& spec, Ops* ops,
                                                             int windows, int context,
                                                             int64_t score_bytes) {
  FEWBIT_CHECK(windows > 0 && context > 0) << windows << " windows of " << context << " tokens";
  auto impl = std::make_unique<Impl>(spec, ops, windows, context, score_bytes);
  if (absl::Status status = impl->Allocate(); !status.ok()) return status;
  return std::unique_ptr<LayerTape>(new LayerTape(std::move(impl)));
}

void LayerTape::Forward(const LayerParams& params, float* hidden) {
  impl_->Attention(params, hidden);
  impl_->MlpInput(params, hidden);
  impl_->Linear(params, LinearRole::kDown, impl_->activated.data(), 1.0f, hidden);
}

void LayerTape::Backward(const LayerParams& params, const float* input, float* d_hidden,
                         const NormGradients& norms, WeightGradientSink* sink) {
  impl_->ops->Copy(input, impl_->middle.bytes(), impl_->middle.data());
  impl_->Attention(params, impl_->middle.data());
  impl_->MlpInput(params, impl_->middle.data());
  impl_->MlpBackward(params, d_hidden, norms, sink);
  impl_->AttentionBackward(params, input, d_hidden, norms, sink);
}

}  // namespace fewbit::tune
