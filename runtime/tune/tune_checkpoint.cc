#include "runtime/tune/tune_checkpoint.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/cpu/linear.h"
#include "nlohmann/json.hpp"
#include "runtime/quantize/calibration.h"
#include "runtime/quantize/held_out.h"
#include "runtime/thread_team.h"
#include "runtime/tune/model_source.h"
#include "runtime/tune/same_model.h"
#include "runtime/tune/trainer.h"
#include "runtime/tune/tuning_record.h"
#include "runtime/weights/canary.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/quantized_format.h"
#include "runtime/weights/quantized_writer.h"

namespace fewbit::tune {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

// Threads do not change a result, so the processor has no number of them here.
std::string DeviceName(const Ops& ops) {
  return absl::StartsWith(ops.device(), "cpu") ? absl::StrCat("cpu ", cpu::IsaName(cpu::BestIsa()))
                                               : ops.device();
}

// One run. Thread rule: one thread.
class TuningJob {
 public:
  TuningJob(const TuneOptions& options, std::span<const TokenId> calibration,
            std::span<const TokenId> own_text, Ops* ops,
            const std::function<void(const TuneProgress&)>& progress, const std::atomic<bool>* stop)
      : options_(options),
        calibration_(calibration),
        own_text_(own_text),
        ops_(ops),
        progress_(progress),
        stop_(stop) {}

  absl::StatusOr<TuneReport> Run();

 private:
  absl::Status Open();
  absl::Status OpenText();
  absl::StatusOr<Fingerprint> MakeFingerprint() const;
  absl::Status BeginOrResume();
  absl::Status Resume();
  absl::Status Train();
  absl::Status Evaluate();
  absl::Status Save();
  absl::Status Cancel();
  absl::Status Write();
  absl::Status WriteCanaryOf(const std::string& directory) const;
  nlohmann::json Settings() const;
  void KeepBest();
  void Tell(double training_kl) const;
  bool stopped() const { return stop_ != nullptr && stop_->load(std::memory_order_relaxed); }
  bool hopeless() const;
  const TunePoint& best() const;

