// From the text of an entry point to instructions.
#include <algorithm>
#include <cctype>
#include <charconv>
#include <optional>
#include <unordered_map>

#include "tests/emulator/ptx.h"

namespace fewbit::emulator {
namespace {

bool IsSpace(char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; }

std::string_view Trim(std::string_view text) {
  while (!text.empty() && IsSpace(text.front())) text.remove_prefix(1);
  while (!text.empty() && IsSpace(text.back())) text.remove_suffix(1);
  return text;
}

// Cells of a register of this type; predicates take one for the whole warp, and one that keeps all
// others at even places.
size_t RegisterCells(std::string_view type) {
  if (type == ".pred") return 2;
  if (type == ".b64" || type == ".f64" || type == ".u64" || type == ".s64") return 2 * kWarpLanes;
  return kWarpLanes;
}

class Decoder {
 public:
  Decoder(const EntryText& entry, const std::vector<SharedVariable>& shared) : line_(entry.line) {
    kernel_.name = entry.name;
    kernel_.special_cells.fill(-1);
    ReadHead(entry.head);
    kernel_.register_cells = 2 * kWarpLanes;  // what is thrown away, "_"
    shared_ = shared;
    for (const SharedVariable& variable : shared_) {
      if (variable.bytes > 0) PlaceShared(variable);
    }
    Statements(entry.body);
    PlaceDynamicShared();
    for (size_t i = 0; i < pending_.size(); ++i) Encode(static_cast<uint32_t>(i));
    Link();
    AllocateRegisters(&kernel_, cells_);
  }
  Kernel Take() { return std::move(kernel_); }

 private:
  struct Pending {
    std::string text;  // without guard
    std::string guard;
    int line;
    std::vector<std::pair<std::string, std::string>> scope;  // names of the block it stands in
  };

  [[noreturn]] void Fail(const std::string& what, const Pending& p) const {
    Die(kernel_.name + ", line " + std::to_string(p.line) + ": " + what + ": " + p.text);
  }

  void ReadHead(std::string_view head) {
    size_t at = 0;
    while ((at = head.find(".param ", at)) != std::string_view::npos) {
      const size_t end = head.find_first_of(",\n)", at);
      std::string_view text = Trim(head.substr(at + 7, end - at - 7));
      at = end;
      size_t alignment = 0, bytes = 0;
      if (text.starts_with(".align ")) {
        std::from_chars(text.data() + 7, text.data() + text.size(), alignment);
        text = Trim(text.substr(text.find_first_of(" \t", 7)));
      }
      size_t digits = 0;
      while (digits < text.size() && std::isdigit(static_cast<unsigned char>(text[digits])) == 0) {
        ++digits;
      }
      std::from_chars(text.data() + digits, text.data() + text.size(), bytes);
      bytes /= 8;
      alignment = std::max(alignment, bytes);
      const size_t bracket = text.find('[');
      if (bracket != std::string_view::npos) {
        size_t count = 0;
        std::from_chars(text.data() + bracket + 1, text.data() + text.size(), count);
        bytes *= count;
      }
      const size_t name = text.find_first_of(" \t") + 1;
      const size_t offset = (kernel_.parameter_bytes + alignment - 1) / alignment * alignment;
      symbols_[std::string(Trim(text.substr(name, bracket - name)))] = kParameterWindow + offset;
      kernel_.parameters.push_back({offset, bytes});
      kernel_.parameter_bytes = offset + bytes;
    }
    const size_t most = head.find(".maxntid");
    if (most == std::string_view::npos) return;
    unsigned threads = 1;
    const char* digit = head.data() + most + 8;
    for (int i = 0; i < 3; ++i) {
      while (*digit == ' ' || *digit == ',') ++digit;
      unsigned value = 1;
      digit = std::from_chars(digit, head.data() + head.size(), value).ptr;
      threads *= value;
    }
    kernel_.max_threads = threads;
  }

  void PlaceShared(const SharedVariable& variable) {
    const size_t begin = (kernel_.static_shared_bytes + variable.alignment - 1) /
                         variable.alignment * variable.alignment;
    symbols_[variable.name] = kSharedBegin + begin;
    kernel_.static_shared_bytes = begin + variable.bytes;
  }
  // Dynamic shared memory lies behind what the kernel declares.
  void PlaceDynamicShared() {
    for (const SharedVariable& variable : shared_) {
      if (variable.bytes > 0) continue;
      SharedVariable empty = variable;
      PlaceShared(empty);
    }
  }

