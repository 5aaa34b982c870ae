#include "server/build_info.h"

#include "server/build_info_values.h"  // written by build_info.cmake

namespace fewbit {

const BuildInfo& ThisBuild() {
  static constexpr BuildInfo kThis{FEWBIT_VERSION, FEWBIT_BUILD_COMMIT, FEWBIT_BUILD_COMPILER,
                                   FEWBIT_BUILD_CUDA};
  return kThis;
}

std::string VersionText(std::string_view program) {
  const BuildInfo& build = ThisBuild();
  std::string text(program);
  text += std::string(" ") + build.version + "\n";
  text += std::string("commit ") + build.commit + ", compiler " + build.compiler + ", CUDA " +
          build.cuda + "\n";
  return text;
}

}  // namespace fewbit
