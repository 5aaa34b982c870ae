// Linear layers that share their input (q, k and v; gate and up; one alone), packed or dense, as
// one call for any number of tokens.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "kernels/cuda/dense.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_launch.h"
#include "kernels/cuda/staging.h"
#include "runtime/cuda/device_model.h"

namespace fewbit {

// Device memory that groups use one after the other, and what it takes to launch.
struct LinearMemory {
  cuda::DeviceProps props;
  uint8_t* staged = nullptr;  // packed matrices' activations
  uint8_t* plain = nullptr;   // 16- or 32-bit activations
  cuda::LinearWorkspace workspace;
};

// Bytes of LinearMemory's parts.
struct LinearNeeds {
  size_t staged = 0;
  size_t plain = 0;
  size_t scratch = 0;
  bool cublas = false;  // needed: without it some batch cannot run

  void Add(const LinearNeeds& other);
};

// One call of a group: what the kernel before it must leave, and how it is launched.
struct GroupCall {
  cuda::Desc desc;
  cuda::Plan plan;
  cuda::LinearInput input;
  int m = 0;
  DType output = DType::kF32;  // kF32 or kF16
};

// Thread rule: immutable.
class LinearGroup {
 public:
  LinearGroup() = default;

  // Of dense matrices. kWide: floats for few tokens, at three times the cost of kHalf: 16 bits.
  enum class Input : uint8_t { kWide, kHalf };

  // kHalf: where many tokens go through 16-bit products anyway, so is the result rounded.
  enum class Output : uint8_t { kWide, kHalf };

  // UNIMPLEMENTED, naming `name`, if packed and dense matrices are mixed or no kernel takes them.
  static absl::StatusOr<LinearGroup> Create(const std::string& name,
                                            std::initializer_list<const PlacedMatrix*> parts,
                                            Input input, Output output,
                                            const cuda::DeviceProps& props);

  int32_t rows() const { return rows_; }
  int32_t cols() const { return cols_; }

  // For `m` tokens. `cublas`: it can be had.
  LinearNeeds Needs(int m, const cuda::DeviceProps& props) const;

  // `source`: what the layers could make their input from. If call.plan.makes_input(), the caller
  // gives that in call.input.source, and else runs the kernel that fills call.input.
  GroupCall Prepare(int m, const LinearMemory& memory,
                    cuda::RowKind source = cuda::RowKind::kStaged) const;

  // y [m, rows()] of call.output, the parts side by side; call.input was filled by earlier work of
  // the stream. `add`, where call.plan allows it (LinearOutput::add): [m, rows()] floats that are
  // added to the result. Empty, or what failed.
  std::string Launch(const GroupCall& call, const LinearMemory& memory, void* y,
                     cudaStream_t stream, const float* add = nullptr) const;

 private:
  cuda::Desc DescOf(int m) const;
  DType PlainType(int m) const;

  bool packed_ = true;
  Input input_ = Input::kWide;
  Output output_ = Output::kWide;
  cuda::DeviceGroup group_;
  int count_ = 0;
  cuda::DeviceDense dense_[cuda::kMostParts];
  int32_t columns_[cuda::kMostParts] = {};
  int32_t rows_ = 0;
  int32_t cols_ = 0;
};

}  // namespace fewbit
