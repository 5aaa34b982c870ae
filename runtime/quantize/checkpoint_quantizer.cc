#include "runtime/quantize/checkpoint_quantizer.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "runtime/quantize/bit_plan.h"
#include "runtime/quantize/calibration.h"
#include "runtime/quantize/layer_quantizer.h"
#include "runtime/weights/checkpoint.h"

namespace fewbit {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kMaxWindows = 1 << 20;

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
        isa_(cpu::BestIsa()),
        settings_{.method = FindQuantizeMethod(options.method),
                  .share4 = options.share4,
                  .outliers = options.outliers},
        quantizer_(&team_, isa_) {}

  absl::StatusOr<QuantizeReport> Run(std::span<const TokenId> calibration);

 private:
  absl::Status QuantizeLayer(int layer, const LayerWeights& weights, const Calibration& calibration,
                             QuantizedLayer* result);
  LayerWeights After(const LayerWeights& original, const QuantizedLayer& quantized);
  absl::Status Step(int layer, const char* activity);
  nlohmann::json Settings() const;

  const QuantizeOptions& options_;
  const std::function<void(const QuantizeProgress&)>& progress_;
  const std::atomic<bool>* const stop_;
  ThreadTeam team_;
  const cpu::Isa isa_;
  const MatrixSettings settings_;
  int num_layers_ = 0;
  int steps_done_ = 0;
  LayerQuantizer quantizer_;
  BitPlan plan_;  // with shared_bits
  QuantizeReport report_;
};

// Reports what begins now; CANCELLED when the caller wants to stop.
absl::Status CheckpointJob::Step(int layer, const char* activity) {
  if (stop_ != nullptr && stop_->load(std::memory_order_relaxed)) {
    return absl::CancelledError("stopped");
  }
  if (progress_) {
    progress_(
        {.layer = layer,
         .num_layers = num_layers_,
         .activity = activity,
         .done = steps_done_,
         .total = num_layers_ * (kNumLinearRoles + 1) * (settings_.method->shared_bits ? 2 : 1)});
  }
  ++steps_done_;
  return absl::OkStatus();
}

absl::Status CheckpointJob::QuantizeLayer(int layer, const LayerWeights& weights,
                                          const Calibration& calibration, QuantizedLayer* result) {
  for (int r = 0; r < kNumLinearRoles; ++r) {
    const auto role = static_cast<LinearRole>(r);
    if (absl::Status status = Step(layer, LinearRoleName(role)); !status.ok()) return status;
    MatrixSettings settings = settings_;
    if (settings.method->shared_bits) {
      settings.share4 = plan_.shares[layer * kNumLinearRoles + r];
    }
    absl::StatusOr<QuantizedMatrix> quantized =
        quantizer_.Quantize(layer, role, weights[role], calibration.hessian(role), settings);
    if (!quantized.ok()) return quantized.status();
    result->linears[r] = quant::Pack(quantized->unpacked);
    report_.roles[r].Add(quantized->quality);
    report_.all.Add(quantized->quality);
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
LayerWeights CheckpointJob::After(const LayerWeights& original, const QuantizedLayer& quantized) {
  LayerWeights weights = original;
  if (!settings_.method->sequential) return weights;
  for (int r = 0; r < kNumLinearRoles; ++r) weights.linears[r] = quantized.linears[r].view();
  return weights;
}

absl::StatusOr<QuantizeReport> CheckpointJob::Run(std::span<const TokenId> calibration_ids) {
  absl::StatusOr<std::unique_ptr<CheckpointReader>> reader =
      CheckpointReader::Open(options_.model_dir);
  if (!reader.ok()) return reader.status();
  const ModelSpec& spec = (*reader)->spec();
  num_layers_ = spec.num_layers;
  if ((*reader)->quantization().quantized) {
    return absl::FailedPreconditionError(
        absl::StrCat(options_.model_dir, " is quantized already (method ",
                     (*reader)->quantization().method, "); start from the original"));
  }
  if (absl::Status status = CheckChannels(spec); !status.ok()) return status;
  if (options_.context > spec.max_context) {
    return absl::InvalidArgumentError(absl::StrCat("context is ", options_.context, ", but ",
                                                   options_.model_dir, " takes at most ",
                                                   spec.max_context, " tokens"));
  }
  absl::StatusOr<CalibrationWindows> windows =
      CutWindows(calibration_ids, spec.bos, options_.context, options_.calibration_windows,
                 options_.seed, spec.vocab_size);
  if (!windows.ok()) return windows.status();
  report_.windows = windows->count();
  report_.calibration_tokens = static_cast<int64_t>(windows->tokens.size());

  absl::StatusOr<std::unique_ptr<QuantizedWriter>> writer =
      QuantizedWriter::Create(options_.out_dir, **reader, options_.embedding_bits);
  if (!writer.ok()) return writer.status();
  if (absl::Status status = CheckEnds(**reader); !status.ok()) return status;
  absl::StatusOr<Matrix> embedding = (*reader)->Embedding();
  if (!embedding.ok()) return embedding.status();
  if (settings_.method->shared_bits) {
    const auto step = [this](int layer, const char* activity) { return Step(layer, activity); };
    absl::StatusOr<BitPlan> plan =
        PlanBits(reader->get(), *windows, settings_,
                 {.bits = options_.bits, .probe_windows = options_.probe_windows}, &team_, isa_,
                 step, stop_);
    if (!plan.ok()) return plan.status();
    plan_ = *std::move(plan);
  }
  Calibration calibration(spec, *embedding, *std::move(windows), &team_, isa_);
  if (absl::Status status = (*writer)->WriteEmbeddings(); !status.ok()) return status;

  for (int layer = 0; layer < num_layers_; ++layer) {
    absl::StatusOr<LayerWeights> weights = (*reader)->Layer(layer);
    if (!weights.ok()) return weights.status();
    if (absl::Status status = Step(layer, "calibrating"); !status.ok()) return status;
    absl::Status status = calibration.Observe(*weights, settings_.method->error_feedback, stop_);
    QuantizedLayer quantized;
    if (status.ok()) status = QuantizeLayer(layer, *weights, calibration, &quantized);
    if (status.ok()) status = (*writer)->WriteLayer(layer, quantized);
    if (status.ok()) status = calibration.Advance(After(*weights, quantized), stop_);
    if (!status.ok()) return status;
    (*reader)->ReleaseLayer(layer);
  }
  if (absl::Status status = (*writer)->Finish(Settings()); !status.ok()) return status;
  report_.bytes = (*writer)->bytes();
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
  if (context < 2) return bad("context is ", context, ", below 2 tokens");
  return absl::OkStatus();
}

absl::StatusOr<QuantizeReport> QuantizeCheckpoint(
    const QuantizeOptions& options, std::span<const TokenId> calibration,
    const std::function<void(const QuantizeProgress&)>& progress, const std::atomic<bool>* stop) {
  if (absl::Status status = options.Validate(); !status.ok()) return status;
  return CheckpointJob(options, progress, stop).Run(calibration);
}

}  // namespace fewbit
