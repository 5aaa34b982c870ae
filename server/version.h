// What this build calls itself; the number comes from the top CMakeLists.txt.
#pragma once

namespace fewbit {

inline constexpr char kVersion[] = FEWBIT_VERSION;

}  // namespace fewbit
