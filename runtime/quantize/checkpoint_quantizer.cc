#include "runtime/quantize/checkpoint_quantizer.h"

#include <malloc.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "runtime/quantize/bit_plan.h"
#include "runtime/quantize/calibration.h"
#include "runtime/quantize/held_out.h"
#include "runtime/quantize/layer_quantizer.h"
#include "runtime/quantize/run_record.h"
#include "runtime/weights/checkpoint.h"

namespace fewbit {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kMaxWindows = 1 << 20;
constexpr int kReturnedBlockBytes = 1 << 20;

absl::Status CheckChannels(const ModelSpec& spec) {
  const struct {
    const char* what;
    int channels;
  } inputs[] = {{"hidden_size, the input of q_proj", spec.hidden_size},
                {"heads * head_dim, the input of o_proj", spec.q_size()},
                {"intermediate_size, the input of down_proj", spec.ffn_size}};
  for (const auto& input : inputs) {
    if (input.channels % quant::kStripChannels == 0) continue;
    return absl::InvalidArgumentError(absl::StrCat("cannot quantize: K = ", input.channels, " (",
                                                   input.what, ") is not a multiple of ",
                                                   quant::kStripChannels));
  }
  return absl::OkStatus();
}

absl::Status CheckFinite(const std::string& name, std::span<const float> values) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (std::isfinite(values[i])) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": value ", i, " is ", std::isnan(values[i]) ? "NaN" : "infinite"));
  }
  return absl::OkStatus();
}

