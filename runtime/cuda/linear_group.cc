#include "runtime/cuda/linear_group.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/dequantize.h"
#include "scheduler/check.h"

namespace fewbit {
namespace {

size_t TypeBytes(DType type) { return type == DType::kF32 ? 4 : 2; }

}  // namespace

void LinearNeeds::Add(const LinearNeeds& other) {
  staged = std::max(staged, other.staged);
  plain = std::max(plain, other.plain);
  scratch = std::max(scratch, other.scratch);
  cublas = cublas || other.cublas;
}

absl::StatusOr<LinearGroup> LinearGroup::Create(const std::string& name,
                                                std::initializer_list<const PlacedMatrix*> parts,
                                                Input input, Output output,
                                                const cuda::DeviceProps& props) {
  LinearGroup group;
  group.input_ = input;
  group.output_ = output;
  group.packed_ = (*parts.begin())->plan.packed;
  group.cols_ = (*parts.begin())->plan.cols;
  for (const PlacedMatrix* part : parts) {
    if (part->plan.packed != group.packed_) {
      return absl::UnimplementedError(absl::StrCat(
          name, ": matrices with one input must all be packed on the GPU, or none of them"));
    }
    if (group.packed_) {
      group.group_.parts[group.count_] = part->packed();
    } else {
      group.dense_[group.count_] = part->dense();
    }
    group.columns_[group.count_++] = group.rows_;
    group.rows_ += part->plan.rows;
  }
  group.group_.count = group.packed_ ? group.count_ : 0;
  std::string error;
  if (group.packed_) {
    error = cuda::Select(group.DescOf(1), props).error;
  } else {
    cuda::DenseCall call;
    call.m = 1;
    call.x_type = group.PlainType(1);
    call.x_stride = group.cols_;
    call.y_stride = group.rows_;
    for (int i = 0; i < group.count_ && error.empty(); ++i) {
      call.w = group.dense_[i];
      error = cuda::CheckDense(call);
    }
  }
  if (!error.empty()) return absl::UnimplementedError(absl::StrCat(name, ": ", error));
  return group;
}

cuda::Desc LinearGroup::DescOf(int m) const {
  cuda::Desc desc;
  desc.count = group_.count;
  for (int i = 0; i < group_.count; ++i) desc.shapes[i] = group_.parts[i].shape;
  desc.m = m;
  desc.x_type = DType::kF16;
  desc.y_type = DType::kF32;
  return desc;
}

// Few tokens go through our own kernel, which may take floats; many through cuBLAS.
DType LinearGroup::PlainType(int m) const {
  if (packed_) return DType::kF16;
  const bool wide = std::any_of(dense_, dense_ + count_, [](const cuda::DeviceDense& w) {
    return w.type == cuda::WeightType::kF32;
  });
  const bool few = m <= cuda::kMaxDenseTokens && input_ == Input::kWide;
  return wide || few ? DType::kF32 : DType::kF16;
}

LinearNeeds LinearGroup::Needs(int m, const cuda::DeviceProps& props) const {
  LinearNeeds needs;
  bool plain = !packed_;
  if (packed_) {
    const cuda::Desc desc = DescOf(m);
    const cuda::Plan plan = cuda::Select(desc, props);
    plain = plan.plain();
    if (plan.staged()) needs.staged = cuda::StagedBytes(desc, plan);
    needs.cublas = plan.path == cuda::Path::kDequantize;
    for (int i = 0; i < group_.count && needs.cublas; ++i) {
      needs.scratch += cuda::ScratchBytes(group_.parts[i].shape);
    }
  }
  if (plain) needs.plain = TypeBytes(PlainType(m)) * m * cols_;
  return needs;
}

GroupCall LinearGroup::Prepare(int m, const LinearMemory& memory, cuda::RowKind source) const {
  GroupCall call;
  call.m = m;
  if (!packed_) {
    call.input.plain = memory.plain;
    call.input.plain_type = PlainType(m);
    return call;
  }
  call.desc = DescOf(m);
  call.desc.input = source;
  call.plan = cuda::Select(call.desc, memory.props);
  FEWBIT_CHECK(call.plan.error.empty()) << call.plan.error;
  const bool halves =
      call.plan.path == cuda::Path::kDequantize || call.plan.path == cuda::Path::kHalf;
  if (halves && output_ == Output::kHalf) {
    call.output = call.desc.y_type = DType::kF16;
  }
  call.input = cuda::InputOf(call.desc, call.plan, group_, memory.staged,
                             call.plan.plain() ? memory.plain : nullptr);
  return call;
}

std::string LinearGroup::Launch(const GroupCall& call, const LinearMemory& memory, void* y,
                                cudaStream_t stream, const float* add) const {
  if (packed_) {
    cuda::LinearOutput out;
    out.y = y;
    out.stride = rows_;
    out.add = add;
    std::copy(columns_, columns_ + count_, out.column);
    return cuda::LaunchLinear(call.desc, call.plan, group_, call.input, out, memory.workspace,
                              stream);
  }
  cuda::DenseCall dense;
  dense.m = call.m;
  dense.x = call.input.plain;
  dense.x_type = call.input.plain_type;
  dense.x_stride = cols_;
  dense.y_stride = rows_;
  for (int i = 0; i < count_; ++i) {
    dense.w = dense_[i];
    dense.y = static_cast<float*>(y) + columns_[i];
    std::string error = cuda::RunDense(dense, memory.workspace.cublas, stream);
    if (!error.empty()) return error;
  }
  return "";
}

}  // namespace fewbit
