#include "tests/emulator/ptx_folder.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace fewbit::emulator {

void PtxFolder::Read() {
  std::error_code error;
  std::vector<std::filesystem::path> files;
  for (const auto& file : std::filesystem::directory_iterator(folder_, error)) {
    if (file.path().extension() == ".ptx") files.push_back(file.path());
  }
  std::sort(files.begin(), files.end());
  for (const auto& path : files) {
    std::ifstream in(path, std::ios::binary);
    const std::string text(std::istreambuf_iterator<char>(in), {});
    modules_.push_back(std::make_unique<Module>(text));
  }
}

const Kernel* PtxFolder::Find(std::string_view entry) {
  if (modules_.empty()) Read();
  for (const auto& module : modules_) {
    if (const Kernel* kernel = module->Find(entry); kernel != nullptr) return kernel;
  }
  std::fprintf(stderr, "emulator: no file in %s has the kernel %.*s\n", folder_.c_str(),
               static_cast<int>(entry.size()), entry.data());
  return nullptr;
}

}  // namespace fewbit::emulator
