#include "tests/bench/cuda/random_model.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <utility>

#include "kernels/cuda/linear_launch.h"
#include "runtime/cuda/head_rounding.h"
#include "scheduler/check.h"
#include "tests/bench/cuda/random_fill.h"

namespace fewbit::bench {
namespace {

constexpr float kWeightRms = 0.02f;

ModelSpec Spec(const char* name, int layers, int hidden, int ffn, int heads, int kv_heads,
               int vocab, int context, double theta) {
  ModelSpec spec;
  spec.family = name;
  spec.num_layers = layers;
  spec.hidden_size = hidden;
  spec.ffn_size = ffn;
  spec.num_heads = heads;
  spec.num_kv_heads = kv_heads;
  spec.head_dim = 128;
  spec.vocab_size = vocab;
  spec.max_context = context;
  spec.rope.theta = theta;
  spec.rope.rotary_dim = 128;
  return spec;
}

std::vector<ModelSpec> MakeSpecs() {
  std::vector<ModelSpec> specs = {Spec("llama-2-7b", 32, 4096, 11008, 32, 32, 32000, 4096, 1e4),
                                  Spec("llama-2-13b", 40, 5120, 13824, 40, 40, 32000, 4096, 1e4),
                                  Spec("llama-2-70b", 80, 8192, 28672, 64, 8, 32000, 4096, 1e4),
                                  Spec("llama-3-8b", 32, 4096, 14336, 32, 8, 128256, 8192, 5e5),
                                  Spec("chatglm3-6b", 28, 4096, 13696, 32, 2, 65024, 8192, 1e4),
                                  Spec("qwen2-7b", 28, 3584, 18944, 28, 4, 152064, 32768, 1e6)};
  specs[4].rope.rotary_dim = 64;
  specs[4].rope.interleaved = true;
  specs[4].qkv_bias = specs[5].qkv_bias = true;
  return specs;
}

// Where the channels of 2-bit strips of each segment begin and end.
OutlierRanges RangesOf(const quant::PackedShape& shape) {
  constexpr int kTileChannels = quant::kTileChunks * 128;
  OutlierRanges ranges;
  ranges.segments = cuda::kSegments;
  const int tiles = cuda::NumTiles(shape), most = shape.chunks2 * quant::ChunkChannels(2);
  for (int s = 0; s < cuda::kSegments; ++s) {
    ranges.first[s] = std::min(cuda::SegmentBegin(tiles, s) * kTileChannels, most);
    ranges.last[s] = std::min(cuda::SegmentBegin(tiles, s + 1) * kTileChannels, most);
  }
  return ranges;
}

// Starts of the outlier lists: as many per list as its channels have on average.
std::vector<uint32_t> ListStarts(const quant::PackedShape& shape, double share) {
  const OutlierRanges ranges = RangesOf(shape);
  std::mt19937 rng(5);
  std::uniform_real_distribution<double> uniform;
  std::vector<uint32_t> start = {0};
  const size_t rows = static_cast<size_t>(shape.row_blocks()) * quant::kBlockRows;
  for (size_t i = 0; i < rows * cuda::kSegments; ++i) {
    const int s = static_cast<int>(i % cuda::kSegments);
    const double count = share * (ranges.last[s] - ranges.first[s]) + uniform(rng);
    start.push_back(start.back() + static_cast<uint32_t>(count));
  }
  return start;
}

MatrixPlan PackedPlan(const LinearShape& shape, const WeightMix& mix,
                      const cuda::DeviceProps& device) {
  MatrixPlan plan;
  plan.packed = true;
  plan.rows = shape.rows;
  plan.cols = shape.cols;
  const int strips = shape.cols / quant::kStripChannels;
  const int four = static_cast<int>(std::lround(strips * mix.share4));
  plan.shape = {shape.rows, shape.cols, (strips - four + 7) / 8, (four + 3) / 4, mix.zero_points};
  if (mix.outlier_share > 0) plan.outliers = ListStarts(plan.shape, mix.outlier_share).back();
  plan.tile_outliers = device.half_clusters > 0;
  return plan;
}

ModelPlan PlanOf(const ModelSpec& spec, const WeightMix& mix, int lm_head_bits,
                 const cuda::DeviceProps& device) {
  ModelPlan plan;
  plan.spec = spec;
  plan.embedding.type = cuda::WeightType::kI8;
  plan.embedding.rows = plan.head.rows = spec.vocab_size;
  plan.embedding.cols = plan.head.cols = spec.hidden_size;
  plan.head.type = lm_head_bits == 16 ? cuda::WeightType::kF16 : cuda::WeightType::kI8;
  if (lm_head_bits == 4) {
    plan.head.packed = true;
    plan.head.shape = RoundedHeadShape(spec.vocab_size, spec.hidden_size);
  }
  std::array<MatrixPlan, kNumLinearRoles> layer;
  for (int role = 0; role < kNumLinearRoles; ++role) {
    layer[role] = PackedPlan(ShapeOf(spec, static_cast<LinearRole>(role)), mix, device);
  }
  plan.layers.assign(spec.num_layers, layer);
  return plan;
}

// 4-bit strips are spread evenly; the rest follows in order.
std::vector<uint16_t> StripOrder(const quant::PackedShape& shape, double share4) {
  const int strips = shape.cols / quant::kStripChannels;
  const int four = static_cast<int>(std::lround(strips * share4));
  std::vector<uint16_t> order(shape.num_positions(), quant::kNoStrip);
  std::vector<uint16_t> all(strips);
  std::iota(all.begin(), all.end(), 0);
  std::shuffle(all.begin(), all.end(), std::mt19937(3));
  std::copy(all.begin() + four, all.end(), order.begin());
  std::copy(all.begin(), all.begin() + four, order.begin() + 8 * shape.chunks2);
  return order;
}

class Filler {
 public:
  explicit Filler(const WeightMix& mix) : mix_(mix) {}

