// What quantizing made of a model, as a page for people (html_page.h). The same run gives the same
// page, interrupted or not: there is no time in it.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/quantize/checkpoint_quantizer.h"
#include "runtime/quantize/html_page.h"
#include "runtime/quantize/weight_map.h"

namespace fewbit {

// For any quantized checkpoint: bits per matrix, which channels have 4 bits, where the outliers
// are. REQUIRES: `maps` as ReadWeightMaps gives them.
std::vector<html::Section> WeightSections(const std::vector<WeightMap>& maps);

// The page of a run that has finished; reads options.out_dir. `command` is how to make it again.
absl::StatusOr<html::Page> ReportPage(const QuantizeOptions& options, const QuantizeReport& report,
                                      const std::string& command);

}  // namespace fewbit
