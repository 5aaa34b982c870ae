// A whole checkpoint to 2/4/16 bits, streamed: one layer's weights and the hidden states of the
// calibration windows are all that is in memory. It owns no text: calibration comes as token ids,
// progress goes out as numbers.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/eval/evaluate.h"
#include "runtime/models/model.h"
#include "runtime/quantize/matrix_quantizer.h"
#include "runtime/weights/quantized_writer.h"
#include "scheduler/ids.h"

namespace fewbit {

struct QuantizeOptions {
  std::string model_dir;
  std::string out_dir;             // must not exist, or be empty
  std::string method = "default";  // a row of kQuantizeMethods
  double bits = 2.9;               // average of the linear layers, for methods with shared_bits
  double share4 = 0.25;            // of the strips of each matrix, 0 to 1, for the other methods
  double outliers = 0.002;         // of the weights of each matrix, 0 to 0.1
  int embedding_bits = 16;         // 8 or 16
  int threads = 0;                 // 0: one per processor
  int calibration_windows = 128;   // at most; each `context` tokens
  int context = 512;               // tokens
  int probe_windows = 8;           // of these, for measuring what each matrix is worth
  int held_out_windows = 8;        // of the rest of the text, for measuring what came of it
  uint64_t seed = 0;               // which windows
  bool restart = false;            // discard what an interrupted run left, whatever it was
  std::string program;             // name of the build; only the same one goes on with a run

  absl::Status Validate() const;  // INVALID_ARGUMENT names the option, its value and the limits
};

struct QuantizeProgress {
  int layer = 0;
  int num_layers = 0;
  const char* activity = "";  // "calibrating", the role's name, "measuring"
  int done = 0;               // of `total`, in steps of about equal kind
  int total = 0;
  int resumed_layers = 0;  // that an interrupted run had finished
};

struct QuantizeReport {
  QuantizedBytes bytes;
  std::vector<MatrixQuality> matrices;               // [layer * kNumLinearRoles + role]
  std::vector<double> divergences;                   // likewise, BitPlan's; may be empty
  std::array<MatrixQuality, kNumLinearRoles> roles;  // sums over layers
  MatrixQuality all;
  int windows = 0;  // calibration windows used
  int64_t calibration_tokens = 0;
  double average_bits = 0.0;    // linear layers, from the bytes in the file
  double embedding_bits = 0.0;  // embedding and untied head, likewise
  int64_t original_bytes = 0;   // of all tensors
  int64_t original_linear_bytes = 0;
  int64_t quantized_bytes = 0;
  TextScore held_out;             // against the original
  bool held_out_is_seen = false;  // the text has no windows left: it is calibration's own
};

// Reads options.model_dir, writes options.out_dir, its canary included. `progress` may be empty;
// called on the caller's thread. When *stop becomes true the run ends with CANCELLED at the next
// matrix. On any error nothing is left at out_dir; once the bits are shared out, out_dir.partial
// stays, and a run with the same arguments (but for threads) goes on after the layers finished
// there, to the same bytes. Errors: those of CheckpointReader::Open and QuantizedWriter,
// INVALID_ARGUMENT for weights or calibration that cannot be used, FAILED_PRECONDITION for a source
// that is quantized already or when out_dir.partial is of another run.
absl::StatusOr<QuantizeReport> QuantizeCheckpoint(
    const QuantizeOptions& options, std::span<const TokenId> calibration,
    const std::function<void(const QuantizeProgress&)>& progress, const std::atomic<bool>* stop);

// The closing table, several lines.
std::string FormatReport(const QuantizeOptions& options, const QuantizeReport& report);

}  // namespace fewbit
