// A kernel of PTX, decoded: what warp.h runs.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tests/emulator/emulator.h"

namespace fewbit::emulator {

struct Warp;
struct Instruction;

inline constexpr int kWarpLanes = 32;
inline constexpr uint32_t kAllLanes = 0xffffffffu;

// What an instruction leaves its warp to do.
enum class Flow : uint8_t {
  kNext,   // goes on
  kYield,  // goes on, but others first
  kWait    // is executed again when Warp::wait is over
};

// Executes one instruction for the lanes of `lanes`, which is not 0.
using Handler = Flow (*)(Warp& warp, const Instruction& instruction, uint32_t lanes);

// A value of every lane, in 32-bit cells or, for 64-bit types, in pairs of cells. 16- and 8-bit
// values lie in the low bits of a cell, predicates of all lanes as bits of one cell.
struct Operand {
  // Index of the first cell among a warp's registers; with kConstant: among the kernel's constants,
  // where the value stands as kWarpLanes cells, then as kWarpLanes pairs.
  uint32_t place = 0;
  int32_t offset = 0;  // of an address in brackets, bytes
  bool wide = false;   // a register of 64 bits

  static constexpr uint32_t kConstant = 0x80000000u;
};

enum class Kind : uint8_t { kPlain, kBranch, kExit };

// Which lanes of the warp have to be at an instruction before it is executed.
enum class Meeting : uint8_t { kNone, kWholeWarp, kMemberMask };

enum class Space : uint8_t { kGeneric, kGlobal, kShared, kParameter };

struct Instruction {
  Handler handler = nullptr;
  Kind kind = Kind::kPlain;
  Meeting meeting = Meeting::kNone;
  Space space = Space::kGeneric;  // of loads, stores and atomics
  bool guard_negated = false;
  bool is_label = false;      // some branch leads here
  uint8_t operand_count = 0;  // vectors count as their elements
  uint8_t first_group = 1;    // elements of the first operand
  uint8_t vector = 1;         // elements of a load or store
  int32_t guard = -1;         // cell of the predicate, -1: none
  uint32_t operands = 0;      // index of the first among the kernel's
  uint32_t target = 0;        // of a branch: index of an instruction
  uint32_t text = 0;          // index of the statement
};

struct Statement {
  std::string text;
  int line;  // of the module's PTX
};

class Kernel {
 public:
  std::string name;
  std::vector<Parameter> parameters;
  size_t parameter_bytes = 0;
  size_t static_shared_bytes = 0;
  // Of the block, from .maxntid; 1024 if it is not given.
  unsigned max_threads = 1024;

  std::vector<Instruction> code;
  std::vector<Operand> operands;
  std::vector<uint32_t> constants;
  std::vector<Statement> statements;
  size_t register_cells = 0;
  // Cells of %tid.x and so on, by index into kSpecialRegisters; -1: not used.
  std::array<int64_t, 16> special_cells;
};

inline constexpr std::array<std::string_view, 12> kSpecialRegisters = {
    "%tid.x",   "%tid.y",    "%tid.z",    "%ntid.x",          "%ntid.y",           "%ctaid.x",
    "%ctaid.y", "%nctaid.x", "%nctaid.y", "%cluster_ctarank", "%cluster_nctarank", "%laneid"};

// Addresses. Shared memory of a block begins at kSharedBegin of its window, so that 0 is no
// address; of block r of the cluster, the bits above kRankShift are r + 1. Generic addresses of
// shared memory and of arguments are these behind a base where no allocation lies.
inline constexpr uint32_t kSharedBegin = 1024;
inline constexpr int kRankShift = 24;
inline constexpr uint64_t kSharedWindow = uint64_t{0x5a} << 56;
inline constexpr uint64_t kParameterWindow = uint64_t{0x5b} << 56;

// An entry point as text: what stands between its name and the end of its body.
struct EntryText {
  std::string name, head, body;
  int line;
};
struct SharedVariable {
  std::string name;
  size_t bytes, alignment;  // bytes = 0: the dynamic part
};
struct ModuleText {
  std::vector<EntryText> entries;
  std::vector<SharedVariable> shared;
};

ModuleText SplitModule(std::string_view ptx);
Kernel Decode(const EntryText& entry, const std::vector<SharedVariable>& shared);

// Gives registers whose lives do not overlap the same cells. `cells` of each register by its place.
void AllocateRegisters(Kernel* kernel, const std::unordered_map<uint32_t, uint32_t>& cells);

// How an opcode with all its modifiers is executed. `operands` counts elements of vectors; -1:
// checked by Decode's caller or any number.
struct Operation {
  Handler handler = nullptr;
  int operands = -1;
  Meeting meeting = Meeting::kNone;
  Space space = Space::kGeneric;
  uint8_t vector = 1;
};
// handler is null if the opcode is not known.
Operation FindOperation(std::string_view opcode);

[[noreturn]] void Die(const std::string& message);

}  // namespace fewbit::emulator