  // Declarations are read, instructions are kept: names may be used before they are declared.
  void Statements(std::string_view body) {
    std::vector<std::pair<std::string, std::string>> scope;
    std::vector<size_t> scope_sizes;
    std::string text;
    int begin_line = line_;
    for (size_t i = 0; i < body.size(); ++i) {
      const char c = body[i];
      if (c == '\n') ++line_;
      if (c == '/' && i + 1 < body.size() && body[i + 1] == '/') {
        i = std::min(body.find('\n', i), body.size()) - 1;
        continue;
      }
      const bool empty = Trim(text).empty();
      if (empty) {
        text.clear();
        begin_line = line_;
        if (IsSpace(c) || c == ';') continue;
        if (c == '{') {
          scope_sizes.push_back(scope.size());
          continue;
        }
        if (c == '}') {
          scope.resize(scope_sizes.back());
          scope_sizes.pop_back();
          continue;
        }
      }
      if (c == ':' && IsLabel(text)) {
        labels_[std::string(Trim(text))] = static_cast<uint32_t>(pending_.size());
        text.clear();
        continue;
      }
      if (c != ';') {
        text.push_back(IsSpace(c) ? ' ' : c);
        continue;
      }
      Statement(std::string(Trim(text)), begin_line, &scope, !scope_sizes.empty());
      text.clear();
    }
  }

  static bool IsLabel(std::string_view text) {
    text = Trim(text);
    return std::none_of(text.begin(), text.end(), [](char c) { return IsSpace(c) || c == '.'; });
  }

  void Statement(const std::string& text, int line,
                 std::vector<std::pair<std::string, std::string>>* scope, bool in_scope) {
    if (text.starts_with(".reg")) {
      DeclareRegisters(text, in_scope ? scope : nullptr);
      return;
    }
    if (text.starts_with(".shared")) {
      SharedVariable variable = SplitModule(text + ";\n").shared.at(0);
      PlaceShared(variable);
      return;
    }
    if (text.starts_with(".pragma")) return;
    Pending p{text, "", line, *scope};
    if (text[0] == '@') {
      const size_t space = text.find(' ');
      p.guard = text.substr(1, space - 1);
      p.text = Trim(std::string_view(text).substr(space));
    }
    pending_.push_back(std::move(p));
  }

  // ".reg .b32 %r<12>" or ".reg .pred p, q".
  void DeclareRegisters(std::string_view text,
                        std::vector<std::pair<std::string, std::string>>* scope) {
    text = Trim(text.substr(4));
    const size_t space = text.find(' ');
    const size_t cells = RegisterCells(text.substr(0, space));
    text = Trim(text.substr(space));
    while (!text.empty()) {
      const size_t comma = std::min(text.find(','), text.size());
      std::string name(Trim(text.substr(0, comma)));
      text = comma == text.size() ? std::string_view() : text.substr(comma + 1);
      if (name.back() == '>') {
        const size_t angle = name.find('<');
        size_t count = 0;
        std::from_chars(name.data() + angle + 1, name.data() + name.size(), count);
        for (size_t i = 0; i < count; ++i) {
          AddRegister(name.substr(0, angle) + std::to_string(i), cells);
        }
        continue;
      }
      if (scope != nullptr) {
        const std::string unique = name + "@" + std::to_string(scoped_names_++);
        scope->emplace_back(name, unique);
        name = unique;
      }
      AddRegister(name, cells);
    }
  }

  void AddRegister(const std::string& name, size_t cells) {
    const auto place = static_cast<uint32_t>(kernel_.register_cells);
    registers_[name] = place;
    cells_[place] = static_cast<uint32_t>(cells);
    kernel_.register_cells += cells;
  }

  std::string Unique(std::string_view name, const Pending& p) const {
    for (auto it = p.scope.rbegin(); it != p.scope.rend(); ++it) {
      if (it->first == name) return it->second;
    }
    return std::string(name);
  }

  uint32_t Constant(uint64_t value) {
    const auto [it, is_new] = constants_.try_emplace(value, kernel_.constants.size());
    if (is_new) {
      std::vector<uint32_t>& cells = kernel_.constants;
      cells.insert(cells.end(), kWarpLanes, static_cast<uint32_t>(value));
      for (int lane = 0; lane < kWarpLanes; ++lane) {
        cells.push_back(static_cast<uint32_t>(value));
        cells.push_back(static_cast<uint32_t>(value >> 32));
      }
    }
    return it->second | Operand::kConstant;
  }

  static std::optional<uint64_t> Number(std::string_view text) {
    const char* end = text.data() + text.size();
    uint64_t value = 0;
    if (text.starts_with("0f") || text.starts_with("0F") || text.starts_with("0d") ||
        text.starts_with("0D") || text.starts_with("0x") || text.starts_with("0X")) {
      if (std::from_chars(text.data() + 2, end, value, 16).ptr == end) return value;
      return std::nullopt;
    }
    if (text.starts_with("-")) {
      int64_t negative = 0;
      if (std::from_chars(text.data(), end, negative).ptr != end) return std::nullopt;
      return static_cast<uint64_t>(negative);
    }
    if (std::from_chars(text.data(), end, value).ptr == end) return value;
    if (text == "1.0") return 0x3f800000;  // of createpolicy
    return std::nullopt;
  }

