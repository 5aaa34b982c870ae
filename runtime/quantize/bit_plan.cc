#include "runtime/quantize/bit_plan.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "runtime/quantize/sensitivity_probe.h"

namespace fewbit {
namespace {

// Thread rule: one thread.
class Planner {
 public:
  Planner(CheckpointReader* reader, const CalibrationWindows& windows,
          const MatrixSettings& settings, TeamProducts* products, cpu::Isa isa,
          const std::function<absl::Status(int, const char*)>& step, const std::atomic<bool>* stop)
      : reader_(*reader),
        windows_(windows),
        settings_(settings),
        products_(products),
        team_(products->team()),
        isa_(isa),
        step_(step),
        stop_(stop),
        quantizer_(products, isa) {
    settings_.share4 = 0.0;
  }

  absl::Status Measure(const BitPlanOptions& options);
  BitPlan Share(double bits);

 private:
  absl::Status ProbeLayer(int layer, Calibration* calibration, SensitivityProbe* probe);
  std::vector<uint16_t> Halves(const quant::PackedStorage& packed) const;
  absl::Status Finish(int next_layer, SensitivityProbe* probe);

  CheckpointReader& reader_;
  const CalibrationWindows& windows_;
  MatrixSettings settings_;
  TeamProducts* const products_;
  ThreadTeam* const team_;
  const cpu::Isa isa_;
  const std::function<absl::Status(int, const char*)>& step_;
  const std::atomic<bool>* const stop_;
  LayerQuantizer quantizer_;
  std::vector<std::vector<StorageChoice>> choices_;
  std::vector<double> divergences_;
};

// What the matrix stands for, in fp16: whatever a kernel does to its inputs for the sake of packed
// weights is not what is probed, and eleven digits are enough for two bits.
std::vector<uint16_t> Planner::Halves(const quant::PackedStorage& packed) const {
  const Matrix matrix = packed.view();
  const int rows = MatrixRows(matrix), cols = MatrixCols(matrix);
  std::vector<uint16_t> halves(static_cast<size_t>(rows) * cols);
  team_->Run([&](int rank) {
    std::vector<float> row(cols);
    const fewbit::Share share = ShareOf(rows, 1, rank, team_->size());
    for (int r = share.begin; r < share.end; ++r) {
      cpu::DequantizeRow(matrix, r, row.data());
      std::transform(row.begin(), row.end(), halves.begin() + static_cast<int64_t>(r) * cols,
                     quant::FloatToHalf);
    }
  });
  return halves;
}

// Begins one variant per linear layer of `layer`.
absl::Status Planner::ProbeLayer(int layer, Calibration* calibration, SensitivityProbe* probe) {
  absl::StatusOr<LayerWeights> weights = reader_.Layer(layer);
  if (!weights.ok()) return weights.status();
  if (absl::Status status = step_(layer, "probing"); !status.ok()) return status;
  absl::Status status = calibration->Observe(*weights, settings_.method->full_hessian(),
                                             Calibration::Then::kAdvance, stop_);
  if (!status.ok()) return status;
  reader_.ReleaseLayer(layer);
  for (int r = 0; r < kNumLinearRoles; ++r) {
    const auto role = static_cast<LinearRole>(r);
    if (status = step_(layer, LinearRoleName(role)); !status.ok()) return status;
    const Matrix& matrix = (*weights)[role];
    Hessian* hessian = calibration->hessian(role);
    absl::StatusOr<QuantizedMatrix> quantized =
        quantizer_.Quantize(layer, role, matrix, hessian, settings_);
    if (!quantized.ok()) return quantized.status();
    choices_.push_back(quantizer_.Choices(matrix, *hessian, settings_));
    const std::vector<uint16_t> halves = Halves(quantizer_.Pack(quantized->unpacked));
    quantized = absl::CancelledError("not needed any more");
    LayerWeights altered = *weights;
    altered[role] = DenseMatrix{.data = halves.data(),
                                .dtype = DType::kF16,
                                .rows = MatrixRows(matrix),
                                .cols = MatrixCols(matrix)};
    calibration->DoneWith(role);
    if (status = probe->Branch(altered); !status.ok()) return status;
    reader_.ReleaseLayer(layer);  // read again as needed
  }
  probe->Advance(*weights);
  reader_.ReleaseLayer(layer);
  return CheckNotStopped(stop_);
}

// The rest of the layers, and what became of the variants.
absl::Status Planner::Finish(int next_layer, SensitivityProbe* probe) {
  for (int layer = next_layer; layer < reader_.spec().num_layers; ++layer) {
    if (absl::Status status = CheckNotStopped(stop_); !status.ok()) return status;
    absl::StatusOr<LayerWeights> weights = reader_.Layer(layer);
    if (!weights.ok()) return weights.status();
    probe->Advance(*weights);
    reader_.ReleaseLayer(layer);
  }
  absl::StatusOr<std::vector<float>> norm = reader_.FinalNorm();
  if (!norm.ok()) return norm.status();
  absl::StatusOr<Matrix> head = reader_.Head();
  if (!head.ok()) return head.status();
  const std::vector<double> divergences = probe->Divergences(*norm, *head);
  divergences_.insert(divergences_.end(), divergences.begin(), divergences.end());
  return absl::OkStatus();
}

absl::Status Planner::Measure(const BitPlanOptions& options) {
  const ModelSpec& spec = reader_.spec();
  const int64_t window_bytes = int64_t{windows_.context} * spec.hidden_size * sizeof(float);
  const ProbeSize size =
      SizeProbe(spec.num_layers, window_bytes, std::min(options.probe_windows, windows_.count()));
  CalibrationWindows few = windows_;
  few.tokens.resize(static_cast<size_t>(size.windows) * few.context);
  absl::StatusOr<Matrix> embedding = reader_.Embedding();
  if (!embedding.ok()) return embedding.status();
  const auto calibration = Calibration::Create(spec, *embedding, windows_, products_, isa_,
                                               /*with_drift=*/false, options.scratch_directory);
  if (!calibration.ok()) return calibration.status();
  auto hidden =
      ScratchFloats::InDirectory(options.scratch_directory, few.tokens.size() * spec.hidden_size);
  if (!hidden.ok()) return hidden.status();
  SensitivityProbe probe(spec, *embedding, std::move(few), products_, isa_, *std::move(hidden));
  reader_.ReleaseEnds();
  for (int begin = 0; begin < spec.num_layers; begin += size.layers_per_pass) {
    const int end = std::min(begin + size.layers_per_pass, spec.num_layers);
    for (int layer = begin; layer < end; ++layer) {
      absl::Status status = ProbeLayer(layer, calibration->get(), &probe);
      if (!status.ok()) return status;
    }
    if (absl::Status status = probe.Mark(); !status.ok()) return status;
    if (absl::Status status = Finish(end, &probe); !status.ok()) return status;
    probe.ReturnToMark();
  }
  return absl::OkStatus();
}

BitPlan Planner::Share(double bits) {
  int64_t weights = 0;
  std::vector<int> strips;
  for (size_t m = 0; m < choices_.size(); ++m) {
    const LinearShape shape = ShapeOf(reader_.spec(), static_cast<LinearRole>(m % kNumLinearRoles));
    weights += int64_t{shape.rows} * shape.cols;
    strips.push_back(shape.cols / quant::kStripChannels);
    // The smallest choice is what the probe measured, but for a few strips.
    const double loss = choices_[m][0].loss;
    const double per_error = loss > 0.0 ? divergences_[m] / loss : 0.0;
    for (StorageChoice& choice : choices_[m]) choice.loss *= per_error;
  }
  const std::vector<int> chosen =
      ShareBytes(choices_, static_cast<int64_t>(bits / 8.0 * static_cast<double>(weights)));
  BitPlan plan;
  for (size_t m = 0; m < choices_.size(); ++m) {
    plan.shares.push_back(static_cast<double>(choices_[m][chosen[m]].strips4) / strips[m]);
  }
  plan.divergences = divergences_;
  return plan;
}

}  // namespace

ProbeSize SizeProbe(int num_layers, int64_t bytes_per_window, int windows) {
  const int64_t per_window = kNumLinearRoles * bytes_per_window;  // of one layer's variants
  const auto layers_with = [&](int count) {
    const int64_t layers = kProbeBytes / (per_window * count);
    return static_cast<int>(std::clamp<int64_t>(layers, 1, num_layers));
  };
  while (windows > 1 && layers_with(windows) * kMostProbePasses < num_layers) --windows;
  return {.windows = windows, .layers_per_pass = layers_with(windows)};
}

absl::StatusOr<BitPlan> PlanBits(
    CheckpointReader* reader, const CalibrationWindows& windows, const MatrixSettings& settings,
    const BitPlanOptions& options, TeamProducts* products, cpu::Isa isa,
    const std::function<absl::Status(int layer, const char* activity)>& step,
    const std::atomic<bool>* stop) {
  Planner planner(reader, windows, settings, products, isa, step, stop);
  if (absl::Status status = planner.Measure(options); !status.ok()) return status;
  return planner.Share(options.bits);
}

}  // namespace fewbit
