// Splits the text of a module into its entry points and shared variables.
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>

#include "tests/emulator/ptx.h"

namespace fewbit::emulator {

void Die(const std::string& message) {
  std::fflush(stdout);
  std::fprintf(stderr, "emulator: %s\n", message.c_str());
  std::_Exit(70);
}

namespace {

// A name as PTX has them; from `at`, empty if none begins there.
std::string_view Name(std::string_view text, size_t at) {
  size_t end = at;
  while (end < text.size() && (std::isalnum(static_cast<unsigned char>(text[end])) != 0 ||
                               text[end] == '_' || text[end] == '$')) {
    ++end;
  }
  return text.substr(at, end - at);
}

size_t NumberBehind(std::string_view text, std::string_view word, size_t if_missing) {
  const size_t at = text.find(word);
  if (at == std::string_view::npos) return if_missing;
  size_t begin = at + word.size();
  while (begin < text.size() && text[begin] == ' ') ++begin;
  size_t value = if_missing;
  std::from_chars(text.data() + begin, text.data() + text.size(), value);
  return value;
}

// The end of the block whose '{' is at `open`, behind its '}'.
size_t BlockEnd(std::string_view text, size_t open) {
  int depth = 0;
  for (size_t i = open; i < text.size(); ++i) {
    if (text[i] == '{') ++depth;
    if (text[i] == '}' && --depth == 0) return i + 1;
  }
  Die("a block of PTX has no end");
}

// ".extern .shared .align 16 .b8 name[24];": .b8 is the only type nvcc writes for arrays.
SharedVariable ReadShared(std::string_view line) {
  SharedVariable variable;
  variable.alignment = NumberBehind(line, ".align", 1);
  const size_t bracket = line.find('[');
  if (bracket == std::string_view::npos) {
    const size_t type = line.find(".b", line.find(".shared") + 7);
    if (type == std::string_view::npos)
      Die("shared variable of unknown type: " + std::string(line));
    variable.bytes = NumberBehind(line.substr(type), ".b", 0) / 8;
    variable.alignment = std::max(variable.alignment, variable.bytes);
    variable.name = Name(line, line.find_last_of(" \t") + 1);
    return variable;
  }
  if (line.find(".b8") == std::string_view::npos) {
    Die("shared array of unknown type: " + std::string(line));
  }
  variable.bytes = NumberBehind(line.substr(bracket), "[", 0);
  const size_t begin = line.find_last_of(" \t", bracket) + 1;
  variable.name = Name(line, begin);
  return variable;
}

}  // namespace

ModuleText SplitModule(std::string_view ptx) {
  ModuleText module;
  int line_number = 1;
  size_t at = 0;
  while (at < ptx.size()) {
    const size_t end = std::min(ptx.find('\n', at), ptx.size());
    const std::string_view line = ptx.substr(at, end - at);
    const size_t entry = line.find(".entry ");
    if (entry != std::string_view::npos) {
      EntryText text;
      text.name = Name(line, entry + 7);
      text.line = line_number;
      const size_t open = ptx.find("\n{", at) + 1;
      const size_t close = BlockEnd(ptx, open);
      text.head = ptx.substr(at, open - at);
      text.body = ptx.substr(open + 1, close - open - 2);
      text.line += static_cast<int>(std::count(text.head.begin(), text.head.end(), '\n'));
      line_number += static_cast<int>(std::count(ptx.begin() + static_cast<long>(at),
                                                 ptx.begin() + static_cast<long>(close), '\n'));
      at = close;
      module.entries.push_back(std::move(text));
      continue;
    }
    if (line.find(".shared ") != std::string_view::npos) {
      module.shared.push_back(ReadShared(line.substr(0, line.find(';'))));
    } else if (line.find(".const ") != std::string_view::npos ||
               line.find(".func ") != std::string_view::npos ||
               (line.find(".global ") != std::string_view::npos && line[0] == '.')) {
      Die("variables and functions of a module are not known: " + std::string(line));
    }
    at = end + 1;
    ++line_number;
  }
  return module;
}

}  // namespace fewbit::emulator