  void Matrix(const PlacedMatrix& m) {
    const size_t count = static_cast<size_t>(m.plan.rows) * m.plan.cols;
    if (m.plan.packed) {
      Packed(m);
    } else if (m.plan.type == cuda::WeightType::kI8) {
      Check(FillBits(m.data, count, Seed()));
      // Codes are uniform in [-128, 127].
      Check(FillFloats(m.scales, m.plan.rows, kWeightRms / 73.9f));
    } else {
      Check(FillHalves(m.data, count, kWeightRms, Seed()));
    }
  }
  void Vector(float* to, size_t count, float value) {
    if (to != nullptr) Check(FillFloats(to, count, value));
  }
  absl::Status Finish() {
    Check(cudaDeviceSynchronize());
    if (error_ == cudaSuccess) return absl::OkStatus();
    return absl::InternalError(cudaGetErrorString(error_));
  }

 private:
  void Packed(const PlacedMatrix& m) {
    const quant::PackedShape& shape = m.plan.shape;
    Check(FillBits(m.tiles, shape.total_bytes(), Seed()));
    Check(FillSecondOrder(shape, m.tiles, kWeightRms, Seed()));
    const bool head = shape.chunks2 == 0;
    Upload(head ? HeadStripOrder(shape) : StripOrder(shape, mix_.share4), m.strip_order);
    if (m.plan.outliers == 0) return;
    const std::vector<uint32_t> start = ListStarts(shape, mix_.outlier_share);
    Upload(start, m.outlier_start);
    Check(FillOutliers(m.outlier_start, start.size() - 1, RangesOf(shape), kWeightRms, m.outliers,
                       Seed()));
    if (m.plan.tile_outliers) TileOutliers(m);
  }
  // As many in every list.
  void TileOutliers(const PlacedMatrix& m) {
    const size_t lists = m.plan.shape.num_outlier_lists();
    std::vector<uint32_t> start(lists + 1);
    for (size_t i = 0; i <= lists; ++i) {
      start[i] = static_cast<uint32_t>(m.plan.outliers * i / lists);
    }
    Upload(start, m.tile_outlier_start);
    Check(FillTileOutliers(cuda::TileOutlierEntries(m.plan.outliers), kWeightRms, m.tile_outliers,
                           Seed()));
  }
  template <typename T>
  void Upload(const std::vector<T>& from, T* to) {
    Check(cudaMemcpy(to, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  void Check(cudaError_t error) {
    if (error_ == cudaSuccess) error_ = error;
  }
  uint64_t Seed() { return ++seed_ << 44; }

  const WeightMix mix_;
  uint64_t seed_ = 0;
  cudaError_t error_ = cudaSuccess;
};

}  // namespace

std::optional<ModelSpec> FindModel(const std::string& name) {
  for (ModelSpec& spec : MakeSpecs()) {
    if (spec.family == name) return std::move(spec);
  }
  return std::nullopt;
}

std::string KnownModels() {
  std::string names;
  for (const ModelSpec& spec : MakeSpecs()) names += (names.empty() ? "" : ", ") + spec.family;
  return names;
}

absl::StatusOr<std::unique_ptr<DeviceModel>> MakeRandomModel(const ModelSpec& spec,
                                                             const WeightMix& mix,
                                                             int lm_head_bits) {
  FEWBIT_CHECK(lm_head_bits == 16 || lm_head_bits == 8 || lm_head_bits == 4) << lm_head_bits;
  cuda::DeviceProps device;
  const cudaError_t error = cuda::ReadDeviceProps(0, &device);
  if (error != cudaSuccess) return absl::InternalError(cudaGetErrorString(error));
  auto model = AllocateModel(PlanOf(spec, mix, lm_head_bits, device));
  if (!model.ok()) return model.status();
  const DeviceModel& m = **model;
  Filler filler(mix);
  filler.Matrix(m.embedding);
  filler.Matrix(m.head);
  filler.Vector(m.final_norm, spec.hidden_size, 1.0f);
  for (const DeviceLayer& layer : m.layers) {
    for (const PlacedMatrix& linear : layer.linears) filler.Matrix(linear);
    filler.Vector(layer.input_norm, spec.hidden_size, 1.0f);
    filler.Vector(layer.post_attention_norm, spec.hidden_size, 1.0f);
    filler.Vector(layer.q_bias, spec.q_size(), 0.01f);
    filler.Vector(layer.k_bias, spec.kv_size(), 0.01f);
    filler.Vector(layer.v_bias, spec.kv_size(), 0.01f);
  }
  if (absl::Status status = filler.Finish(); !status.ok()) return status;
  return model;
}

}  // namespace fewbit::bench
