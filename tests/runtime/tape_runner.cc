#include "tests/runtime/tape_runner.h"

#include <utility>

namespace fewbit::testing {
namespace {

using tune::DeviceArray;

std::vector<float> ToFloats(const Doubles& x) { return std::vector<float>(x.begin(), x.end()); }

// Downloads every gradient of a weight matrix under its name.
class KeepAll final : public tune::WeightGradientSink {
 public:
  KeepAll(const ModelSpec& spec, tune::Ops* ops, int layer, TapeResult* result)
      : spec_(spec), ops_(ops), prefix_(std::to_string(layer) + "."), result_(result) {}

  void OnWeightGradient(LinearRole role, const float* d_weights) override {
    const LinearShape shape = ShapeOf(spec_, role);
    std::vector<float> values(static_cast<size_t>(shape.rows) * shape.cols);
    ops_->Download(d_weights, values.size() * sizeof(float), values.data());
    const auto [at, is_new] = result_->gradients.emplace(prefix_ + LinearRoleName(role), values);
    // A second one would show as a gradient of the wrong size.
    if (!is_new) at->second.clear();
  }

 private:
  const ModelSpec& spec_;
  tune::Ops* const ops_;
  const std::string prefix_;
  TapeResult* const result_;
};

}  // namespace

TapeRunner::TapeRunner(const DoubleModel& student, tune::Ops* ops, int windows, int context,
                       int head_rows, int64_t score_bytes)
    : spec_(student.spec), ops_(ops), rows_(windows * context) {
  tape_ = tune::LayerTape::Create(spec_, ops, windows, context, score_bytes).value();
  loss_ = tune::HeadLoss::Create(spec_, ops, head_rows).value();
  for (size_t l = 0; l < student.layers.size(); ++l) {
    const DoubleLayer& from = student.layers[l];
    const std::string prefix = std::to_string(l) + ".";
    tune::LayerParams layer;
    for (int role = 0; role < kNumLinearRoles; ++role) {
      layer.linears[role] = Keep(from.linears[role]);
    }
    layer.input_norm = Keep(from.input_norm);
    layer.post_attention_norm = Keep(from.post_attention_norm);
    layer.q_norm = Keep(from.q_norm);
    layer.k_norm = Keep(from.k_norm);
    layer.q_bias = Keep(from.q_bias);
    layer.k_bias = Keep(from.k_bias);
    layer.v_bias = Keep(from.v_bias);
    layers_.push_back(layer);
    norms_.push_back({KeepGradient(prefix + "input_norm", from.input_norm.size()),
                      KeepGradient(prefix + "post_attention_norm", from.post_attention_norm.size()),
                      KeepGradient(prefix + "q_norm", from.q_norm.size()),
                      KeepGradient(prefix + "k_norm", from.k_norm.size())});
  }
  head_ = {Keep(student.final_norm), Keep(student.head)};
  d_final_norm_ = KeepGradient("final_norm", student.final_norm.size());
}

DeviceArray<float> TapeRunner::Zeros(size_t size) {
  return DeviceArray<float>::Upload(ops_, std::vector<float>(size)).value();
}

// Null for what a family does not have.
const float* TapeRunner::Keep(const Doubles& values) {
  if (values.empty()) return nullptr;
  kept_.push_back(DeviceArray<float>::Upload(ops_, ToFloats(values)).value());
  return kept_.back().data();
}

float* TapeRunner::KeepGradient(const std::string& name, size_t size) {
  if (size == 0) return nullptr;
  return gradients_.emplace(name, Zeros(size)).first->second.data();
}

TapeResult TapeRunner::Run(const Doubles& hidden, const DoubleModel& teacher,
                           const Doubles& teacher_hidden, float scale) {
  TapeResult result;
  for (auto& [name, array] : gradients_) ops_->Zero(array.data(), array.bytes());
  std::vector<DeviceArray<float>> inputs;
  inputs.push_back(DeviceArray<float>::Upload(ops_, ToFloats(hidden)).value());
  for (const tune::LayerParams& layer : layers_) {
    inputs.push_back(Zeros(hidden.size()));
    DeviceArray<float>& x = inputs.back();
    ops_->Copy(inputs[inputs.size() - 2].data(), x.bytes(), x.data());
    tape_->Forward(layer, x.data());
  }
  result.hidden = inputs.back().Download();

  const auto sums = DeviceArray<tune::LossSums>::Upload(ops_, {tune::LossSums{}}).value();
  const auto teacher_x = DeviceArray<float>::Upload(ops_, ToFloats(teacher_hidden)).value();
  const auto teacher_norm = DeviceArray<float>::Upload(ops_, ToFloats(teacher.final_norm)).value();
  const auto teacher_head = DeviceArray<float>::Upload(ops_, ToFloats(teacher.head)).value();
  const auto d_hidden = Zeros(hidden.size());
  loss_->Run({teacher_norm.data(), teacher_head.data()}, teacher_x.data(), head_,
             inputs.back().data(), rows_, scale, sums.data(), d_hidden.data(), d_final_norm_);
  for (size_t l = layers_.size(); l-- > 0;) {
    KeepAll sink(spec_, ops_, static_cast<int>(l), &result);
    tape_->Backward(layers_[l], inputs[l].data(), d_hidden.data(), norms_[l], &sink);
  }
  result.sums = sums.Download()[0];
  result.d_hidden = d_hidden.Download();
  for (const auto& [name, array] : gradients_) result.gradients[name] = array.Download();
  return result;
}

}  // namespace fewbit::testing
