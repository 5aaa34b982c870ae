// A module: its kernels, and the table of all operations.
#include <unordered_map>

#include "tests/emulator/warp.h"

namespace fewbit::emulator {

namespace {

// nvcc puts a hash of how a file was compiled into the names of what only that file sees:
// _GLOBAL__N__01234567_... . The same kernel has another one in PTX and in an object file.
std::string WithoutHash(std::string_view name) {
  constexpr std::string_view kBefore = "_GLOBAL__N__";
  constexpr size_t kDigits = 8;
  std::string result(name);
  for (size_t at = 0; (at = result.find(kBefore, at)) != std::string::npos;) {
    at += kBefore.size();
    result.erase(at, kDigits);
  }
  return result;
}

}  // namespace

struct Module::Source {
  ModuleText text;
  std::map<std::string, std::unique_ptr<Kernel>> kernels;  // by name without hash
};

Module::Module(std::string_view ptx) : source_(std::make_unique<Source>()) {
  source_->text = SplitModule(ptx);
}
Module::~Module() = default;

const Kernel* Module::Find(std::string_view entry) {
  const std::string name = WithoutHash(entry);
  if (const auto it = source_->kernels.find(name); it != source_->kernels.end()) {
    return it->second.get();
  }
  for (const EntryText& text : source_->text.entries) {
    if (WithoutHash(text.name) != name) continue;
    auto kernel = std::make_unique<Kernel>(Decode(text, source_->text.shared));
    return source_->kernels.emplace(name, std::move(kernel)).first->second.get();
  }
  return nullptr;
}

std::span<const Parameter> Parameters(const Kernel& kernel) { return kernel.parameters; }
size_t StaticSharedBytes(const Kernel& kernel) { return kernel.static_shared_bytes; }
unsigned MaxThreads(const Kernel& kernel) { return kernel.max_threads; }

Operation FindOperation(std::string_view opcode) {
  static const auto* const kTable = [] {
    auto* table = new std::unordered_map<std::string_view, Operation>;
    for (const auto operations :
         {IntegerOperations(), FloatOperations(), MoveOperations(), ConversionOperations(),
          ExchangeOperations(), MatrixOperations(), BarrierOperations(), CopyOperations()}) {
      for (const NamedOperation& row : operations) table->emplace(row.opcode, row.operation);
    }
    return table;
  }();
  if (const auto it = kTable->find(opcode); it != kTable->end()) return it->second;
  return opcode.starts_with("setp.") ? FindCompare(opcode) : FindMemory(opcode);
}

}  // namespace fewbit::emulator
