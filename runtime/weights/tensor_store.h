// All tensors of a checkpoint directory: model.safetensors, or the shards that
// model.safetensors.index.json lists. Knows names, types and shapes, nothing of models.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/weights/safetensors.h"

namespace fewbit {

// A tensor and the shard it lies in; both pointers live as long as the store.
struct StoredTensor {
  const Tensor* tensor = nullptr;
  const SafetensorsFile* file = nullptr;

  // INVALID_ARGUMENT "file: tensor 'name': reason".
  absl::Status Bad(std::string_view name, std::string_view reason) const;
};

// Thread rule: immutable after Open.
class TensorStore {
 public:
  // Maps every shard and checks every header, and that each shard holds the tensors that the index
  // expects there.
  static absl::StatusOr<TensorStore> Open(const std::string& directory);

  // One safetensors file, whatever its directory holds beside it.
  static absl::StatusOr<TensorStore> OpenFile(const std::string& path);

  bool Has(std::string_view name) const { return tensors_.find(name) != tensors_.end(); }

  // INVALID_ARGUMENT when missing, of none of `types`, of another shape, or not aligned for its
  // type.
  absl::StatusOr<StoredTensor> Find(std::string_view name, std::initializer_list<TensorType> types,
                                    std::span<const int64_t> shape) const;
  // Without a check of the shape.
  absl::StatusOr<StoredTensor> Find(std::string_view name,
                                    std::initializer_list<TensorType> types) const;

  // MappedFile::Release for every tensor whose name begins with `prefix`.
  void Release(std::string_view prefix) const;

  const std::vector<SafetensorsFile>& files() const { return files_; }

 private:
  absl::Status AddFile(const std::string& path);
  void TakeAllOfTheFile();  // of the only one
  absl::Status OpenShards(std::string_view index_text, const std::string& index_path);

  std::string directory_;
  std::vector<SafetensorsFile> files_;
  struct Place {
    size_t file = 0;
    const Tensor* tensor = nullptr;
  };
  std::map<std::string, Place, std::less<>> tensors_;
};

}  // namespace fewbit