  const TuneOptions& options_;
  const std::span<const TokenId> calibration_, own_text_;
  Ops* const ops_;
  const std::function<void(const TuneProgress&)>& progress_;
  const std::atomic<bool>* const stop_;
  std::unique_ptr<CheckpointReader> original_, quantized_;
  ModelSource original_source_, quantized_source_;
  std::optional<TuningText> text_;
  std::unique_ptr<Trainer> trainer_;
  std::unique_ptr<QuantizedWriter> writer_;
  TuningRecord record_;
  std::vector<std::vector<float>> best_values_;  // [layers, the end included]
  int resumed_step_ = 0;
  int saved_step_ = -1;
};

absl::Status TuningJob::Open() {
  const struct {
    const std::string& directory;
    std::unique_ptr<CheckpointReader>* reader;
    ModelSource* source;
  } models[] = {{options_.model_dir, &original_, &original_source_},
                {options_.quantized_dir, &quantized_, &quantized_source_}};
  for (const auto& model : models) {
    absl::StatusOr<std::unique_ptr<CheckpointReader>> reader =
        CheckpointReader::Open(model.directory);
    if (!reader.ok()) return reader.status();
    *model.reader = *std::move(reader);
    absl::StatusOr<ModelSource> source = SourceOf(**model.reader);
    if (!source.ok()) return source.status();
    *model.source = *std::move(source);
  }
  return CheckSameModel(*original_, *quantized_);
}

absl::Status TuningJob::OpenText() {
  const ModelSpec& spec = quantized_->spec();
  if (options_.context > spec.max_context) {
    return absl::InvalidArgumentError(absl::StrCat("context is ", options_.context, ", but ",
                                                   options_.model_dir, " takes at most ",
                                                   spec.max_context, " tokens"));
  }
  absl::StatusOr<TuningText> text =
      TuningText::Create(calibration_, own_text_, TextOptionsOf(options_, spec));
  if (!text.ok()) return text.status();
  text_ = *std::move(text);
  return absl::OkStatus();
}

absl::StatusOr<Fingerprint> TuningJob::MakeFingerprint() const {
  const auto number = [](auto value) { return nlohmann::json(value).dump(); };
  Fingerprint fingerprint = {{"tune_steps", number(options_.steps)},
                             {"batch", number(options_.batch)},
                             {"context", number(options_.context)},
                             {"held_out", number(options_.held_out)},
                             {"evaluate_every", number(options_.evaluate_every)},
                             {"sub_scale_rate", number(options_.sub_scale_rate)},
                             {"second_order_rate", number(options_.second_order_rate)},
                             {"outlier_rate", number(options_.outlier_rate)},
                             {"norm_rate", number(options_.norm_rate)},
                             {"own_share", number(options_.own_share)},
                             {"noise", number(options_.noise)},
                             {"seed", number(options_.seed)},
                             {"calibration", DescribeIds(calibration_)},
                             {"own text", DescribeIds(own_text_)},
                             {"program", options_.program},
                             {"device", DeviceName(*ops_)},
                             {"windows at once", number(trainer_->windows_at_once())}};
  absl::Status status = AddModelFiles(options_.model_dir, "model file", &fingerprint);
  if (status.ok()) status = AddModelFiles(options_.quantized_dir, "quantized file", &fingerprint);
  if (!status.ok()) return status;
  return fingerprint;
}

absl::Status TuningJob::BeginOrResume() {
  absl::StatusOr<Fingerprint> fingerprint = MakeFingerprint();
  if (!fingerprint.ok()) return fingerprint.status();
  absl::StatusOr<std::unique_ptr<QuantizedWriter>> writer =
      QuantizedWriter::CreateVersion(options_.out_dir, *quantized_, options_.restart);
  if (!writer.ok()) return writer.status();
  writer_ = *std::move(writer);
  best_values_.resize(static_cast<size_t>(trainer_->student().num_layers()));
  if (!writer_->progress()) {
    record_.fingerprint = *std::move(fingerprint);
    return absl::OkStatus();
  }
  const auto damaged = [](const absl::Status& status, const std::string& what) {
    return absl::DataLossError(
        absl::StrCat(what, status.message(), "; add --restart to discard the interrupted run"));
  };
  absl::StatusOr<TuningRecord> record = ParseTuningRecord(*writer_->progress());
  if (!record.ok()) {
    return damaged(record.status(), absl::StrCat(writer_->partial_directory(), "/progress.json: "));
  }
  absl::Status status =
      CheckSameRun(record->fingerprint, *fingerprint, writer_->partial_directory());
  if (!status.ok()) return status;
  record_ = *std::move(record);
  if (status = Resume(); !status.ok()) return damaged(status, "");
  return absl::OkStatus();
}

absl::Status TuningJob::Resume() {
  Student& student = trainer_->student();
  const std::string& directory = writer_->partial_directory();
  const bool known = std::any_of(record_.curve.begin(), record_.curve.end(),
                                 [&](const auto& p) { return p.step == record_.best_step; });
  if (record_.checksums.size() != best_values_.size() || record_.step > options_.steps || !known ||
      record_.curve.front().step != 0 || record_.curve.back().step > record_.step) {
    return absl::DataLossError(absl::StrCat(directory, "/progress.json: numbers contradict"));
  }
  for (int l = 0; l < student.num_layers(); ++l) {
    absl::StatusOr<LayerState> state =
        ReadLayerState(directory, record_.step, l, record_.checksums[l],
                       student.layout(l).num_values, &best_values_[l]);
    if (!state.ok()) return state.status();
    student.SetState(l, *state);
  }
  resumed_step_ = saved_step_ = record_.step;
  return absl::OkStatus();
}

const TunePoint& TuningJob::best() const {
  return *std::find_if(record_.curve.begin(), record_.curve.end(),
                       [&](const TunePoint& p) { return p.step == record_.best_step; });
}

// For a third of the steps every measurement was well above the best. Near it there is hope: the
// largest gains come when the learning rate falls.
bool TuningJob::hopeless() const {
  constexpr double kNear = 1.05;
  const int patience = std::max(options_.steps / 3, 4 * options_.evaluate_every);
  const double bound = kNear * best().held_out.kl;
  int last = 0;
  for (const TunePoint& point : record_.curve) {
    if (point.held_out.kl <= bound) last = point.step;
  }
  return record_.step - last >= patience;
}

void TuningJob::KeepBest() {
  record_.best_step = record_.step;
  for (int l = 0; l < trainer_->student().num_layers(); ++l) {
    best_values_[l] = trainer_->student().Values(l);
  }
}

void TuningJob::Tell(double training_kl) const {
  if (!progress_) return;
  progress_({.step = record_.step,
             .steps = options_.steps,
             .training_kl = training_kl,
             .held_out_kl = record_.curve.back().held_out.kl,
             .best_held_out = best().held_out.kl,
             .resumed_step = resumed_step_});
}

absl::Status TuningJob::Evaluate() {
  absl::StatusOr<TuneLoss> loss = trainer_->HeldOut();
  if (!loss.ok()) return loss.status();
  const int since = record_.curve.empty() ? 0 : record_.step - record_.curve.back().step;
  record_.curve.push_back({.step = record_.step,
                           .training_kl = since == 0 ? kNone : record_.loss_sum / since,
                           .held_out = *loss});
  record_.loss_sum = 0.0;
  if (record_.curve.size() == 1 || loss->kl < best().held_out.kl) KeepBest();
  return absl::OkStatus();
}

absl::Status TuningJob::Save() {
  if (saved_step_ == record_.step) return absl::OkStatus();
  Student& student = trainer_->student();
  const std::string& directory = writer_->partial_directory();
  record_.checksums.clear();
  for (int l = 0; l < student.num_layers(); ++l) {
    const absl::StatusOr<uint64_t> checksum =
        WriteLayerState(directory, record_.step, l, student.State(l), best_values_[l]);
    if (!checksum.ok()) return checksum.status();
    record_.checksums.push_back(*checksum);
  }
  if (absl::Status status = writer_->Record(ToJson(record_)); !status.ok()) return status;
  saved_step_ = record_.step;
  return RemoveLayerStates(directory, record_.step);
}

absl::Status TuningJob::Cancel() {
  if (absl::Status status = Save(); !status.ok()) return status;
  return absl::CancelledError(absl::StrCat("stopped (", writer_->partial_directory(), " has ",
                                           record_.step, " of ", options_.steps,
                                           " steps; the same command goes on from there)"));
}

absl::Status TuningJob::Train() {
  if (record_.curve.empty()) {
    if (absl::Status status = Evaluate(); !status.ok()) return status;
  }
  Tell(kNone);
  while (record_.step < options_.steps && !hopeless()) {
    if (stopped()) return Cancel();
    const absl::StatusOr<TuneLoss> loss = trainer_->Step(options_.RatesOf(record_.step + 1));
    if (!loss.ok()) return loss.status();
    ++record_.step;
    record_.loss_sum += loss->kl;
    if (record_.step % options_.evaluate_every == 0 || record_.step == options_.steps) {
      if (absl::Status status = Evaluate(); !status.ok()) return status;
    }
    if (record_.step % options_.checkpoint_every == 0 && record_.step < options_.steps) {
      if (absl::Status status = Save(); !status.ok()) return status;
    }
    Tell(loss->kl);
  }
  return absl::OkStatus();
}

nlohmann::json TuningJob::Settings() const {
  nlohmann::json settings = quantized_->config()[quantized_format::kConfigKey];
  settings["tuned"] = {
      {"steps", record_.best_step},
      {"tokens", int64_t{record_.best_step} * options_.tokens_per_step()},
      {"held_out_kl",
       {{"before", record_.curve.front().held_out.kl}, {"after", best().held_out.kl}}},
      {"seed", options_.seed}};
  return settings;
}

absl::Status TuningJob::Write() {
  const int layers = trainer_->student().num_layers() - 1;
  for (int l = -1; l < layers; ++l) {
    const size_t index = l < 0 ? layers : l;
    QuantizedLayer linears;
    ReplacedVectors norms;
    absl::Status status =
        ToQuantizedLayer(quantized_source_, l, trainer_->student().layout(static_cast<int>(index)),
                         best_values_[index], &linears, &norms);
    if (!status.ok()) return status;
    status = l < 0 ? writer_->WriteEmbeddings(norms) : writer_->WriteLayer(l, linears, norms);
    if (!status.ok()) return status;
  }
  const absl::StatusOr<std::string> files = writer_->Complete(Settings());
  if (!files.ok()) return files.status();
  if (absl::Status status = WriteCanaryOf(*files); !status.ok()) return status;
  return writer_->Finish();
}

// What both models answer, as computed on this processor, to the beginnings of held-out windows.
absl::Status TuningJob::WriteCanaryOf(const std::string& directory) const {
  absl::StatusOr<std::unique_ptr<CheckpointReader>> tuned = CheckpointReader::Open(directory);
  if (!tuned.ok()) return tuned.status();
  const int tokens = std::min(Canary::kTokens, options_.context);
  CalibrationWindows prompts{.context = tokens, .tokens = {}};
  std::vector<TokenId> window(static_cast<size_t>(options_.context));
  for (int w = 0; w < std::min(Canary::kPrompts, text_->held_out()); ++w) {
    text_->HeldOut(w, window);
    prompts.tokens.insert(prompts.tokens.end(), window.begin(), window.begin() + tokens);
  }
  ThreadTeam team(options_.threads);
  const absl::StatusOr<HeldOut> answers =
      MeasureHeldOut(**tuned, original_.get(), prompts, &team, nullptr, stop_);
  if (!answers.ok()) return answers.status();
  return WriteCanary(directory, answers->canary);
}

absl::StatusOr<TuneReport> TuningJob::Run() {
  absl::Status status = Open();
  if (status.ok()) status = OpenText();
  if (!status.ok()) return status;
  absl::StatusOr<std::unique_ptr<Trainer>> trainer = Trainer::Create(
      original_source_, quantized_source_, *text_, ops_,
      {.batch = options_.batch, .context = options_.context, .stream = options_.low_memory});
  if (!trainer.ok()) return trainer.status();
  trainer_ = *std::move(trainer);
  status = BeginOrResume();
  if (status.ok()) status = Train();
  if (status.ok()) status = Save();
  if (status.ok()) status = Write();
  if (!status.ok()) return status;
  TuneReport report{.curve = record_.curve,
                    .before = record_.curve.front().held_out,
                    .after = best().held_out,
                    .best_step = record_.best_step,
                    .steps = record_.step,
                    .tokens = record_.step * options_.tokens_per_step(),
                    .device = ops_->device(),
                    .peak_bytes = ops_->PeakBytes(),
                    .windows_at_once = trainer_->windows_at_once()};
  for (int k = 0; k < kNumTunedKinds; ++k) {
    report.numbers[k] = trainer_->student().num_tuned(static_cast<TunedKind>(k));
  }
  const QuantizedBytes& bytes = writer_->bytes();
  report.average_bits =
      8.0 * static_cast<double>(bytes.linear_bytes) / static_cast<double>(bytes.linear_weights);
  return report;
}

}  // namespace

absl::StatusOr<TuneReport> TuneCheckpoint(const TuneOptions& options,
                                          std::span<const TokenId> calibration,
                                          std::span<const TokenId> own_text, Ops* ops,
                                          const std::function<void(const TuneProgress&)>& progress,
                                          const std::atomic<bool>* stop) {
  if (absl::Status status = options.Validate(); !status.ok()) return status;
  return TuningJob(options, calibration, own_text, ops, progress, stop).Run();
}

}  // namespace fewbit::tune
