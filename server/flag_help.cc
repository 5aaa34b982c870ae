#include "server/flag_help.h"

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <string_view>

#include "absl/flags/commandlineflag.h"
#include "absl/flags/reflection.h"

namespace fewbit {
namespace {

constexpr size_t kHelpColumn = 28;
constexpr size_t kWidth = 100;

// Appends the words of `text` to a line that has reached kHelpColumn.
void AppendWrapped(std::string_view text, std::string* out) {
  size_t column = kHelpColumn;
  while (!text.empty()) {
    const size_t end = std::min(text.find(' '), text.size());
    if (column > kHelpColumn && column + 1 + end > kWidth) {
      *out += '\n' + std::string(kHelpColumn, ' ');
      column = kHelpColumn;
    } else if (column > kHelpColumn) {
      *out += ' ';
      ++column;
    }
    *out += text.substr(0, end);
    column += end;
    text.remove_prefix(std::min(end + 1, text.size()));
  }
}

}  // namespace

std::string FlagHelp(const std::vector<FlagGroup>& groups) {
  std::string out;
  for (const FlagGroup& group : groups) {
    out += '\n' + group.title + '\n';
    for (const std::string& name : group.flags) {
      const absl::CommandLineFlag* flag = absl::FindCommandLineFlag(name);
      if (flag == nullptr) std::abort();  // a name that is no flag: the caller's bug
      std::string line = "  --" + name;
      line.resize(std::max(line.size() + 2, kHelpColumn), ' ');
      std::string help = flag->Help();
      const std::string fallback = flag->DefaultValue();
      if (!fallback.empty() && fallback != "false") help += " (" + fallback + ")";
      out += line;
      AppendWrapped(help, &out);
      out += '\n';
    }
  }
  return out;
}

}  // namespace fewbit
