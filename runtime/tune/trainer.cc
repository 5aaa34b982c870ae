#include "runtime/tune/trainer.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/models/decoder.h"
#include "scheduler/check.h"

namespace fewbit::tune {
namespace {

// Activations of a layer stay in the caches of a processor better than in its memory.
constexpr int kCpuWindows = 2;
constexpr int64_t kLogitBytes = int64_t{1} << 30;
constexpr int64_t kCpuLogitBytes = int64_t{1} << 26;

bool OnCpu(const Ops& ops) { return absl::StartsWith(ops.device(), "cpu"); }

// Hands a layer's gradients to the student.
class ToStudent : public WeightGradientSink {
 public:
  ToStudent(Student* student, int layer) : student_(*student), layer_(layer) {}
  void OnWeightGradient(LinearRole role, const float* d_weights) override {
    student_.AddWeightGradient(layer_, role, d_weights);
  }

 private:
  Student& student_;
  const int layer_;
};

}  // namespace

Trainer::Trainer(const ModelSource& original, const ModelSource& quantized, const TuningText& text,
                 Ops* ops, const TrainerOptions& options)
    : original_(original),
      quantized_(quantized),
      text_(text),
      ops_(ops),
      options_(options),
      spec_(quantized.spec) {}

int64_t Trainer::Floats(int windows) const {
  return int64_t{windows} * options_.context * spec_.hidden_size;
}

absl::StatusOr<std::unique_ptr<Trainer>> Trainer::Create(const ModelSource& original,
                                                         const ModelSource& quantized,
                                                         const TuningText& text, Ops* ops,
                                                         const TrainerOptions& options) {
  std::unique_ptr<Trainer> trainer(new Trainer(original, quantized, text, ops, options));
  absl::Status status = trainer->Allocate();
  if (status.ok()) status = trainer->MakeTape();
  if (status.ok()) status = trainer->MakeTeacherOfHeldOut();
  if (!status.ok()) return status;
  return trainer;
}

absl::Status Trainer::Allocate() {
  absl::StatusOr<std::unique_ptr<Teacher>> teacher =
      Teacher::Create(original_, ops_, options_.stream);
  if (!teacher.ok()) return teacher.status();
  teacher_ = *std::move(teacher);
  absl::StatusOr<std::unique_ptr<Student>> student =
      Student::Create(quantized_, ops_, options_.stream);
  if (!student.ok()) return student.status();
  student_ = *std::move(student);
  absl::StatusOr<WeightScratch> scratch = WeightScratch::Create(spec_, ops_);
  if (!scratch.ok()) return scratch.status();
  scratch_ = *std::move(scratch);
  const struct {
    DeviceArray<float>* array;
    int64_t floats;
  } arrays[] = {{&boundaries_, (spec_.num_layers + 1) * Floats(options_.batch)},
                {&teacher_hidden_, Floats(options_.batch)},
                {&d_hidden_, Floats(options_.batch)},
                {&held_out_hidden_, Floats(text_.held_out())}};
  for (const auto& [array, floats] : arrays) {
    absl::StatusOr<DeviceArray<float>> made = DeviceArray<float>::Create(ops_, floats);
    if (!made.ok()) return made.status();
    *array = *std::move(made);
  }
  absl::StatusOr<DeviceArray<LossSums>> sums = DeviceArray<LossSums>::Create(ops_, 1);
  if (!sums.ok()) return sums.status();
  sums_ = *std::move(sums);
  return absl::OkStatus();
}

// Batches and the held-out windows are run in equal parts.
absl::Status Trainer::MakeTape() {
  const int64_t row_bytes = 2 * int64_t{spec_.vocab_size} * static_cast<int64_t>(sizeof(float));
  const int64_t logit_bytes = OnCpu(*ops_) ? kCpuLogitBytes : kLogitBytes;
  const int rows = static_cast<int>(
      std::clamp<int64_t>(logit_bytes / row_bytes, 1, options_.batch * options_.context));
  absl::StatusOr<std::unique_ptr<HeadLoss>> loss = HeadLoss::Create(spec_, ops_, rows);
  if (!loss.ok()) return loss.status();
  loss_ = *std::move(loss);
  const int together = std::gcd(options_.batch, text_.held_out());
  absl::Status status;
  for (int windows = together; windows >= 1; --windows) {
    if (together % windows != 0 || (OnCpu(*ops_) && windows > kCpuWindows)) continue;
    absl::StatusOr<std::unique_ptr<LayerTape>> tape =
        LayerTape::Create(spec_, ops_, windows, options_.context);
    status = tape.status();
    if (status.ok()) {
      tape_ = *std::move(tape);
      windows_at_once_ = windows;
    }
    if (!absl::IsResourceExhausted(status)) break;
  }
  return status;
}

void Trainer::Forward(const LayerParams& params, int windows, float* hidden) {
  for (int w = 0; w < windows; w += windows_at_once_) {
    tape_->Forward(params, hidden + Floats(w));
  }
}

void Trainer::RunTeacher(int windows, float* hidden) {
  for (int l = 0; l < spec_.num_layers; ++l) {
    Forward(teacher_->Materialize(l, scratch_), windows, hidden);
  }
}

// From boundary 0 on.
void Trainer::RunStudent(int windows) {
  for (int l = 0; l < spec_.num_layers; ++l) {
    ops_->Copy(Boundary(l), static_cast<size_t>(Floats(windows)) * sizeof(float), Boundary(l + 1));
    Forward(student_->Materialize(l, scratch_), windows, Boundary(l + 1));
  }
}

// Draws and embeds the batch of a step.
void Trainer::Prepare(int step) {
  const auto context = static_cast<size_t>(options_.context);
  tokens_.resize(options_.batch * context);
  for (int w = 0; w < options_.batch; ++w) {
    text_.Draw(step, w, std::span(tokens_).subspan(w * context, context));
  }
  Embed(original_.embedding, &teacher_embedded_);
  Embed(quantized_.embedding, &student_embedded_);
  prepared_step_ = step;
}

void Trainer::Embed(const Matrix& embedding, std::vector<float>* hidden) const {
  hidden->resize(tokens_.size() * static_cast<size_t>(spec_.hidden_size));
  EmbedTokens(embedding, tokens_, hidden->data());
}

void Trainer::Upload(const std::vector<float>& hidden, float* device) {
  ops_->Upload(hidden.data(), hidden.size() * sizeof(float), device);
}

// Of held-out windows begin, begin + 1, ...; tokens_ are theirs afterwards.
void Trainer::TakeHeldOut(int begin, int count) {
  const auto context = static_cast<size_t>(options_.context);
  tokens_.resize(count * context);
  for (int w = 0; w < count; ++w) {
    text_.HeldOut(begin + w, std::span(tokens_).subspan(w * context, context));
  }
  prepared_step_ = -1;
}

absl::Status Trainer::MakeTeacherOfHeldOut() {
  for (int begin = 0; begin < text_.held_out(); begin += options_.batch) {
    const int count = std::min(options_.batch, text_.held_out() - begin);
    TakeHeldOut(begin, count);
    Embed(original_.embedding, &teacher_embedded_);
    Upload(teacher_embedded_, held_out_hidden_.data() + Floats(begin));
    RunTeacher(count, held_out_hidden_.data() + Floats(begin));
  }
  return absl::OkStatus();
}

absl::StatusOr<TuneLoss> Trainer::ReadLoss(int windows, const char* what) {
  LossSums sums;
  ops_->Download(sums_.data(), sizeof(sums), &sums);
  const double tokens = static_cast<double>(windows) * options_.context;
  if (!std::isfinite(sums.kl)) {
    return absl::DataLossError(absl::StrCat("the KL divergence of the ", what,
                                            " windows is not finite: a weight of either model is "
                                            "NaN or infinite, or the learning rate is too high"));
  }
  return TuneLoss{.kl = sums.kl / tokens, .same_top = sums.same_top / tokens};
}

absl::StatusOr<TuneLoss> Trainer::HeldOut() {
  ops_->Zero(sums_.data(), sizeof(LossSums));
  for (int begin = 0; begin < text_.held_out(); begin += options_.batch) {
    const int count = std::min(options_.batch, text_.held_out() - begin);
    TakeHeldOut(begin, count);
    Embed(quantized_.embedding, &student_embedded_);
    Upload(student_embedded_, Boundary(0));
    RunStudent(count);
    loss_->Run(teacher_->head(), held_out_hidden_.data() + Floats(begin), student_->head(),
               Boundary(spec_.num_layers), static_cast<int>(tokens_.size()), 1.0f, sums_.data(),
               nullptr, nullptr);
  }
  return ReadLoss(text_.held_out(), "held-out");
}

absl::StatusOr<TuneLoss> Trainer::Step(const StepRates& rates) {
  if (prepared_step_ != rates.step) Prepare(rates.step);
  Upload(teacher_embedded_, teacher_hidden_.data());
  RunTeacher(options_.batch, teacher_hidden_.data());
  Upload(student_embedded_, Boundary(0));  // while the device runs the teacher
  RunStudent(options_.batch);
  ops_->Zero(sums_.data(), sizeof(LossSums));
  const int end = spec_.num_layers;
  student_->BeginGradients(end);
  const int rows = static_cast<int>(tokens_.size());
  loss_->Run(teacher_->head(), teacher_hidden_.data(), student_->head(), Boundary(end), rows,
             1.0f / static_cast<float>(rows), sums_.data(), d_hidden_.data(),
             student_->final_norm_gradient());
  student_->Update(end, rates);
  for (int l = end - 1; l >= 0; --l) {
    const LayerParams params = student_->Materialize(l, scratch_);
    student_->BeginGradients(l);
    ToStudent sink(student_.get(), l);
    for (int w = 0; w < options_.batch; w += windows_at_once_) {
      tape_->Backward(params, Boundary(l) + Floats(w), d_hidden_.data() + Floats(w),
                      student_->norm_gradients(l), &sink);
    }
    student_->Update(l, rates);
  }
  Prepare(rates.step + 1);  // while the device works
  return ReadLoss(options_.batch, "training");
}

}  // namespace fewbit::tune
