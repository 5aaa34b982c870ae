// What this build calls itself: for --version, GetModelInfo and the metric build_info. The version
// comes from the top CMakeLists.txt, the commit from git at build time or from -DFEWBIT_COMMIT, the
// rest from CMake.
#pragma once

#include <string>
#include <string_view>

namespace fewbit {

struct BuildInfo {
  const char* version = "";   // 1.2.3
  const char* commit = "";    // 12 digits, "-dirty" behind them if files were changed; or "unknown"
  const char* compiler = "";  // name and version
  const char* cuda = "";      // version of the toolkit; "none" without the CUDA kernels
};

const BuildInfo& ThisBuild();

// Several lines for --version, the first one "PROGRAM VERSION".
std::string VersionText(std::string_view program);

}  // namespace fewbit
