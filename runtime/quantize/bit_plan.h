// The share of 4-bit strips of every matrix of a checkpoint, so that a given average of bits costs
// the model as little as possible. Every matrix alone is quantized with 2 bits throughout, and the
// divergence of the model's answers measured (sensitivity_probe.h); how much of it 4-bit strips
// take back is reckoned from the errors of the strips (StorageChoices); bit_allocation.h shares out
// the bytes.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/quantize/calibration.h"
#include "runtime/quantize/layer_quantizer.h"
#include "runtime/weights/checkpoint.h"

namespace fewbit {

struct BitPlanOptions {
  double bits = 2.9;      // average of the linear layers, from bytes
  int probe_windows = 8;  // of the calibration windows, at most; fewer for very large models
  std::string scratch_directory;  // for hidden states
};

// What the plan rests on, for reports; all [layer * kNumLinearRoles + role].
struct BitPlan {
  std::vector<double> shares;       // of 4-bit strips
  std::vector<double> divergences;  // nats per token, of that matrix at 2 bits
};

// Streams the checkpoint once or, so that the probes take no more than kProbeBytes, a few times:
// later passes begin where their own layers do. `step` is told what begins now and may end the run
// with its error; it is called L * (kNumLinearRoles + 1) times.
inline constexpr int64_t kProbeBytes = 2ll << 30;
inline constexpr int kMostProbePasses = 4;  // then fewer windows are used
absl::StatusOr<BitPlan> PlanBits(
    CheckpointReader* reader, const CalibrationWindows& windows, const MatrixSettings& settings,
    const BitPlanOptions& options, TeamProducts* products, cpu::Isa isa,
    const std::function<absl::Status(int layer, const char* activity)>& step,
    const std::atomic<bool>* stop);

// How many windows the probe takes, and from how many layers at once. Pure.
struct ProbeSize {
  int windows = 0;
  int layers_per_pass = 0;
};
ProbeSize SizeProbe(int num_layers, int64_t bytes_per_window, int windows);

}  // namespace fewbit
