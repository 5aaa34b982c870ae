#include "runtime/weights/tensor_store.h"

#include <algorithm>
#include <set>
#include <utility>

#include "runtime/weights/json.h"
#include "runtime/weights/text.h"

namespace fewbit {
namespace {

constexpr size_t kMaxIndexBytes = 64 << 20;

// A shard is a plain file name: the index must not lead out of its directory.
bool IsPlainFileName(std::string_view name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == name.npos &&
         name.find('\0') == name.npos;
}

}  // namespace

absl::Status StoredTensor::Bad(std::string_view name, std::string_view reason) const {
  return absl::InvalidArgumentError(StrCat(file->path(), ": tensor '", name, "': ", reason));
}

absl::StatusOr<TensorStore> TensorStore::Open(const std::string& directory) {
  TensorStore store;
  store.directory_ = directory;
  const std::string single = StrCat(directory, "/model.safetensors");
  absl::Status status = store.AddFile(single);
  if (absl::IsNotFound(status)) {
    const std::string index_path = StrCat(directory, "/model.safetensors.index.json");
    const auto index = ReadSmallFile(index_path, kMaxIndexBytes);
    if (absl::IsNotFound(index.status())) {
      return absl::NotFoundError(StrCat(
          directory, ": neither model.safetensors nor model.safetensors.index.json is there"));
    }
    if (!index.ok()) return index.status();
    status = store.OpenShards(*index, index_path);
  } else if (status.ok()) {
    store.TakeAllOfTheFile();
  }
  if (!status.ok()) return status;
  return store;
}

absl::StatusOr<TensorStore> TensorStore::OpenFile(const std::string& path) {
  TensorStore store;
  store.directory_ = path;
  if (absl::Status status = store.AddFile(path); !status.ok()) return status;
  store.TakeAllOfTheFile();
  return store;
}

void TensorStore::TakeAllOfTheFile() {
  for (const auto& [name, tensor] : files_[0].tensors()) {
    tensors_.emplace(name, Place{.file = 0, .tensor = &tensor});
  }
}

absl::Status TensorStore::AddFile(const std::string& path) {
  auto file = SafetensorsFile::Open(path);
  if (!file.ok()) return file.status();
  files_.push_back(*std::move(file));
  return absl::OkStatus();
}

absl::Status TensorStore::OpenShards(std::string_view index_text, const std::string& index_path) {
  const auto index = ParseJsonObject(index_text, index_path);
  if (!index.ok()) return index.status();
  const auto map = index->find("weight_map");
  if (map == index->end() || !map->is_object() || map->empty()) {
    return absl::InvalidArgumentError(
        StrCat(index_path, ": weight_map: missing, empty or not an object"));
  }
  std::map<std::string, size_t> shards;
  for (const auto& [tensor, shard] : map->items()) {
    if (!shard.is_string() || !IsPlainFileName(shard.get_ref<const std::string&>())) {
      return absl::InvalidArgumentError(StrCat(index_path, ": weight_map: '", Printable(tensor),
                                               "': ", JsonText(shard),
                                               " is not the name of a file in this directory"));
    }
    shards.emplace(shard.get<std::string>(), 0);
  }
  for (auto& [shard, position] : shards) {
    const absl::Status status = AddFile(StrCat(directory_, "/", shard));
    if (!status.ok()) return status;
    position = files_.size() - 1;
  }
  for (const auto& [name, shard] : map->items()) {
    const size_t file = shards.at(shard.get_ref<const std::string&>());
    const TensorTable& tensors = files_[file].tensors();
    const auto tensor = tensors.find(name);
    if (tensor == tensors.end()) {
      return absl::InvalidArgumentError(
          StrCat(files_[file].path(), ": tensor '", Printable(name),
                 "': missing, but model.safetensors.index.json says it is in this file"));
    }
    tensors_.emplace(name, Place{.file = file, .tensor = &tensor->second});
  }
  return absl::OkStatus();
}

void TensorStore::Release(std::string_view prefix) const {
  for (auto it = tensors_.lower_bound(prefix);
       it != tensors_.end() && it->first.starts_with(prefix); ++it) {
    files_[it->second.file].mapping()->Release(it->second.tensor->data);
  }
}

absl::StatusOr<StoredTensor> TensorStore::Find(std::string_view name,
                                               std::initializer_list<TensorType> types) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    return absl::InvalidArgumentError(StrCat(directory_, ": tensor '", name, "': missing"));
  }
  const StoredTensor stored{.tensor = found->second.tensor, .file = &files_[found->second.file]};
  const TensorType type = stored.tensor->type;
  if (std::find(types.begin(), types.end(), type) == types.end()) {
    std::string expected;
    for (const TensorType allowed : types) {
      expected += StrCat(expected.empty() ? "" : " or ", TensorTypeName(allowed));
    }
    return stored.Bad(name, StrCat("dtype is ", TensorTypeName(type), ", expected ", expected));
  }
  const auto address = reinterpret_cast<uintptr_t>(stored.tensor->data.data());
  if (address % static_cast<uintptr_t>(TensorTypeBytes(type)) != 0) {
    return stored.Bad(name, StrCat("not aligned for ", TensorTypeName(type)));
  }
  return stored;
}

absl::StatusOr<StoredTensor> TensorStore::Find(std::string_view name,
                                               std::initializer_list<TensorType> types,
                                               std::span<const int64_t> shape) const {
  absl::StatusOr<StoredTensor> stored = Find(name, types);
  if (!stored.ok()) return stored;
  if (!std::equal(shape.begin(), shape.end(), stored->tensor->shape.begin(),
                  stored->tensor->shape.end())) {
    return stored->Bad(name, StrCat("shape is ", ShapeText(stored->tensor->shape),
                                    ", config.json asks for ", ShapeText(shape)));
  }
  return stored;
}

}  // namespace fewbit
