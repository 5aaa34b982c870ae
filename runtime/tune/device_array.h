// An array in the memory of a device, freed with its owner.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/tune/ops.h"

namespace fewbit::tune {

// Thread rule: the owner's.
template <typename T>
class DeviceArray {
 public:
  DeviceArray() = default;
  // Not initialized. `ops` outlives the array. Errors: those of Ops::Allocate.
  static absl::StatusOr<DeviceArray> Create(Ops* ops, int64_t size) {
    absl::StatusOr<void*> data = ops->Allocate(size * sizeof(T));
    if (!data.ok()) return data.status();
    return DeviceArray(ops, static_cast<T*>(*data), size);
  }
  // A copy of `host`.
  static absl::StatusOr<DeviceArray> Upload(Ops* ops, const std::vector<T>& host) {
    absl::StatusOr<DeviceArray> array = Create(ops, static_cast<int64_t>(host.size()));
    if (array.ok()) ops->Upload(host.data(), array->bytes(), array->data());
    return array;
  }

  DeviceArray(DeviceArray&& other) noexcept { *this = std::move(other); }
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    std::swap(ops_, other.ops_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~DeviceArray() {
    if (data_ != nullptr) ops_->Free(data_);
  }

  T* data() const { return data_; }
  int64_t size() const { return size_; }
  size_t bytes() const { return size_ * sizeof(T); }

  // Waits for the device.
  std::vector<T> Download() const {
    std::vector<T> host(size_);
    if (size_ > 0) ops_->Download(data_, bytes(), host.data());
    return host;
  }

 private:
  DeviceArray(Ops* ops, T* data, int64_t size) : ops_(ops), data_(data), size_(size) {}

  Ops* ops_ = nullptr;
  T* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace fewbit::tune