// The reader itself refuses norms and biases that are not finite; matrices it only maps.
absl::Status CheckEnds(const CheckpointReader& reader) {
  const ModelSpec& spec = reader.spec();
  if (auto norm = reader.FinalNorm(); !norm.ok()) return norm.status();
  std::vector<float> row(spec.hidden_size);
  for (const bool head : {false, true}) {
    if (head && spec.tied_head) break;
    absl::StatusOr<Matrix> matrix = head ? reader.Head() : reader.Embedding();
    if (!matrix.ok()) return matrix.status();
    for (int r = 0; r < MatrixRows(*matrix); ++r) {
      cpu::DequantizeRow(*matrix, r, row.data());
      absl::Status status =
          CheckFinite(absl::StrCat(head ? "output head" : "embedding", " row ", r), row);
      if (!status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

int64_t DenseBytes(const Matrix& matrix) {
  const auto& dense = std::get<DenseMatrix>(matrix);
  return int64_t{dense.rows} * dense.cols * (dense.dtype == DType::kF32 ? 4 : 2);
}

// One run. Thread rule: one thread.
class CheckpointJob {
 public:
  CheckpointJob(const QuantizeOptions& options,
                const std::function<void(const QuantizeProgress&)>& progress,
                const std::atomic<bool>* stop)
      : options_(options),
        progress_(progress),
        stop_(stop),
        team_(options.threads),
        products_(&team_),
        isa_(cpu::BestIsa()),
        settings_{.method = FindQuantizeMethod(options.method),
                  .share4 = options.share4,
                  .outliers = options.outliers},
        quantizer_(&products_, isa_) {}

  absl::StatusOr<QuantizeReport> Run(std::span<const TokenId> calibration);

 private:
  absl::Status CheckSource() const;
  absl::Status Begin(std::span<const TokenId> calibration_ids);
  absl::Status PlanOrResume(const CalibrationWindows& windows);
  absl::Status DoLayer(int layer, Calibration* calibration);
  absl::StatusOr<bool> SkipLayer(int layer, const LayerWeights& weights, Calibration* calibration);
  absl::Status QuantizeLayer(int layer, const LayerWeights& weights, Calibration* calibration,
                             QuantizedLayer* result, LayerRecord* record);
  LayerWeights After(const LayerWeights& original,
                     const std::array<quant::PackedMatrix, kNumLinearRoles>& quantized) const;
  absl::Status Explained(const absl::Status& status) const;
  absl::Status RunLayers(std::span<const TokenId> calibration_ids);
  absl::Status Measure(std::span<const TokenId> calibration_ids, const std::string& directory);
  absl::Status Step(int layer, const char* activity);
  nlohmann::json Settings() const;

  const QuantizeOptions& options_;
  const std::function<void(const QuantizeProgress&)>& progress_;
  const std::atomic<bool>* const stop_;
  ThreadTeam team_;
  TeamProducts products_;
  const cpu::Isa isa_;
  const MatrixSettings settings_;
  int num_layers_ = 0;
  int steps_done_ = 0;
  LayerQuantizer quantizer_;
  std::unique_ptr<CheckpointReader> reader_;
  std::unique_ptr<QuantizedWriter> writer_;
  RunRecord record_;
  bool resumed_ = false;
  int resumed_layers_ = 0;
  QuantizeReport report_;
};

// Reports what begins now; CANCELLED when the caller wants to stop.
absl::Status CheckpointJob::Step(int layer, const char* activity) {
  if (absl::Status status = CheckNotStopped(stop_); !status.ok()) return status;
  if (progress_) {
    progress_(
        {.layer = layer,
         .num_layers = num_layers_,
         .activity = activity,
         .done = steps_done_,
         .total = num_layers_ * (kNumLinearRoles + 1) * (settings_.method->shared_bits ? 2 : 1) +
                  num_layers_,
         .resumed_layers = resumed_layers_});
  }
  ++steps_done_;
  return absl::OkStatus();
}

absl::Status CheckpointJob::QuantizeLayer(int layer, const LayerWeights& weights,
                                          Calibration* calibration, QuantizedLayer* result,
                                          LayerRecord* record) {
  LayerWeights so_far = weights;
  for (int r = 0; r < kNumLinearRoles; ++r) {
    const auto role = static_cast<LinearRole>(r);
    if (settings_.method->inputs == Inputs::kMatrices && Calibration::IsFirstWithItsInput(role)) {
      const auto release = [this, layer] { reader_->ReleaseLayer(layer); };
      absl::Status status = calibration->ObserveInput(role, weights, so_far, release, stop_);
      if (!status.ok()) return status;
      release();
    }
    if (absl::Status status = Step(layer, LinearRoleName(role)); !status.ok()) return status;
    MatrixSettings settings = settings_;
    if (settings.method->shared_bits) {
      settings.share4 = record_.plan.shares[layer * kNumLinearRoles + r];
    }
    settings.last_use = Calibration::IsLastWithItsInput(role);
    absl::StatusOr<QuantizedMatrix> quantized =
        quantizer_.Quantize(layer, role, weights[role], calibration->hessian(role), settings);
    if (!quantized.ok()) return quantized.status();
    result->linears[r] = quantizer_.Pack(quantized->unpacked);
    so_far.linears[r] = result->linears[r].view();
    record->qualities[r] = quantized->quality;
    calibration->DoneWith(role);
    reader_->ReleaseLayer(layer);  // read again as needed
  }
  return absl::OkStatus();
}

nlohmann::json CheckpointJob::Settings() const {
  nlohmann::json settings = {{"method", options_.method},
                             {"zero_points", settings_.method->zero_points},
                             {"outliers", options_.outliers},
                             {"embedding_bits", options_.embedding_bits},
                             {"calibration_windows", report_.windows},
                             {"calibration_context", options_.context},
                             {"seed", options_.seed}};
  if (settings_.method->shared_bits) {
    settings["bits"] = options_.bits;
    settings["probe_windows"] = options_.probe_windows;
  } else {
    settings["share4"] = options_.share4;
  }
  return settings;
}

// What later layers see of this one.
LayerWeights CheckpointJob::After(
    const LayerWeights& original,
    const std::array<quant::PackedMatrix, kNumLinearRoles>& quantized) const {
  LayerWeights weights = original;
  if (settings_.method->inputs == Inputs::kOriginal) return weights;
  for (int r = 0; r < kNumLinearRoles; ++r) weights.linears[r] = quantized[r];
  return weights;
}

absl::Status CheckpointJob::CheckSource() const {
  const ModelSpec& spec = reader_->spec();
  if (reader_->quantization().quantized) {
    return absl::FailedPreconditionError(
        absl::StrCat(options_.model_dir, " is quantized already (method ",
                     reader_->quantization().method, "); start from the original"));
  }
  if (absl::Status status = CheckChannels(spec); !status.ok()) return status;
  if (options_.context > spec.max_context) {
    return absl::InvalidArgumentError(absl::StrCat("context is ", options_.context, ", but ",
                                                   options_.model_dir, " takes at most ",
                                                   spec.max_context, " tokens"));
  }
  return absl::OkStatus();
}

// Opens the output, and reads what an interrupted run recorded there.
absl::Status CheckpointJob::Begin(std::span<const TokenId> calibration_ids) {
  absl::StatusOr<Fingerprint> fingerprint = FingerprintOf(options_, calibration_ids, isa_);
  if (!fingerprint.ok()) return fingerprint.status();
  absl::StatusOr<std::unique_ptr<QuantizedWriter>> writer = QuantizedWriter::Create(
      options_.out_dir, *reader_, options_.embedding_bits, options_.restart);
  if (!writer.ok()) return writer.status();
  writer_ = *std::move(writer);
  record_.layers.resize(num_layers_);
  if (!writer_->progress()) {
    record_.fingerprint = *std::move(fingerprint);
    return absl::OkStatus();
  }
  const auto damaged = [this](const absl::Status& status) {
    return absl::DataLossError(absl::StrCat(writer_->partial_directory(),
                                            "/progress.json: ", status.message(),
                                            "; add --restart to discard the interrupted run"));
  };
  absl::StatusOr<RunRecord> record = ParseRunRecord(*writer_->progress());
  if (!record.ok()) return damaged(record.status());
  absl::Status status =
      CheckSameRun(record->fingerprint, *fingerprint, writer_->partial_directory());
  if (!status.ok()) return status;
  status = CheckSizes(*record, num_layers_, settings_.method->shared_bits);
  if (!status.ok()) return damaged(status);
  record_ = *std::move(record);
  resumed_ = true;
  resumed_layers_ = record_.finished();
  return absl::OkStatus();
}

absl::Status CheckpointJob::PlanOrResume(const CalibrationWindows& windows) {
  if (resumed_) {
    if (settings_.method->shared_bits) steps_done_ = num_layers_ * (kNumLinearRoles + 1);
    return absl::OkStatus();
  }
  if (settings_.method->shared_bits) {
    const auto step = [this](int layer, const char* activity) { return Step(layer, activity); };
    absl::StatusOr<BitPlan> plan = PlanBits(reader_.get(), windows, settings_,
                                            {.bits = options_.bits,
                                             .probe_windows = options_.probe_windows,
                                             .scratch_directory = writer_->partial_directory()},
                                            &products_, isa_, step, stop_);
    if (!plan.ok()) return plan.status();
    record_.plan = *std::move(plan);
  }
  return writer_->Record(ToJson(record_));
}

// True: an interrupted run had finished the layer, and the calibration is past it. A file that is
// damaged or gone is no error: the layer comes out the same a second time.
absl::StatusOr<bool> CheckpointJob::SkipLayer(int layer, const LayerWeights& weights,
                                              Calibration* calibration) {
  if (!record_.layers[layer]) return false;
  const absl::StatusOr<WrittenLayer> written =
      writer_->TakeOverLayer(layer, record_.layers[layer]->checksum, settings_.method->zero_points);
  if (!written.ok()) {
    record_.layers[layer].reset();
    return false;
  }
  if (absl::Status status = Step(layer, "finished before"); !status.ok()) return status;
  steps_done_ += kNumLinearRoles;
  absl::Status status = calibration->AdvanceOriginal(weights, stop_);
  if (status.ok()) status = calibration->Advance(After(weights, written->linears), stop_);
  if (!status.ok()) return status;
  return true;
}

absl::Status CheckpointJob::DoLayer(int layer, Calibration* calibration) {
  absl::StatusOr<LayerWeights> weights = reader_->Layer(layer);
  if (!weights.ok()) return weights.status();
  const absl::StatusOr<bool> skipped = SkipLayer(layer, *weights, calibration);
  if (!skipped.ok()) return skipped.status();
  if (*skipped) return absl::OkStatus();
  if (absl::Status status = Step(layer, "calibrating"); !status.ok()) return status;
  absl::Status status;
  if (settings_.method->inputs != Inputs::kMatrices) {
    using Then = Calibration::Then;
    status = calibration->Observe(
        *weights, settings_.method->full_hessian(),
        settings_.method->inputs == Inputs::kLayers ? Then::kStay : Then::kAdvance, stop_);
  }
  QuantizedLayer quantized;
  LayerRecord record;
  reader_->ReleaseLayer(layer);
  if (status.ok()) status = QuantizeLayer(layer, *weights, calibration, &quantized, &record);
  if (status.ok()) status = writer_->WriteLayer(layer, quantized);
  if (!status.ok()) return status;
  const absl::StatusOr<uint64_t> checksum = writer_->LayerChecksum(layer);
  if (!checksum.ok()) return checksum.status();
  record.checksum = *checksum;
  record_.layers[layer] = record;
  if (status = writer_->Record(ToJson(record_)); !status.ok()) return status;
  if (settings_.method->inputs == Inputs::kOriginal) return CheckNotStopped(stop_);
  std::array<quant::PackedMatrix, kNumLinearRoles> views;
  for (int r = 0; r < kNumLinearRoles; ++r) views[r] = quantized.linears[r].view();
  return calibration->Advance(After(*weights, views), stop_);
}

absl::Status CheckpointJob::RunLayers(std::span<const TokenId> calibration_ids) {
  absl::StatusOr<CalibrationWindows> windows =
      CutWindows(calibration_ids, reader_->spec().bos, options_.context,
                 options_.calibration_windows, options_.seed, reader_->spec().vocab_size);
  if (!windows.ok()) return windows.status();
  report_.windows = windows->count();
  report_.calibration_tokens = static_cast<int64_t>(windows->tokens.size());
  if (absl::Status status = Begin(calibration_ids); !status.ok()) return status;
  if (absl::Status status = CheckEnds(*reader_); !status.ok()) return status;
  reader_->ReleaseEnds();
  absl::StatusOr<Matrix> embedding = reader_->Embedding();
  if (!embedding.ok()) return embedding.status();
  if (absl::Status status = PlanOrResume(*windows); !status.ok()) return status;
  const auto calibration =
      Calibration::Create(reader_->spec(), *embedding, *std::move(windows), &products_, isa_,
                          settings_.method->correction > 0.0f, writer_->partial_directory());
  if (!calibration.ok()) return calibration.status();
  if (absl::Status status = writer_->WriteEmbeddings(); !status.ok()) return status;
  reader_->ReleaseEnds();
  for (int layer = 0; layer < num_layers_; ++layer) {
    if (absl::Status status = DoLayer(layer, calibration->get()); !status.ok()) return status;
    reader_->ReleaseLayer(layer);
  }
  const absl::StatusOr<std::string> files = writer_->Complete(Settings());
  if (!files.ok()) return files.status();
  if (absl::Status status = Measure(calibration_ids, *files); !status.ok()) return status;
  return writer_->Finish();
}

// What the finished files in `directory` make of text that calibration has not seen.
absl::Status CheckpointJob::Measure(std::span<const TokenId> calibration_ids,
                                    const std::string& directory) {
  const ModelSpec& spec = reader_->spec();
  const auto cut = [&](int drawn) {
    return CutWindows(calibration_ids, spec.bos, options_.context, options_.held_out_windows,
                      options_.seed, spec.vocab_size, drawn);
  };
  absl::StatusOr<CalibrationWindows> windows = cut(options_.calibration_windows);
  report_.held_out_is_seen = windows.ok() && windows->count() == 0;
  if (report_.held_out_is_seen) windows = cut(0);
  if (!windows.ok()) return windows.status();
  const absl::StatusOr<std::unique_ptr<CheckpointReader>> quantized =
      CheckpointReader::Open(directory);
  if (!quantized.ok()) return quantized.status();
  report_.original_bytes = reader_->weight_bytes();
  for (int layer = 0; layer < num_layers_; ++layer) {
    const absl::StatusOr<LayerWeights> weights = reader_->Layer(layer);
    if (!weights.ok()) return weights.status();
    for (const Matrix& matrix : weights->linears)
      report_.original_linear_bytes += DenseBytes(matrix);
  }
  report_.quantized_bytes = (*quantized)->weight_bytes();
  const auto step = [this](int layer) { return Step(layer, "measuring"); };
  const absl::StatusOr<HeldOut> held_out =
      MeasureHeldOut(**quantized, reader_.get(), *windows, &team_, step, stop_);
  if (!held_out.ok()) return held_out.status();
  report_.held_out = held_out->score;
  return WriteCanary(directory, held_out->canary);
}

// With what is left of the run, and how to go on.
absl::Status CheckpointJob::Explained(const absl::Status& status) const {
  const int finished = record_.finished();
  if (writer_ == nullptr || finished == 0) return status;
  return absl::Status(
      status.code(),
      absl::StrCat(status.message(), " (", writer_->partial_directory(), " has ", finished, " of ",
                   num_layers_, " layers; the same command goes on from there)"));
}

absl::StatusOr<QuantizeReport> CheckpointJob::Run(std::span<const TokenId> calibration_ids) {
  absl::StatusOr<std::unique_ptr<CheckpointReader>> reader =
      CheckpointReader::Open(options_.model_dir);
  if (!reader.ok()) return reader.status();
  reader_ = *std::move(reader);
  num_layers_ = reader_->spec().num_layers;
  if (absl::Status status = CheckSource(); !status.ok()) return status;
  if (absl::Status status = RunLayers(calibration_ids); !status.ok()) return Explained(status);
  for (const std::optional<LayerRecord>& layer : record_.layers) {
    for (int r = 0; r < kNumLinearRoles; ++r) {
      report_.roles[r].Add(layer->qualities[r]);
      report_.all.Add(layer->qualities[r]);
      report_.matrices.push_back(layer->qualities[r]);
    }
  }
  report_.divergences = record_.plan.divergences;
  report_.bytes = writer_->bytes();
  report_.average_bits = 8.0 * static_cast<double>(report_.bytes.linear_bytes) /
                         static_cast<double>(report_.bytes.linear_weights);
  report_.embedding_bits = 8.0 * static_cast<double>(report_.bytes.embedding_bytes) /
                           static_cast<double>(report_.bytes.embedding_weights);
  return report_;
}

}  // namespace

absl::Status QuantizeOptions::Validate() const {
  const auto bad = [](auto... parts) { return absl::InvalidArgumentError(absl::StrCat(parts...)); };
  if (model_dir.empty()) return bad("model is empty: give the directory of the checkpoint");
  if (out_dir.empty()) return bad("out is empty: give the directory to write");
  if (FindQuantizeMethod(method) == nullptr) {
    std::string names;
    for (const QuantizeMethod& row : kQuantizeMethods) {
      absl::StrAppend(&names, names.empty() ? "" : ", ", row.name);
    }
    return bad("method is \"", method, "\", known are: ", names);
  }
  if (!(bits >= 2.0 && bits <= 8.0)) return bad("bits is ", bits, ", not in 2 to 8");
  if (!(share4 >= 0.0 && share4 <= 1.0)) return bad("share4 is ", share4, ", not in 0 to 1");
  if (!(outliers >= 0.0 && outliers <= 0.1)) {
    return bad("outliers is ", outliers, ", not in 0 to 0.1");
  }
  if (embedding_bits != 8 && embedding_bits != 16) {
    return bad("embedding_bits is ", embedding_bits, ", not 8 or 16");
  }
  if (threads < 0 || threads > kMaxThreads) {
    return bad("threads is ", threads, ", not in 0 (all processors) to ", kMaxThreads);
  }
  if (calibration_windows < 1 || calibration_windows > kMaxWindows) {
    return bad("calibration_windows is ", calibration_windows, ", not in 1 to ", kMaxWindows);
  }
  if (probe_windows < 1 || probe_windows > kMaxWindows) {
    return bad("probe_windows is ", probe_windows, ", not in 1 to ", kMaxWindows);
  }
  if (held_out_windows < 1 || held_out_windows > kMaxWindows) {
    return bad("held_out_windows is ", held_out_windows, ", not in 1 to ", kMaxWindows);
  }
  if (context < 2) return bad("context is ", context, ", below 2 tokens");
  return absl::OkStatus();
}

absl::StatusOr<QuantizeReport> QuantizeCheckpoint(
    const QuantizeOptions& options, std::span<const TokenId> calibration,
    const std::function<void(const QuantizeProgress&)>& progress, const std::atomic<bool>* stop) {
  if (absl::Status status = options.Validate(); !status.ok()) return status;
#ifdef M_MMAP_THRESHOLD
  // Otherwise glibc keeps freed blocks of up to 32 MiB, which is most of what a layer needs.
  ::mallopt(M_MMAP_THRESHOLD, kReturnedBlockBytes);
#endif
  return CheckpointJob(options, progress, stop).Run(calibration);
}

}  // namespace fewbit
