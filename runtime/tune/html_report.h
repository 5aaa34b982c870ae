// What tuning did, as a page for people (html_page.h). The same run gives the same page,
// interrupted or not: there is no time in it.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "runtime/quantize/html_page.h"
#include "runtime/tune/tune_options.h"

namespace fewbit::tune {

// The page of a run that has finished; reads options.out_dir. `command` is how to make it again.
absl::StatusOr<html::Page> ReportPage(const TuneOptions& options, const TuneReport& report,
                                      const std::string& command);

}  // namespace fewbit::tune
