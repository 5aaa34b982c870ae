// The PTX of all kernels of a program, in files.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tests/emulator/emulator.h"

namespace fewbit::emulator {

class PtxFolder {
 public:
  // Of `folder`'s files NAME.ptx; they are read when a kernel is first asked for.
  explicit PtxFolder(std::string folder) : folder_(std::move(folder)) {}

  // Null, with a message, if there is no such kernel.
  const Kernel* Find(std::string_view entry);

 private:
  void Read();

  const std::string folder_;
  std::vector<std::unique_ptr<Module>> modules_;
};

}  // namespace fewbit::emulator
