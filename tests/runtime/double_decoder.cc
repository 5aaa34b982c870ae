#include "tests/runtime/double_decoder.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/linear.h"
#include "runtime/models/rope.h"

namespace fewbit::testing {
namespace {

Doubles ToDoubles(const std::vector<float>& x) { return Doubles(x.begin(), x.end()); }

Doubles ToDoubles(const Matrix& w) {
  Doubles out;
  std::vector<float> row(MatrixCols(w));
  for (int r = 0; r < MatrixRows(w); ++r) {
    cpu::DequantizeRow(w, r, row.data());
    out.insert(out.end(), row.begin(), row.end());
  }
  return out;
}

// y [rows] = w [rows, cols] x
void Apply(const Doubles& w, const double* x, int rows, int cols, double* y) {
  for (int r = 0; r < rows; ++r) {
    double sums[4] = {};
    const double* row = &w[static_cast<size_t>(r) * cols];
    for (int c = 0; c < cols; ++c) sums[c % 4] += row[c] * x[c];
    y[r] = sums[0] + sums[1] + sums[2] + sums[3];
  }
}

void Norm(const Doubles& weight, double eps, const double* x, double* y) {
  double squares = 0.0;
  for (size_t i = 0; i < weight.size(); ++i) squares += x[i] * x[i];
  const double scale = 1.0 / std::sqrt(squares / weight.size() + eps);
  for (size_t i = 0; i < weight.size(); ++i) y[i] = x[i] * scale * weight[i];
}

// One head of q or k at a position: norm, then rope.
void Place(const ModelSpec& spec, const Doubles& norm, int position, double* head) {
  if (!norm.empty()) Norm(norm, spec.rms_eps, head, head);
  const std::vector<double> frequencies = RopeFrequencies(spec.rope);
  const int pairs = static_cast<int>(frequencies.size());
  for (int i = 0; i < pairs; ++i) {
    double& a = head[spec.rope.interleaved ? 2 * i : i];
    double& b = head[spec.rope.interleaved ? 2 * i + 1 : i + pairs];
    const double c = std::cos(position * frequencies[i]), s = std::sin(position * frequencies[i]);
    const double turned = a * c - b * s;
    b = a * s + b * c;
    a = turned;
  }
}

// One window's q, k and v rows of all heads.
struct Window {
  Doubles q, k, v;
};

Window Project(const ModelSpec& spec, const DoubleLayer& layer, const double* hidden, int context) {
  const int e = spec.hidden_size, d = spec.head_dim;
  Window w = {Doubles(static_cast<size_t>(context) * spec.q_size()),
              Doubles(static_cast<size_t>(context) * spec.kv_size()),
              Doubles(static_cast<size_t>(context) * spec.kv_size())};
  Doubles normed(e);
  for (int t = 0; t < context; ++t) {
    Norm(layer.input_norm, spec.rms_eps, hidden + t * e, normed.data());
    double* rows[] = {&w.q[t * spec.q_size()], &w.k[t * spec.kv_size()], &w.v[t * spec.kv_size()]};
    const Doubles* biases[] = {&layer.q_bias, &layer.k_bias, &layer.v_bias};
    for (int i = 0; i < 3; ++i) {
      const int size = i == 0 ? spec.q_size() : spec.kv_size();
      Apply(layer.linears[i], normed.data(), size, e, rows[i]);
      for (size_t j = 0; j < biases[i]->size(); ++j) rows[i][j] += (*biases[i])[j];
    }
    for (int h = 0; h < spec.num_heads; ++h) Place(spec, layer.q_norm, t, rows[0] + h * d);
    for (int h = 0; h < spec.num_kv_heads; ++h) Place(spec, layer.k_norm, t, rows[1] + h * d);
  }
  return w;
}

// What query t of head h gathers.
void Attend(const ModelSpec& spec, const Window& w, int t, int h, double* out) {
  const int d = spec.head_dim, kv = h / (spec.num_heads / spec.num_kv_heads);
  const int first = spec.sliding_window == 0 ? 0 : std::max(0, t - spec.sliding_window + 1);
  Doubles scores;
  for (int j = first; j <= t; ++j) {
    double score = 0.0;
    for (int i = 0; i < d; ++i) {
      score += w.q[t * spec.q_size() + h * d + i] * w.k[j * spec.kv_size() + kv * d + i];
    }
    scores.push_back(score / std::sqrt(static_cast<double>(d)));
  }
  const double max = *std::max_element(scores.begin(), scores.end());
  double total = 0.0;
  for (double& s : scores) total += s = std::exp(s - max);
  std::fill(out, out + d, 0.0);
  for (int j = first; j <= t; ++j) {
    for (int i = 0; i < d; ++i) {
      out[i] += scores[j - first] / total * w.v[j * spec.kv_size() + kv * d + i];
    }
  }
}

void RunLayer(const ModelSpec& spec, const DoubleLayer& layer, int context, double* hidden) {
  const int e = spec.hidden_size, f = spec.ffn_size;
  const auto linear = [&](LinearRole role) -> const Doubles& {
    return layer.linears[static_cast<int>(role)];
  };
  const Window window = Project(spec, layer, hidden, context);
  Doubles attended(spec.q_size()), delta(e), normed(e), gate(f), up(f);
  for (int t = 0; t < context; ++t) {
    double* x = hidden + t * e;
    for (int h = 0; h < spec.num_heads; ++h) {
      Attend(spec, window, t, h, &attended[h * spec.head_dim]);
    }
    Apply(linear(LinearRole::kO), attended.data(), e, spec.q_size(), delta.data());
    for (int i = 0; i < e; ++i) x[i] += delta[i];
    Norm(layer.post_attention_norm, spec.rms_eps, x, normed.data());
    Apply(linear(LinearRole::kGate), normed.data(), f, e, gate.data());
    Apply(linear(LinearRole::kUp), normed.data(), f, e, up.data());
    for (int i = 0; i < f; ++i) gate[i] *= up[i] / (1.0 + std::exp(-gate[i]));
    Apply(linear(LinearRole::kDown), gate.data(), e, f, delta.data());
    for (int i = 0; i < e; ++i) x[i] += delta[i];
  }
}

double LogOfSum(const double* x, int n) {
  const double max = *std::max_element(x, x + n);
  double total = 0.0;
  for (int i = 0; i < n; ++i) total += std::exp(x[i] - max);
  return max + std::log(total);
}

}  // namespace

DoubleModel::DoubleModel(const Model& model)
    : spec(model.spec),
      embedding(ToDoubles(model.embedding)),
      head(ToDoubles(model.head)),
      final_norm(ToDoubles(model.final_norm)) {
  for (const LayerWeights& from : model.layers) {
    DoubleLayer layer;
    for (int role = 0; role < kNumLinearRoles; ++role) {
      layer.linears[role] = ToDoubles(from.linears[role]);
    }
    layer.input_norm = ToDoubles(from.input_norm);
    layer.post_attention_norm = ToDoubles(from.post_attention_norm);
    layer.q_norm = ToDoubles(from.q_norm);
    layer.k_norm = ToDoubles(from.k_norm);
    layer.q_bias = ToDoubles(from.q_bias);
    layer.k_bias = ToDoubles(from.k_bias);
    layer.v_bias = ToDoubles(from.v_bias);
    layers.push_back(std::move(layer));
  }
}

void DoubleModel::ForEachTuned(const std::function<void(const std::string&, Doubles&)>& fn) {
  for (size_t l = 0; l < layers.size(); ++l) {
    const std::string prefix = std::to_string(l) + ".";
    for (int role = 0; role < kNumLinearRoles; ++role) {
      fn(prefix + LinearRoleName(static_cast<LinearRole>(role)), layers[l].linears[role]);
    }
    fn(prefix + "input_norm", layers[l].input_norm);
    fn(prefix + "post_attention_norm", layers[l].post_attention_norm);
    if (spec.qk_norm) fn(prefix + "q_norm", layers[l].q_norm);
    if (spec.qk_norm) fn(prefix + "k_norm", layers[l].k_norm);
  }
  fn("final_norm", final_norm);
}

Doubles Embed(const DoubleModel& model, std::span<const int32_t> ids) {
  const size_t e = model.spec.hidden_size;
  Doubles hidden;
  for (const int32_t id : ids) {
    const auto row = model.embedding.begin() + id * e;
    hidden.insert(hidden.end(), row, row + e);
  }
  return hidden;
}

void RunLayers(const DoubleModel& model, int context, Doubles* hidden) {
  const size_t window = static_cast<size_t>(context) * model.spec.hidden_size;
  for (const DoubleLayer& layer : model.layers) {
    for (size_t at = 0; at < hidden->size(); at += window) {
      RunLayer(model.spec, layer, context, hidden->data() + at);
    }
  }
}

Doubles Logits(const DoubleModel& model, const Doubles& hidden) {
  const int e = model.spec.hidden_size, v = model.spec.vocab_size;
  const size_t rows = hidden.size() / e;
  Doubles logits(rows * v), normed(e);
  for (size_t r = 0; r < rows; ++r) {
    Norm(model.final_norm, model.spec.rms_eps, &hidden[r * e], normed.data());
    Apply(model.head, normed.data(), v, e, &logits[r * v]);
  }
  return logits;
}

double SumOfDivergences(const Doubles& teacher_logits, const Doubles& student_logits, int vocab) {
  double sum = 0.0;
  for (size_t at = 0; at < teacher_logits.size(); at += vocab) {
    const double* t = &teacher_logits[at];
    const double* s = &student_logits[at];
    const double t_norm = LogOfSum(t, vocab), s_norm = LogOfSum(s, vocab);
    for (int i = 0; i < vocab; ++i) {
      sum += std::exp(t[i] - t_norm) * (t[i] - t_norm - s[i] + s_norm);
    }
  }
  return sum;
}

}  // namespace fewbit::testing
