#include "runtime/cuda/upload.h"

#include <algorithm>
#include <array>
#include <initializer_list>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/repack.h"
#include "runtime/cuda/head_rounding.h"
#include "runtime/cuda/stager.h"
#include "runtime/thread_team.h"

namespace fewbit {
namespace {

constexpr int kMostThreads = 16;  // more do not read a file faster

MatrixPlan PlanMatrix(const Matrix& matrix, const cuda::DeviceProps& device) {
  MatrixPlan plan;
  plan.rows = MatrixRows(matrix);
  plan.cols = MatrixCols(matrix);
  if (const auto* packed = std::get_if<quant::PackedMatrix>(&matrix)) {
    plan.packed = true;
    plan.shape = packed->shape;
    if (packed->outlier_start != nullptr) {
      plan.outliers = packed->outlier_start[packed->shape.num_outlier_lists()];
      plan.tile_outliers = device.half_clusters > 0;
    }
  } else if (std::holds_alternative<Int8Matrix>(matrix)) {
    plan.type = cuda::WeightType::kI8;
  } else if (std::get<DenseMatrix>(matrix).dtype == DType::kF32) {
    plan.type = cuda::WeightType::kF32;
  }
  return plan;
}

// Outlier lists as the device has them; empty ones where there are none.
struct DeviceOutliers {
  cuda::OutlierLists by_row, by_tile;

  DeviceOutliers() = default;
  DeviceOutliers(const Matrix& from, const MatrixPlan& plan) {
    const auto* packed = std::get_if<quant::PackedMatrix>(&from);
    if (packed == nullptr) return;
    by_row = cuda::RepackOutliers(*packed);
    if (plan.tile_outliers) by_tile = cuda::RepackOutliersByTile(*packed);
  }
};

class Uploader {
 public:
  // `clamped`: device memory, counts the weights that f16 cannot hold.
  Uploader(Stager* stager, ThreadTeam* team, int* clamped)
      : stager_(stager), team_(team), clamped_(clamped) {}

  absl::Status Layer(const LayerWeights& from, const DeviceLayer& to) {
    RepackLists(from, to);
    for (int role = 0; role < kNumLinearRoles; ++role) {
      absl::Status status = Upload(from.linears[role], lists_[role], to.linears[role]);
      if (!status.ok()) return status;
    }
    return Vectors({{&from.input_norm, to.input_norm},
                    {&from.post_attention_norm, to.post_attention_norm},
                    {&from.q_norm, to.q_norm},
                    {&from.k_norm, to.k_norm},
                    {&from.q_bias, to.q_bias},
                    {&from.k_bias, to.k_bias},
                    {&from.v_bias, to.v_bias}});
  }

  // Embedding and head, which have no outliers unless they are packed in the file.
  absl::Status Table(const Matrix& from, const PlacedMatrix& to) {
    if (to.plan.packed && !std::holds_alternative<quant::PackedMatrix>(from)) {
      return RoundedHead(from, to);
    }
    return Upload(from, DeviceOutliers(from, to.plan), to);
  }

