// Tuning as fewbit-tune and fewbit-quantize --tune do it: the flags they share, and a run with its
// progress line.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "runtime/tune/tune_options.h"
#include "scheduler/ids.h"
#include "server/tools/tool.h"

namespace fewbit {

// Names of the flags, in the order of --help.
std::vector<const char*> TuneFlags();

// From these flags; directories, seed, threads, restart and program are left to the caller.
tune::TuneOptions TuneOptionsFromFlags();

// TuneCheckpoint on options.device with a progress line; prints the closing table, and writes the
// page `report_path` (empty: none), which says that `command` makes it again.
absl::Status TuneAndTell(const tune::TuneOptions& options, std::span<const TokenId> calibration,
                         const StopSignal& stop, const std::string& report_path,
                         const std::string& command);

}  // namespace fewbit
