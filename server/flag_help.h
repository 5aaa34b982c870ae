// The text of --help for our programs: Abseil's own lists flags by source file. Used by the
// programs' flag files only.
#pragma once

#include <string>
#include <vector>

namespace fewbit {

struct FlagGroup {
  std::string title;
  std::vector<std::string> flags;  // names of defined flags
};

// One line or more per flag: name, help, and the default in parentheses unless it is empty or
// false. 100 columns.
std::string FlagHelp(const std::vector<FlagGroup>& groups);

}  // namespace fewbit
