// One step of tuning: teacher and student run over a batch of windows, layer by layer, and the
// student's scales and norms move against the gradient of KL(teacher || student).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/tune/device_array.h"
#include "runtime/tune/layer_tape.h"
#include "runtime/tune/model_source.h"
#include "runtime/tune/ops.h"
#include "runtime/tune/student.h"
#include "runtime/tune/teacher.h"
#include "runtime/tune/tuning_text.h"
#include "runtime/tune/weight_scratch.h"

namespace fewbit::tune {

struct TrainerOptions {
  int batch = 16;  // windows per step
  int context = 512;
  bool stream = false;  // only one layer of each model on the device
};

// Means over tokens.
struct TuneLoss {
  double kl = 0.0;        // KL(teacher || student), nats
  double same_top = 0.0;  // share of the positions where both rate the same token highest
};

// Thread rule: one caller at a time.
class Trainer {
 public:
  // The sources (original and quantized, of one spec), `ops` and `text` outlive the object. Windows
  // are run as many at once as the device has memory for. RESOURCE_EXHAUSTED: not even one.
  static absl::StatusOr<std::unique_ptr<Trainer>> Create(const ModelSource& original,
                                                         const ModelSource& quantized,
                                                         const TuningText& text, Ops* ops,
                                                         const TrainerOptions& options);

  // The loss of the batch before the step was taken. DATA_LOSS when it is not finite.
  absl::StatusOr<TuneLoss> Step(const StepRates& rates);
  absl::StatusOr<TuneLoss> HeldOut();

  Student& student() { return *student_; }
  int windows_at_once() const { return windows_at_once_; }

 private:
  Trainer(const ModelSource& original, const ModelSource& quantized, const TuningText& text,
          Ops* ops, const TrainerOptions& options);
  absl::Status Allocate();
  absl::Status MakeTape();
  absl::Status MakeTeacherOfHeldOut();
  void TakeHeldOut(int begin, int count);
  int64_t Floats(int windows) const;
  float* Boundary(int layer) const { return boundaries_.data() + layer * Floats(options_.batch); }
  void Prepare(int step);
  void Embed(const Matrix& embedding, std::vector<float>* hidden) const;
  void Upload(const std::vector<float>& hidden, float* device);
  void RunTeacher(int windows, float* hidden);
  void RunStudent(int windows);
  void Forward(const LayerParams& params, int windows, float* hidden);
  absl::StatusOr<TuneLoss> ReadLoss(int windows, const char* what);

  const ModelSource& original_;
  const ModelSource& quantized_;
  const TuningText& text_;
  Ops* const ops_;
  const TrainerOptions options_;
  const ModelSpec& spec_;
  int windows_at_once_ = 0;
  std::unique_ptr<Teacher> teacher_;
  std::unique_ptr<Student> student_;
  std::unique_ptr<LayerTape> tape_;
  std::unique_ptr<HeadLoss> loss_;
  WeightScratch scratch_;
  // [L + 1][batch * context, E]: input of each layer, output of the last.
  DeviceArray<float> boundaries_;
  DeviceArray<float> teacher_hidden_, d_hidden_;  // [batch * context, E]
  DeviceArray<float> held_out_hidden_;            // [held_out * context, E], the teacher's last
  DeviceArray<LossSums> sums_;
  std::vector<TokenId> tokens_;                             // of what is embedded
  std::vector<float> teacher_embedded_, student_embedded_;  // [tokens_, E]
  int prepared_step_ = -1;                                  // whose batch these are
};

}  // namespace fewbit::tune