  struct Vector {
    const std::vector<float>* from;
    float* to;
  };
  absl::Status Vectors(std::initializer_list<Vector> vectors) {
    for (const Vector& v : vectors) {
      absl::Status status = stager_->Copy(v.from->data(), v.from->size() * sizeof(float), v.to);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

 private:
  // Outlier lists in the device's order, the matrices of a layer dealt out to the team.
  void RepackLists(const LayerWeights& from, const DeviceLayer& to) {
    team_->Run([&](int rank) {
      for (int role = rank; role < kNumLinearRoles; role += team_->size()) {
        lists_[role] = DeviceOutliers(from.linears[role], to.linears[role].plan);
      }
    });
  }

  absl::Status Upload(const Matrix& from, const DeviceOutliers& lists, const PlacedMatrix& to) {
    if (const auto* packed = std::get_if<quant::PackedMatrix>(&from)) {
      return Packed(*packed, lists, to);
    }
    if (const auto* codes = std::get_if<Int8Matrix>(&from)) {
      absl::Status status = stager_->Copy(codes->scales, sizeof(float) * codes->rows, to.scales);
      if (!status.ok()) return status;
      return stager_->Copy(codes->codes, size_t{1} * codes->rows * codes->cols, to.data);
    }
    return Dense(std::get<DenseMatrix>(from), to);
  }

  absl::Status Packed(const quant::PackedMatrix& from, const DeviceOutliers& lists,
                      const PlacedMatrix& to) {
    const quant::PackedShape& shape = from.shape;
    absl::Status status =
        stager_->Through(from.tiles, shape.row_block_bytes(), shape.row_blocks(),
                         [&](int64_t first, int64_t count, const uint8_t* scratch) {
                           return RepackBlocks(shape, first, count, scratch, to);
                         });
    if (!status.ok()) return status;
    status =
        stager_->Copy(from.strip_order, sizeof(uint16_t) * shape.num_positions(), to.strip_order);
    if (!status.ok()) return status;
    status = Lists(lists.by_row, to.outlier_start, to.outliers);
    if (!status.ok()) return status;
    return Lists(lists.by_tile, to.tile_outlier_start, to.tile_outliers);
  }

  absl::Status Lists(const cuda::OutlierLists& lists, uint32_t* start, uint32_t* entries) {
    if (lists.entries.empty()) return absl::OkStatus();
    absl::Status status =
        stager_->Copy(lists.start.data(), sizeof(uint32_t) * lists.start.size(), start);
    if (!status.ok()) return status;
    return stager_->Copy(lists.entries.data(), sizeof(uint32_t) * lists.entries.size(), entries);
  }

  cudaError_t RepackBlocks(quant::PackedShape shape, int64_t first, int64_t count,
                           const uint8_t* scratch, const PlacedMatrix& to) {
    uint8_t* const out = to.tiles + first * shape.row_block_bytes();
    shape.rows = static_cast<int32_t>(count) * quant::kBlockRows;
    return cuda::Repack(shape, scratch, out, stager_->stream());
  }

  // 16-bit weights become f16 or are rounded to 8 bits, as the plan says.
  absl::Status Dense(const DenseMatrix& from, const PlacedMatrix& to) {
    const cuda::WeightType type = cuda::WeightTypeOf(from.dtype);
    const size_t row_bytes = cuda::WeightBytes(type) * from.cols;
    if (type == to.plan.type) return stager_->Copy(from.data, row_bytes * from.rows, to.data);
    return stager_->Through(
        from.data, row_bytes, from.rows, [&](int64_t first, int64_t count, const uint8_t* scratch) {
          const cuda::DeviceDense rows = {scratch, nullptr, type, static_cast<int32_t>(count),
                                          from.cols};
          uint8_t* const out = to.data + first * from.cols * cuda::WeightBytes(to.plan.type);
          if (to.plan.type == cuda::WeightType::kI8) {
            return cuda::QuantizeRows(rows, out, to.scales + first, stager_->stream());
          }
          return cuda::ConvertToHalf(rows, out, clamped_, stager_->stream());
        });
  }

  // A head that is rounded to 4 bits on its way.
  absl::Status RoundedHead(const Matrix& from, const PlacedMatrix& to) {
    const quant::PackedShape& shape = to.plan.shape;
    const std::vector<uint16_t> order = HeadStripOrder(shape);
    absl::Status status =
        stager_->Copy(order.data(), sizeof(uint16_t) * order.size(), to.strip_order);
    if (!status.ok()) return status;
    return stager_->Through(
        shape.row_block_bytes(), shape.row_blocks(),
        [&](int rank, int64_t first, int64_t count, uint8_t* pinned) {
          const Share share = ShareOf(static_cast<int>(count), 1, rank, team_->size());
          for (int i = share.begin; i < share.end; ++i) {
            RoundRowBlock(from, shape, static_cast<int>(first) + i,
                          pinned + i * shape.row_block_bytes());
          }
        },
        [&](int64_t first, int64_t count, const uint8_t* scratch) {
          return RepackBlocks(shape, first, count, scratch, to);
        });
  }

  Stager* const stager_;
  ThreadTeam* const team_;
  int* const clamped_;
  std::array<DeviceOutliers, kNumLinearRoles> lists_;
};

absl::Status UploadAll(const Model& model, const ModelPlan& plan, const DeviceModel& to,
                       Uploader* uploader) {
  absl::Status status = uploader->Table(model.embedding, to.embedding);
  if (!status.ok()) return status;
  if (!plan.share_head) {
    status = uploader->Table(model.head, to.head);
    if (!status.ok()) return status;
  }
  status = uploader->Vectors({{&model.final_norm, to.final_norm}});
  if (!status.ok()) return status;
  for (size_t l = 0; l < model.layers.size(); ++l) {
    status = uploader->Layer(model.layers[l], to.layers[l]);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Fill(const Model& model, const ModelPlan& plan, const DeviceModel& to) {
  ThreadTeam team(std::min(AvailableProcessors(), kMostThreads));
  auto stager = Stager::Create(&team);
  if (!stager.ok()) return stager.status();
  auto counter = DeviceMemory::Allocate(sizeof(int), "a counter");
  if (!counter.ok()) return counter.status();
  int clamped = 0;
  absl::Status status = (*stager)->Copy(&clamped, sizeof(clamped), counter->get());
  if (!status.ok()) return status;
  Uploader uploader(stager->get(), &team, reinterpret_cast<int*>(counter->get()));
  status = UploadAll(model, plan, to, &uploader);
  if (!status.ok()) return status;
  if (status = (*stager)->Finish(); !status.ok()) return status;
  status = FromCuda(cudaMemcpy(&clamped, counter->get(), sizeof(clamped), cudaMemcpyDeviceToHost),
                    "uploading weights");
  if (!status.ok()) return status;
  if (clamped > 0) {
    return absl::UnimplementedError(absl::StrCat(
        clamped,
        " weights are beyond 65504, the most that f16 holds: on the GPU 16-bit weights "
        "are f16"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelPlan> PlanModel(const Model& model, int lm_head_bits,
                                    const cuda::DeviceProps& device) {
  if (lm_head_bits != 0 && lm_head_bits != 4 && lm_head_bits != 8 && lm_head_bits != 16) {
    return absl::InvalidArgumentError(absl::StrCat(
        "lm_head_bits is ", lm_head_bits, ": must be 16, 8, 4 or 0 (as the checkpoint has it)"));
  }
  ModelPlan plan;
  plan.spec = model.spec;
  plan.embedding = PlanMatrix(model.embedding, device);
  plan.head = PlanMatrix(model.head, device);
  const bool rounds =
      !plan.head.packed &&
      (lm_head_bits == 4 || (lm_head_bits == 8 && plan.head.type != cuda::WeightType::kI8));
  plan.share_head = model.spec.tied_head && !rounds;
  if (rounds && lm_head_bits == 8) plan.head.type = cuda::WeightType::kI8;
  if (rounds && lm_head_bits == 4) {
    plan.head.packed = true;
    plan.head.shape = RoundedHeadShape(plan.head.rows, plan.head.cols);
  }
  for (const LayerWeights& layer : model.layers) {
    auto& planned = plan.layers.emplace_back();
    for (int role = 0; role < kNumLinearRoles; ++role) {
      planned[role] = PlanMatrix(layer.linears[role], device);
    }
  }
  return plan;
}

absl::StatusOr<std::unique_ptr<DeviceModel>> UploadModel(const Model& model,
                                                         const ModelPlan& plan) {
  auto to = AllocateModel(plan);
  if (!to.ok()) return to.status();
  if (absl::Status status = Fill(model, plan, **to); !status.ok()) return status;
  return to;
}

}  // namespace fewbit
