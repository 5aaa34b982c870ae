#include "runtime/tune/student.h"

#include <algorithm>
#include <string>
#include <utility>

#include "runtime/tune/teacher.h"
#include "scheduler/check.h"

namespace fewbit::tune {
namespace {

constexpr float kMaxSubScale = quant::kMaxSubScale;
constexpr float kMaxHalf = 65504.0f;
// Gradients of single scales are far below Adam's customary 1e-8.
constexpr float kEpsilon = 1e-12f;
constexpr float kBeta1 = 0.9f;
constexpr float kBeta2 = 0.99f;

struct Range {
  float low;
  float high;
};

// What the file can hold.
Range RangeOf(TunedKind kind) {
  switch (kind) {
    case TunedKind::kSubScales:
      return {0.0f, kMaxSubScale};
    case TunedKind::kSecondOrder:
      return {0.0f, kMaxHalf / quant::kStoredSecondOrderFactor};
    case TunedKind::kOutliers:
      return {-kMaxHalf, kMaxHalf};
    case TunedKind::kNorms:
      break;
  }
  return {-3.4e38f, 3.4e38f};
}

size_t FloatBytes(int64_t count) { return static_cast<size_t>(count) * sizeof(float); }

}  // namespace

struct Student::Slot {
  DeviceArray<uint8_t> fixed;
  DeviceArray<float> values, gradients, first, second, references;
};

struct Student::HostLayer {
  TunedLayer layer;  // values as they are now
  std::vector<float> first, second;
};

Student::Student(Ops* ops, bool stream) : ops_(ops), stream_(stream) {}
Student::~Student() = default;

absl::StatusOr<Student::Slot> Student::MakeSlot(int64_t fixed_bytes, int64_t values) const {
  Slot slot;
  if (fixed_bytes > 0) {
    absl::StatusOr<DeviceArray<uint8_t>> fixed = DeviceArray<uint8_t>::Create(ops_, fixed_bytes);
    if (!fixed.ok()) return fixed.status();
    slot.fixed = *std::move(fixed);
  }
  for (DeviceArray<float> Slot::*array :
       {&Slot::values, &Slot::gradients, &Slot::first, &Slot::second, &Slot::references}) {
    absl::StatusOr<DeviceArray<float>> floats = DeviceArray<float>::Create(ops_, values);
    if (!floats.ok()) return floats.status();
    slot.*array = *std::move(floats);
  }
  return slot;
}

absl::Status Student::AddLayer(TunedLayer layer) {
  layouts_.push_back(layer.layout);
  HostLayer host;
  host.layer = std::move(layer);
  if (stream_ && host.layer.layout.fixed_bytes > 0) {
    host.first.resize(host.layer.values.size());
    host.second.resize(host.layer.values.size());
    hosts_.push_back(std::move(host));
    slots_.emplace_back();
    return absl::OkStatus();
  }
  absl::StatusOr<Slot> slot = MakeSlot(host.layer.layout.fixed_bytes, host.layer.layout.num_values);
  if (!slot.ok()) return slot.status();
  const size_t bytes = FloatBytes(host.layer.layout.num_values);
  if (!host.layer.fixed.empty()) {
    ops_->Upload(host.layer.fixed.data(), host.layer.fixed.size(), slot->fixed.data());
  }
  ops_->Upload(host.layer.values.data(), bytes, slot->values.data());
  ops_->Upload(host.layer.references.data(), bytes, slot->references.data());
  ops_->Zero(slot->first.data(), bytes);
  ops_->Zero(slot->second.data(), bytes);
  slots_.push_back(*std::move(slot));
  return absl::OkStatus();
}

absl::Status Student::MakeSharedSlot() {
  int64_t fixed = 0, values = 0;
  for (const TunedLayout& layout : layouts_) {
    fixed = std::max(fixed, layout.fixed_bytes);
    values = std::max(values, layout.num_values);
  }
  absl::StatusOr<Slot> slot = MakeSlot(fixed, values);
  if (!slot.ok()) return slot.status();
  shared_ = std::make_unique<Slot>(*std::move(slot));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Student>> Student::Create(const ModelSource& source, Ops* ops,
                                                         bool stream) {
  std::unique_ptr<Student> student(new Student(ops, stream));
  for (int l = 0; l < source.spec.num_layers; ++l) {
    absl::StatusOr<TunedLayer> layer = ReadTunedLayer(source, l);
    if (!layer.ok()) return layer.status();
    absl::Status status = student->AddLayer(*std::move(layer));
    if (!status.ok()) return status;
  }
  absl::Status status = student->AddLayer(TunedEnd(source));
  if (status.ok() && stream) status = student->MakeSharedSlot();
  if (!status.ok()) return status;
  absl::StatusOr<DeviceArray<float>> floats = UploadFloats(source.head, ops);
  if (!floats.ok()) return floats.status();
  student->head_ = *std::move(floats);
  return student;
}

int64_t Student::num_tuned(TunedKind kind) const {
  int64_t count = 0;
  for (const TunedLayout& layout : layouts_) {
    for (const TunedArray& array : layout.arrays) count += array.kind == kind ? array.count : 0;
  }
  return count;
}

Student::Slot& Student::Bring(int layer) {
  if (!shared(layer)) return slots_[layer];
  if (in_shared_ == layer) return *shared_;
  const HostLayer& host = hosts_[layer];
  const size_t bytes = host.layer.values.size() * sizeof(float);
  ops_->Upload(host.layer.fixed.data(), host.layer.fixed.size(), shared_->fixed.data());
  ops_->Upload(host.layer.values.data(), bytes, shared_->values.data());
  in_shared_ = layer;
  return *shared_;
}

LayerParams Student::Materialize(int layer, const WeightScratch& scratch) {
  FEWBIT_CHECK(layer + 1 < num_layers()) << layer;
  const Slot& slot = Bring(layer);
  const TunedLayout& layout = layouts_[layer];
  LayerParams params;
  for (int r = 0; r < kNumLinearRoles; ++r) {
    ops_->Weights(ScaledMatrixAt(layout.linears[r], slot.fixed.data(), slot.values.data()),
                  scratch[r]);
    params.linears[r] = scratch[r];
  }
  const auto norm = [&](const TunedArray& array) {
    return array.count == 0 ? nullptr : slot.values.data() + array.offset;
  };
  params.input_norm = norm(layout.input_norm);
  params.post_attention_norm = norm(layout.post_attention_norm);
  params.q_norm = norm(layout.q_norm);
  params.k_norm = norm(layout.k_norm);
  const auto bias = [&](int64_t offset) {
    return offset < 0 ? nullptr : reinterpret_cast<const float*>(slot.fixed.data() + offset);
  };
  params.q_bias = bias(layout.q_bias);
  params.k_bias = bias(layout.k_bias);
  params.v_bias = bias(layout.v_bias);
  return params;
}

HeadParams Student::head() {
  return {slots_.back().values.data() + layouts_.back().input_norm.offset, head_.data()};
}

void Student::BeginGradients(int layer) {
  Slot& slot = Bring(layer);
  const size_t bytes = FloatBytes(layouts_[layer].num_values);
  ops_->Zero(slot.gradients.data(), bytes);
  if (!shared(layer)) return;
  const HostLayer& host = hosts_[layer];
  ops_->Upload(host.first.data(), bytes, slot.first.data());
  ops_->Upload(host.second.data(), bytes, slot.second.data());
  ops_->Upload(host.layer.references.data(), bytes, slot.references.data());
}

NormGradients Student::norm_gradients(int layer) {
  const Slot& slot = Bring(layer);
  const TunedLayout& layout = layouts_[layer];
  const auto at = [&](const TunedArray& array) {
    return array.count == 0 ? nullptr : slot.gradients.data() + array.offset;
  };
  return {at(layout.input_norm), at(layout.post_attention_norm), at(layout.q_norm),
          at(layout.k_norm)};
}

float* Student::final_norm_gradient() {
  return slots_.back().gradients.data() + layouts_.back().input_norm.offset;
}

void Student::AddWeightGradient(int layer, LinearRole role, const float* d_weights) {
  const Slot& slot = Bring(layer);
  const TunedLayout::Linear& linear = layouts_[layer].linears[static_cast<int>(role)];
  ops_->WeightGradients(
      ScaledMatrixAt(linear, slot.fixed.data(), slot.values.data()), d_weights,
      {slot.gradients.data() + linear.sub_scales, slot.gradients.data() + linear.second_order,
       slot.gradients.data() + linear.outliers});
}

void Student::Update(int layer, const StepRates& rates) {
  Slot& slot = Bring(layer);
  for (const TunedArray& array : layouts_[layer].arrays) {
    const double rate = rates.of[static_cast<int>(array.kind)];
    if (rate == 0.0) continue;
    const Range range = RangeOf(array.kind);
    ops_->Adam({.count = array.count,
                .values = slot.values.data() + array.offset,
                .gradients = slot.gradients.data() + array.offset,
                .first_moments = slot.first.data() + array.offset,
                .second_moments = slot.second.data() + array.offset,
                .reference = array.kind == TunedKind::kSubScales
                                 ? nullptr
                                 : slot.references.data() + array.offset,
                .learning_rate = static_cast<float>(rate),
                .beta1 = kBeta1,
                .beta2 = kBeta2,
                .epsilon = kEpsilon,
                .step = rates.step,
                .min_value = range.low,
                .max_value = range.high});
  }
  if (!shared(layer)) return;
  HostLayer& host = hosts_[layer];
  const size_t bytes = host.layer.values.size() * sizeof(float);
  ops_->Download(slot.values.data(), bytes, host.layer.values.data());
  ops_->Download(slot.first.data(), bytes, host.first.data());
  ops_->Download(slot.second.data(), bytes, host.second.data());
}

std::vector<float> Student::Values(int layer) {
  if (shared(layer)) return hosts_[layer].layer.values;
  std::vector<float> values(static_cast<size_t>(layouts_[layer].num_values));
  ops_->Download(slots_[layer].values.data(), values.size() * sizeof(float), values.data());
  return values;
}

LayerState Student::State(int layer) {
  if (shared(layer)) {
    const HostLayer& host = hosts_[layer];
    return {host.layer.values, host.first, host.second};
  }
  LayerState state;
  state.values = Values(layer);
  state.first_moments.resize(state.values.size());
  state.second_moments.resize(state.values.size());
  const size_t bytes = state.values.size() * sizeof(float);
  ops_->Download(slots_[layer].first.data(), bytes, state.first_moments.data());
  ops_->Download(slots_[layer].second.data(), bytes, state.second_moments.data());
  return state;
}

void Student::SetValues(int layer, std::span<const float> values) {
  FEWBIT_CHECK_EQ(static_cast<int64_t>(values.size()), layouts_[layer].num_values);
  if (shared(layer)) {
    hosts_[layer].layer.values.assign(values.begin(), values.end());
    if (in_shared_ == layer) in_shared_ = -1;
    return;
  }
  ops_->Upload(values.data(), values.size_bytes(), slots_[layer].values.data());
}

void Student::SetState(int layer, const LayerState& state) {
  SetValues(layer, state.values);
  FEWBIT_CHECK_EQ(state.first_moments.size(), state.values.size());
  FEWBIT_CHECK_EQ(state.second_moments.size(), state.values.size());
  if (shared(layer)) {
    hosts_[layer].first = state.first_moments;
    hosts_[layer].second = state.second_moments;
    return;
  }
  const size_t bytes = state.values.size() * sizeof(float);
  ops_->Upload(state.first_moments.data(), bytes, slots_[layer].first.data());
  ops_->Upload(state.second_moments.data(), bytes, slots_[layer].second.data());
}

}  // namespace fewbit::tune
