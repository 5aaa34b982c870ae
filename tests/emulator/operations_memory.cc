// Loads, stores and atomics: PTX ISA, "Data Movement" and "Parallel Synchronization". The emulator
// runs one instruction at a time, so orders and scopes need no more than that; caches are not
// emulated.
#include <algorithm>
#include <array>
#include <vector>

#include "tests/emulator/warp.h"

namespace fewbit::emulator {
namespace {

std::vector<std::string_view> Parts(std::string_view opcode) {
  std::vector<std::string_view> parts;
  while (true) {
    const size_t dot = opcode.find('.');
    parts.push_back(opcode.substr(0, dot));
    if (dot == std::string_view::npos) return parts;
    opcode.remove_prefix(dot + 1);
  }
}

uint64_t Address(const Warp& warp, const Operand& o, int lane) {
  const auto offset = static_cast<int64_t>(o.offset);
  // Addresses within shared memory may be 32 bits wide; a symbol is a constant.
  if (!o.wide && (o.place & Operand::kConstant) == 0) {
    return static_cast<uint32_t>(warp.Cells(o)[lane] + static_cast<uint32_t>(offset));
  }
  return warp.Pairs(o)[lane] + static_cast<uint64_t>(offset);
}

// A register may be wider than what is loaded or stored; it is filled up with zeros or signs.
template <typename T>
void SetRegister(Warp& warp, const Operand& o, int lane, T value) {
  using Extended = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;
  const auto extended = static_cast<uint64_t>(static_cast<Extended>(value));
  if (o.wide) {
    warp.Pairs(o)[lane] = extended;
  } else {
    warp.Cells(o)[lane] = static_cast<uint32_t>(extended);
  }
}
template <typename T>
T GetRegister(const Warp& warp, const Operand& o, int lane) {
  // Constants have their pairs, too.
  const bool is_pair = o.wide || (o.place & Operand::kConstant) != 0;
  return static_cast<T>(is_pair ? warp.Pairs(o)[lane] : warp.Cells(o)[lane]);
}

template <typename T>
Flow Load(Warp& warp, const Instruction& in, uint32_t lanes) {
  const int n = in.vector;
  const Operand& address = warp.operand(in, n);
  std::array<uint64_t, kWarpLanes> at;
  ForLanes(lanes, [&](int lane) { at[lane] = Address(warp, address, lane); });
  ForLanes(lanes, [&](int lane) {
    const uint8_t* from = Locate(warp, in, lane, in.space, at[lane], n * sizeof(T), n * sizeof(T));
    CheckRead(warp, in, lane, from, n * sizeof(T));
    for (int i = 0; i < n; ++i) {
      T value;
      std::memcpy(&value, from + i * sizeof(T), sizeof(T));
      SetRegister(warp, warp.operand(in, i), lane, value);
    }
  });
  return Flow::kNext;
}

template <typename T>
Flow Store(Warp& warp, const Instruction& in, uint32_t lanes) {
  const int n = in.vector;
  const Operand& address = warp.operand(in, 0);
  ForLanes(lanes, [&](int lane) {
    uint8_t* to = Locate(warp, in, lane, in.space, Address(warp, address, lane), n * sizeof(T),
                         n * sizeof(T));
    NoteWrite(warp, in, lane, to, n * sizeof(T));
    for (int i = 0; i < n; ++i) {
      const T value = GetRegister<T>(warp, warp.operand(in, 1 + i), lane);
      std::memcpy(to + i * sizeof(T), &value, sizeof(T));
    }
  });
  return Flow::kNext;
}

// atom has a result, red has none: then everything is one operand further left.
template <typename T, typename F, bool kResult>
Flow Atomic(Warp& warp, const Instruction& in, uint32_t lanes) {
  constexpr int kAddress = kResult ? 1 : 0;
  const Operand& address = warp.operand(in, kAddress);
  const CellOf<T>* with = Source<T>(std::as_const(warp), warp.operand(in, kAddress + 1));
  ForLanes(lanes, [&](int lane) {
    uint8_t* at =
        Locate(warp, in, lane, in.space, Address(warp, address, lane), sizeof(T), sizeof(T));
    CheckRead(warp, in, lane, at, sizeof(T));
    NoteWrite(warp, in, lane, at, sizeof(T));
    T value;
    std::memcpy(&value, at, sizeof(T));
    const T result = F{}(value, FromCell<T>(with[lane]));
    std::memcpy(at, &result, sizeof(T));
    if constexpr (kResult) Target<T>(warp, warp.operand(in, 0))[lane] = ToCell<T>(value);
  });
  return Flow::kNext;
}

template <bool kResult>
Operation FindAtomic(std::string_view function, std::string_view type) {
  const int operands = kResult ? 3 : 2;
  if (function == "add" && (type == "u32" || type == "s32")) {
    return {Atomic<uint32_t, std::plus<>, kResult>, operands};
  }
  if (function == "add" && type == "u64") {
    return {Atomic<uint64_t, std::plus<>, kResult>, operands};
  }
  if (function == "or" && type == "b32") {
    return {Atomic<uint32_t, std::bit_or<>, kResult>, operands};
  }
  return {};
}

template <typename T>
Operation Access(bool is_load) {
  return {is_load ? Load<T> : Store<T>};
}

Operation FindAccess(bool is_load, std::string_view type) {
  if (type == "u8" || type == "b8") return Access<uint8_t>(is_load);
  if (type == "s8") return Access<int8_t>(is_load);
  if (type == "u16" || type == "b16") return Access<uint16_t>(is_load);
  if (type == "s16") return Access<int16_t>(is_load);
  if (type == "u32" || type == "b32" || type == "f32") return Access<uint32_t>(is_load);
  if (type == "s32") return Access<int32_t>(is_load);
  if (type == "u64" || type == "s64" || type == "b64" || type == "f64") {
    return Access<uint64_t>(is_load);
  }
  return {};
}

constexpr std::string_view kNoMeaningHere[] = {
    "nc",      "cg",  "ca",  "cs",  "relaxed",  "acquire", "release",
    "acq_rel", "gpu", "sys", "cta", "volatile", "weak",    "L1::no_allocate"};

}  // namespace

Operation FindMemory(std::string_view opcode) {
  const std::vector<std::string_view> parts = Parts(opcode);
  if (parts[0] != "ld" && parts[0] != "st" && parts[0] != "atom" && parts[0] != "red") return {};
  Space space = Space::kGeneric;
  uint8_t vector = 1;
  std::string_view function;
  for (size_t i = 1; i + 1 < parts.size(); ++i) {
    const std::string_view part = parts[i];
    if (part == "global") {
      space = Space::kGlobal;
    } else if (part == "shared" || part == "shared::cta" || part == "shared::cluster") {
      space = Space::kShared;
    } else if (part == "param") {
      space = Space::kParameter;
    } else if (part == "v2" || part == "v4") {
      vector = static_cast<uint8_t>(part[1] - '0');
    } else if (part == "add" || part == "or") {
      function = part;
    } else if (std::find(std::begin(kNoMeaningHere), std::end(kNoMeaningHere), part) ==
               std::end(kNoMeaningHere)) {
      return {};
    }
  }
  Operation operation;
  if (parts[0] == "atom") {
    operation = FindAtomic<true>(function, parts.back());
  } else if (parts[0] == "red") {
    operation = FindAtomic<false>(function, parts.back());
  } else {
    operation = FindAccess(parts[0] == "ld", parts.back());
    operation.operands = vector + 1;
  }
  operation.space = space;
  operation.vector = vector;
  return operation;
}

uint8_t* LocateAnywhere(Warp& warp, const Instruction& in, int lane, Space space, uint64_t address,
                        size_t bytes, size_t alignment) {
  Block& block = *warp.block;
  Grid& grid = *block.grid;
  if (address % alignment != 0) {
    Fault(warp, in, lane,
          "address " + std::to_string(address) + " is not a multiple of " +
              std::to_string(alignment));
  }
  if (space == Space::kGeneric) {
    if (address >> 56 == kSharedWindow >> 56) {
      space = Space::kShared;
      address -= kSharedWindow;
    } else if (address >> 56 == kParameterWindow >> 56) {
      space = Space::kParameter;
    }
  }
  if (space == Space::kParameter) {
    const uint64_t offset = address - kParameterWindow;
    if (offset + bytes > grid.arguments.size()) {
      Fault(warp, in, lane, "no argument lies at offset " + std::to_string(offset));
    }
    return reinterpret_cast<uint8_t*>(const_cast<std::byte*>(grid.arguments.data() + offset));
  }
  if (space == Space::kShared) {
    const uint64_t rank = address >> kRankShift;
    const uint64_t offset = (address & ((1u << kRankShift) - 1)) - kSharedBegin;
    if (rank > block.cluster.size()) {
      Fault(warp, in, lane, "no block of the cluster has rank " + std::to_string(rank - 1));
    }
    Block& owner = rank == 0 ? block : *block.cluster[rank - 1];
    if (offset + bytes > owner.shared.size() || offset > owner.shared.size()) {
      Fault(warp, in, lane,
            "shared memory has " + std::to_string(owner.shared.size()) + " bytes, access of " +
                std::to_string(bytes) + " at offset " +
                std::to_string(static_cast<int64_t>(offset)));
    }
    return owner.shared.data() + offset;
  }
  const auto lies_in = [&](const MemoryRange& allocation) {
    const uint64_t place = address - allocation.begin;
    return place < allocation.bytes && allocation.bytes - place >= bytes;
  };
  if (!lies_in(grid.last_allocation)) {
    grid.last_allocation = grid.machine->memory->AllocationAround(address);
    if (!lies_in(grid.last_allocation)) {
      Fault(warp, in, lane,
            std::to_string(bytes) +
                " bytes of global memory: " + grid.machine->memory->Describe(address));
    }
  }
  return reinterpret_cast<uint8_t*>(address);
}

namespace {

// Of words of global memory; null for other memory.
uint32_t* WritersOf(const Grid& grid, const uint8_t* at) {
  const MemoryRange& allocation = grid.last_allocation;
  const uint64_t place = reinterpret_cast<uint64_t>(at) - allocation.begin;
  return place < allocation.bytes ? allocation.writers + place / 4 : nullptr;
}

void CheckWriters(Warp& warp, const Instruction& in, int lane, const uint32_t* writers,
                  size_t words) {
  const Machine& machine = *warp.block->grid->machine;
  for (size_t i = 0; i < words; ++i) {
    if (writers[i] < machine.first_unfinished || writers[i] == machine.launch) continue;
    Fault(warp, in, lane,
          "launch " + std::to_string(writers[i]) + " wrote this, " +
              std::to_string(machine.launch - writers[i]) +
              " before this one, which has not waited for it");
  }
}

}  // namespace

void CheckEarlyRead(Warp& warp, const Instruction& in, int lane, const uint8_t* at, size_t bytes) {
  const uint32_t* writers = WritersOf(*warp.block->grid, at);
  if (writers != nullptr) CheckWriters(warp, in, lane, writers, (bytes + 3) / 4);
}

void NoteWrite(Warp& warp, const Instruction& in, int lane, const uint8_t* at, size_t bytes) {
  uint32_t* writers = WritersOf(*warp.block->grid, at);
  if (writers == nullptr) return;
  const size_t words = (bytes + 3) / 4;
  if (warp.MayBeEarly()) CheckWriters(warp, in, lane, writers, words);
  std::fill_n(writers, words, warp.block->grid->machine->launch);
}

}  // namespace fewbit::emulator
