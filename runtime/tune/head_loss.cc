#include <algorithm>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/tune/device_array.h"
#include "runtime/tune/layer_tape.h"
#include "runtime/tune/linear_products.h"
#include "scheduler/check.h"

namespace fewbit::tune {

struct HeadLoss::Impl {
  Impl(const ModelSpec& model_spec, Ops* device, int rows)
      : spec(model_spec), ops(device), max_rows(rows) {}

  absl::Status Allocate() {
    const int64_t rows = max_rows;
    const std::vector<std::pair<DeviceArray<float>*, int64_t>> sizes = {
        {&normed, rows * spec.hidden_size},
        {&inverse_rms, rows},
        {&d_normed, rows * spec.hidden_size},
        {&teacher_logits, rows * spec.vocab_size},
        {&student_logits, rows * spec.vocab_size}};
    for (const auto& [array, size] : sizes) {
      absl::StatusOr<DeviceArray<float>> made = DeviceArray<float>::Create(ops, size);
      if (!made.ok()) {
        return absl::Status(made.status().code(),
                            absl::StrCat("logits of ", max_rows, " rows of ", spec.vocab_size,
                                         " tokens: ", made.status().message()));
      }
      *array = *std::move(made);
    }
    return absl::OkStatus();
  }

  LinearShape shape() const { return {spec.vocab_size, spec.hidden_size}; }

  void Logits(const HeadParams& params, const float* hidden, int rows, float* logits) {
    ops->RmsNorm(hidden, params.final_norm, spec.rms_eps, rows, spec.hidden_size, normed.data(),
                 inverse_rms.data());
    ops->Multiply(LinearOutput(normed.data(), params.head, rows, shape(), 0.0f, logits));
  }

  const ModelSpec& spec;
  Ops* const ops;
  const int max_rows;
  DeviceArray<float> normed, inverse_rms, d_normed;   // [rows, E], [rows], [rows, E]
  DeviceArray<float> teacher_logits, student_logits;  // [rows, V]
};

HeadLoss::HeadLoss(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HeadLoss::~HeadLoss() = default;

absl::StatusOr<std::unique_ptr<HeadLoss>> HeadLoss::Create(const ModelSpec& spec, Ops* ops,
                                                           int max_rows) {
  FEWBIT_CHECK(max_rows > 0);
  auto impl = std::make_unique<Impl>(spec, ops, max_rows);
  if (absl::Status status = impl->Allocate(); !status.ok()) return status;
  return std::unique_ptr<HeadLoss>(new HeadLoss(std::move(impl)));
}

void HeadLoss::Run(const HeadParams& teacher, const float* teacher_hidden,
                   const HeadParams& student, const float* student_hidden, int rows, float scale,
                   LossSums* sums, float* d_hidden, float* d_final_norm) {
  Impl& m = *impl_;
  const int64_t e = m.spec.hidden_size;
  for (int begin = 0; begin < rows; begin += m.max_rows) {
    const int count = std::min(m.max_rows, rows - begin);
    const float* x = student_hidden + begin * e;
    float* logits = m.student_logits.data();
    m.Logits(teacher, teacher_hidden + begin * e, count, m.teacher_logits.data());
    m.Logits(student, x, count, logits);
    m.ops->KlDivergence(m.teacher_logits.data(), count, m.spec.vocab_size, scale,
                        d_hidden != nullptr, logits, sums);
    if (d_hidden == nullptr) continue;
    m.ops->Multiply(
        LinearInputGradient(logits, student.head, count, m.shape(), 0.0f, m.d_normed.data()));
    m.ops->RmsNormBackward(x, student.final_norm, m.inverse_rms.data(), m.d_normed.data(), count,
                           static_cast<int>(e), false, d_hidden + begin * e, d_final_norm);
  }
}

}  // namespace fewbit::tune