  uint32_t Place(std::string_view name, const Pending& p) {
    if (name == "_") return 0;
    if (const auto it = registers_.find(Unique(name, p)); it != registers_.end()) return it->second;
    for (size_t i = 0; i < kSpecialRegisters.size(); ++i) {
      if (name != kSpecialRegisters[i]) continue;
      if (kernel_.special_cells[i] < 0) {
        kernel_.special_cells[i] = static_cast<int64_t>(kernel_.register_cells);
        kernel_.register_cells += kWarpLanes;
      }
      return static_cast<uint32_t>(kernel_.special_cells[i]);
    }
    if (const auto it = symbols_.find(std::string(name)); it != symbols_.end()) {
      return Constant(it->second);
    }
    if (const std::optional<uint64_t> number = Number(name); number.has_value()) {
      return Constant(*number);
    }
    Fail("what is '" + std::string(name) + "'?", p);
  }

  void AddOperand(std::string_view text, const Pending& p) {
    text = Trim(text);
    Operand operand;
    if (text.starts_with("[")) {
      text = Trim(text.substr(1, text.find(']') - 1));
      const size_t plus = text.find('+');
      if (plus != std::string_view::npos) {
        const std::string_view number = text.substr(plus + 1);
        std::from_chars(number.data(), number.data() + number.size(), operand.offset);
        text = text.substr(0, plus);
      }
    }
    operand.place = Place(text, p);
    const auto it = cells_.find(operand.place);
    operand.wide = it != cells_.end() && it->second == 2 * kWarpLanes;
    kernel_.operands.push_back(operand);
  }

  // Commas part operands, '|' a second result; braces group. The number of elements of the first
  // operand is returned.
  uint8_t AddOperands(std::string_view text, const Pending& p) {
    uint8_t first = 0;
    const size_t begin = kernel_.operands.size();
    bool in_group = false;
    std::string piece;
    const auto finish = [&] {
      if (!Trim(piece).empty()) AddOperand(piece, p);
      piece.clear();
      if (!in_group && first == 0) first = static_cast<uint8_t>(kernel_.operands.size() - begin);
    };
    for (const char c : text) {
      if (c == '{' || c == '}') {
        if (c == '}') finish();
        in_group = c == '{';
      } else if (c == ',' || c == '|') {
        finish();
      } else {
        piece.push_back(c);
      }
    }
    finish();
    return first;
  }

  void Encode(uint32_t index) {
    const Pending& p = pending_[index];
    const size_t space = std::min(p.text.find(' '), p.text.size());
    const std::string_view opcode = std::string_view(p.text).substr(0, space);
    const std::string_view rest = std::string_view(p.text).substr(space);
    Instruction in;
    in.text = index;
    in.operands = static_cast<uint32_t>(kernel_.operands.size());
    kernel_.statements.push_back({p.text, p.line});
    if (!p.guard.empty()) {
      in.guard_negated = p.guard[0] == '!';
      in.guard = static_cast<int32_t>(
          Place(std::string_view(p.guard).substr(in.guard_negated ? 1 : 0), p));
    }
    if (opcode == "bra" || opcode == "bra.uni") {
      in.kind = Kind::kBranch;
      branches_.emplace_back(index, Trim(rest));
    } else if (opcode == "ret" || opcode == "exit") {
      in.kind = Kind::kExit;
    } else {
      const Operation operation = FindOperation(opcode);
      if (operation.handler == nullptr) Fail("unknown opcode", p);
      in.handler = operation.handler;
      in.meeting = operation.meeting;
      in.space = operation.space;
      in.vector = operation.vector;
      in.first_group = AddOperands(rest, p);
      in.operand_count = static_cast<uint8_t>(kernel_.operands.size() - in.operands);
      if (operation.operands >= 0 && in.operand_count != operation.operands) {
        Fail("wrong number of operands", p);
      }
    }
    kernel_.code.push_back(in);
  }

  void Link() {
    for (const auto& [index, label] : branches_) {
      const auto it = labels_.find(std::string(label));
      if (it == labels_.end()) Fail("unknown label", pending_[index]);
      kernel_.code[index].target = it->second;
    }
    // An exit of its own behind the last statement, where labels may point to.
    Instruction end;
    end.kind = Kind::kExit;
    end.text = static_cast<uint32_t>(kernel_.statements.size());
    kernel_.statements.push_back({"end of the kernel", line_});
    kernel_.code.push_back(end);
    for (const auto& [index, label] : branches_) {
      kernel_.code[kernel_.code[index].target].is_label = true;
    }
  }

  Kernel kernel_;
  int line_;
  std::vector<SharedVariable> shared_;
  std::vector<Pending> pending_;
  std::unordered_map<std::string, uint64_t> symbols_;
  std::unordered_map<std::string, uint32_t> registers_, labels_;
  std::unordered_map<uint32_t, uint32_t> cells_;  // by place
  std::unordered_map<uint64_t, uint32_t> constants_;
  std::vector<std::pair<uint32_t, std::string_view>> branches_;
  int scoped_names_ = 0;
};

}  // namespace

Kernel Decode(const EntryText& entry, const std::vector<SharedVariable>& shared) {
  return Decoder(entry, shared).Take();
}

}  // namespace fewbit::emulator
