#include "tests/runtime/checkpoint_files.h"

#include <stdlib.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "runtime/weights/safetensors_writer.h"
#include "scheduler/check.h"

namespace fewbit {

TempDirectory::TempDirectory() {
  path_ = (std::filesystem::temp_directory_path() / "fewbit-XXXXXX").string();
  FEWBIT_CHECK(::mkdtemp(path_.data()) != nullptr) << path_;
}

TempDirectory::~TempDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string TempDirectory::operator/(std::string_view name) const {
  return path_ + "/" + std::string(name);
}

std::string GoldenDirectory(std::string_view name) {
  return std::string(FEWBIT_SOURCE_DIR) + "/tests/golden/" + std::string(name);
}

std::string ReadText(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  FEWBIT_CHECK(in.good()) << path;
  return {std::istreambuf_iterator<char>(in), {}};
}

void WriteText(const std::string& path, std::string_view text) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(text.data(), static_cast<std::streamsize>(text.size()));
  out.close();
  FEWBIT_CHECK(out.good()) << path;
}

std::string FrameSafetensors(std::string_view header, std::string_view data) {
  const uint64_t length = header.size();
  std::string file(reinterpret_cast<const char*>(&length), sizeof(length));
  file += header;
  file += data;
  return file;
}

OwnedTensor& EditableCheckpoint::Get(std::string_view name) {
  const auto found = std::find_if(tensors.begin(), tensors.end(),
                                  [name](const OwnedTensor& t) { return t.name == name; });
  FEWBIT_CHECK(found != tensors.end()) << name;
  return *found;
}

void EditableCheckpoint::Remove(std::string_view name) {
  const auto erased =
      std::erase_if(tensors, [name](const OwnedTensor& t) { return t.name == name; });
  FEWBIT_CHECK(erased == 1) << name;
}

EditableCheckpoint ReadGolden(std::string_view name) {
  EditableCheckpoint checkpoint;
  checkpoint.config = nlohmann::json::parse(ReadText(GoldenDirectory(name) + "/config.json"));
  const auto file = SafetensorsFile::Open(GoldenDirectory(name) + "/model.safetensors");
  FEWBIT_CHECK(file.ok()) << file.status();
  for (const auto& [tensor_name, tensor] : file->tensors()) {
    checkpoint.tensors.push_back(
        {tensor_name, tensor.type, tensor.shape, {tensor.data.begin(), tensor.data.end()}});
  }
  return checkpoint;
}

void WriteSafetensorsFile(const std::string& path, const std::vector<OwnedTensor>& tensors,
                          bool align_bytes) {
  std::vector<TensorToWrite> views;
  for (const OwnedTensor& tensor : tensors) {
    const bool packed =
        align_bytes && tensor.type == TensorType::kU8 && tensor.bytes.size() % 16 == 0;
    views.push_back({.name = tensor.name,
                     .type = tensor.type,
                     .shape = tensor.shape,
                     .data = tensor.bytes,
                     .alignment = packed ? 16 : 0});
  }
  const absl::Status status = WriteSafetensors(path, std::move(views));
  FEWBIT_CHECK(status.ok()) << status;
}

void WriteCheckpoint(const std::string& directory, const EditableCheckpoint& checkpoint) {
  WriteText(directory + "/config.json", checkpoint.config.dump(1));
  WriteSafetensorsFile(directory + "/model.safetensors", checkpoint.tensors);
}

}  // namespace fewbit
