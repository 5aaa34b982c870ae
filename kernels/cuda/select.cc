#include <algorithm>

#include "kernels/cuda/linear.h"
#include "kernels/cuda/small_instances.h"
#include "kernels/cuda/wide_instances.h"
#include "kernels/quant_access.h"

namespace fewbit::cuda {
namespace {

int CeilDiv(int a, int b) { return (a + b - 1) / b; }
size_t Align(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

int FindInstance(const quant::PackedShape& shape, int tokens) {
  for (int i = 0; i < kSmallInstances; ++i) {
    const Instance& in = kSmallTable[i];
    if (in.zero_points == shape.zero_points && 4 * in.token_tiles >= tokens) return i;
  }
  return -1;
}

std::string CheckShape(const quant::PackedShape& s) {
  if (s.rows <= 0 || s.cols <= 0 || s.cols % quant::kStripChannels != 0) {
    return "rows " + std::to_string(s.rows) + ", cols " + std::to_string(s.cols) +
           ": both must be positive and cols a multiple of 16";
  }
  if (s.chunks2 < 0 || s.chunks4 < 0 || s.num_positions() * quant::kStripChannels < s.cols) {
    return "chunks2 " + std::to_string(s.chunks2) + " and chunks4 " + std::to_string(s.chunks4) +
           " do not cover cols " + std::to_string(s.cols);
  }
  if (NumTiles(s) > kMaxTiles) {
    return std::to_string(NumTiles(s)) + " tiles per row block; the limit is " +
           std::to_string(kMaxTiles);
  }
  if (s.chunks2 * quant::ChunkChannels(2) > kMaxPositions2) {
    return "chunks2 " + std::to_string(s.chunks2) + ": outliers address at most " +
           std::to_string(kMaxPositions2) + " channels";
  }
  return "";
}

std::string Check(const Desc& d, const DeviceProps& device) {
  if (device.major < 8) {
    return "compute capability " + std::to_string(device.major) + "." +
           std::to_string(device.minor) + " is below 8.0, the least that the kernels support";
  }
  if (d.count < 1 || d.count > kMostParts) {
    return "count " + std::to_string(d.count) + " must be in [1, " + std::to_string(kMostParts) +
           "]";
  }
  for (int p = 0; p < d.count; ++p) {
    const quant::PackedShape& s = d.shapes[p];
    std::string error = CheckShape(s);
    if (!error.empty()) return error;
    if (s.cols != d.shapes[0].cols || s.zero_points != d.shapes[0].zero_points) {
      return "matrices of one group must have the same cols and zero_points; part " +
             std::to_string(p) + " has cols " + std::to_string(s.cols);
    }
  }
  if (d.m <= 0) return "m " + std::to_string(d.m) + " must be positive";
  return "";
}

// The cheapest number of warps: fewest idle warp-rounds while a block works through its tiles.
int ChooseWarps(int items, int least, int most) {
  int best = most;
  double best_cost = 1e30;
  for (int warps = most; warps >= least; --warps) {
    const double cost = static_cast<double>(CeilDiv(items, warps)) * warps / items +
                        0.01 * (most - warps);  // fewer warps hide less latency
    if (cost < best_cost) {
      best_cost = cost;
      best = warps;
    }
  }
  return best;
}

// Fills the plan for `per_mp` resident blocks per multiprocessor, in `waves` one after the other;
// false if it does not fit.
bool TryGeometry(const quant::PackedShape& shape, const DeviceProps& device, const Tuning& tuning,
                 int per_mp, int waves, int fewest_warps, SmallPlan* plan) {
  const Instance& in = kSmallTable[plan->instance];
  constexpr int kReserved = 1024;  // per block, taken by the system
  const int budget =
      std::min(device.shared_per_block, device.shared_per_multiprocessor / per_mp - kReserved);
  const int row_groups = CeilDiv(shape.row_blocks(), in.row_blocks);
  plan->blocks = std::min(row_groups, std::max(1, device.multiprocessors * per_mp * waves));
  plan->own = CeilDiv(row_groups, plan->blocks) * in.row_blocks;
  // Tiles, or (tile, row-block pair)s: what the warps share out.
  const int items = NumTiles(shape) * (in.token_tiles == 1 ? 1 : plan->own / in.row_blocks);
  const int most = in.max_warps;
  plan->warps =
      tuning.warps > 0 ? std::min(tuning.warps, most) : ChooseWarps(items, std::min(most, 8), most);
  const int least = std::min(plan->warps, fewest_warps);
  for (;; plan->warps -= 2) {
    plan->shared_bytes = LayoutShared(shape, *plan).total;
    if (plan->shared_bytes <= static_cast<size_t>(budget)) return true;
    if (tuning.warps > 0 || plan->warps - 2 < least) return false;
  }
}

// The best geometry for groups of `tokens` tokens: without a second wave if possible.
bool TryGroups(const quant::PackedShape& shape, int m, const DeviceProps& device,
               const Tuning& tuning, int tokens, SmallPlan* plan) {
  plan->group_tokens = tokens;
  plan->groups = CeilDiv(m, tokens);
  plan->instance = FindInstance(shape, tokens);
  const int fixed = tuning.blocks_per_multiprocessor;
  const int row_blocks = shape.row_blocks();
  // Another wave of blocks costs less than a block with too few warps.
  for (int fewest_warps : {12, 4}) {
    for (int waves = 1;; waves *= 2) {
      for (int per_mp = fixed > 0 ? fixed : kSmallTable[plan->instance].residency; per_mp >= 1;
           --per_mp) {
        if (TryGeometry(shape, device, tuning, per_mp, waves, fewest_warps, plan)) return true;
        if (fixed > 0) break;
      }
      if (device.multiprocessors * waves >= row_blocks) break;
    }
  }
  return false;
}

size_t GroupBytes(StagedForm form, const quant::PackedShape& shape, int tokens) {
  switch (form) {
    case StagedForm::kSlabs:
      return WideGroupBytes(shape, tokens);
    case StagedForm::kHalves:
      return HalfGroupBytes(shape, tokens);
    default:
      return StagedGroupBytes(shape, tokens);
  }
}

// The small kernel reads every column tile of a quad but the last one whole (ActivationView), so
// for few tokens it reads so many bytes behind the last quad, which nobody uses.
size_t ReadBehindQuads(const SmallPlan& plan) {
  const int columns = 8 * (kSmallTable[plan.instance].token_tiles - 1);
  return size_t{kColumnBytes} * std::max(0, columns - 2 * plan.group_tokens);
}

}  // namespace

std::span<const Instance> SmallInstances() { return kSmallTable; }

size_t StagedGroupBytes(const quant::PackedShape& shape, int tokens) {
  const size_t meta = size_t{8} * NumTiles(shape) * EvenTokens(tokens);
  return meta + size_t{1} * NumQuads(shape) * QuadBytes(tokens);
}

int Plan::group_tokens(const Desc& desc, int part) const {
  switch (path) {
    case Path::kSmall:
      return small[part].group_tokens;
    case Path::kStream:
      return stream.tokens();
    case Path::kWide:
      return wide.tokens;
    case Path::kHalf:
      return half.tokens;
    default:
      return desc.m;
  }
}

int Plan::groups(int part) const {
  switch (path) {
    case Path::kSmall:
      return small[part].groups;
    case Path::kWide:
      return wide.groups;
    case Path::kHalf:
      return half.groups;
    default:
      return 1;
  }
}

size_t StagedBytes(const Desc& desc, const Plan& plan) {
  size_t bytes = 0;
  for (int p = 0; p < desc.count && plan.staged(); ++p) {
    bytes += plan.groups(p) * GroupBytes(plan.form(), desc.shapes[p], plan.group_tokens(desc, p));
  }
  if (plan.path == Path::kSmall) bytes += ReadBehindQuads(plan.small[desc.count - 1]);
  return bytes;
}

LinearInput InputOf(const Desc& desc, const Plan& plan, const DeviceGroup& group, void* staged,
                    void* plain) {
  LinearInput in;
  in.plain = plain;
  in.plain_type = desc.x_type;
  if (!plan.staged()) return in;
  in.count = desc.count;
  uint8_t* at = static_cast<uint8_t*>(staged);
  for (int p = 0; p < desc.count; ++p) {
    StageTarget& to = in.parts[p];
    to.shape = desc.shapes[p];
    to.strip_order = group.parts[p].strip_order;
    to.staged = at;
    to.group_tokens = plan.group_tokens(desc, p);
    to.form = plan.form();
    to.group_bytes = GroupBytes(to.form, to.shape, to.group_tokens);
    at += size_t{1} * plan.groups(p) * to.group_bytes;
  }
  return in;
}

SharedLayout LayoutShared(const quant::PackedShape& shape, const SmallPlan& plan) {
  SharedLayout out;
  const Instance& in = kSmallTable[plan.instance];
  out.tile_bytes = static_cast<int>(quant::TileBytes(2, quant::kTileChunks, shape.zero_points));
  out.terms = plan.warps * kAsyncStages * in.row_blocks * out.tile_bytes;
  out.outliers = out.terms + plan.own * NumTiles(shape) * TermFloats(in.token_tiles) *
                                 static_cast<int>(sizeof(float));
  // Room for outliers at 0.4 % of all weights; longer lists are read from global memory.
  const int rows = plan.own * quant::kBlockRows;
  out.outlier_bounds = rows * kSegments + 1;
  out.outlier_entries = rows * std::max(4, shape.cols / 256);
  out.total =
      static_cast<int>(Align(out.outliers + 4 * (out.outlier_bounds + out.outlier_entries), 16));
  return out;
}

OutlierLists RepackOutliers(const quant::PackedMatrix& m) {
  OutlierLists out;
  if (m.outlier_start == nullptr) return out;
  const int tiles2 = m.shape.tiles(2), tiles = NumTiles(m.shape);
  std::vector<int> segment_of(tiles2);
  for (int s = 0; s < kSegments; ++s) {
    for (int t = SegmentBegin(tiles, s); t < std::min(SegmentBegin(tiles, s + 1), tiles2); ++t) {
      segment_of[t] = s;
    }
  }
  const auto for_each = [&](const auto& visit) {
    for (size_t list = 0; list < m.shape.num_outlier_lists(); ++list) {
      const size_t block = list / tiles2, tile = list % tiles2;
      for (uint32_t i = m.outlier_start[list]; i < m.outlier_start[list + 1]; ++i) {
        const uint32_t e = m.outliers[i];
        const size_t row = block * quant::kBlockRows + quant::OutlierRow(e);
        const uint32_t position =
            static_cast<uint32_t>(tile * quant::kTileChunks * quant::ChunkChannels(2)) +
            static_cast<uint32_t>(quant::OutlierPosition(e));
        visit(row * kSegments + segment_of[tile], position | (e & 0xFFFF0000u));
      }
    }
  };
  const size_t lists = size_t{1} * m.shape.row_blocks() * quant::kBlockRows * kSegments;
  out.start.assign(lists + 1, 0);
  for_each([&](size_t list, uint32_t) { ++out.start[list + 1]; });
  for (size_t i = 0; i < lists; ++i) out.start[i + 1] += out.start[i];
  out.entries.resize(out.start[lists]);
  std::vector<uint32_t> next(out.start.begin(), out.start.end() - 1);
  for_each([&](size_t list, uint32_t entry) { out.entries[next[list]++] = entry; });
  if (out.entries.empty()) out.start.clear();
  return out;
}

Plan Select(const Desc& desc, const DeviceProps& device, const Tuning& tuning) {
  Plan plan;
  plan.error = Check(desc, device);
  if (!plan.error.empty()) return plan;
  if (SelectStream(desc, device, tuning, &plan.stream)) {
    plan.path = Path::kStream;
    return plan;
  }
  if (SelectHalf(desc, device, tuning, &plan.half)) {
    plan.path = Path::kHalf;
    return plan;
  }
  if (SelectWide(desc, device, tuning, &plan.wide)) {
    plan.path = Path::kWide;
    return plan;
  }
  if (desc.m > kMaxSmallTokens) {
    plan.path = Path::kDequantize;
    if (desc.x_type == DType::kF32)
      plan.error = "x_type f32 with m " + std::to_string(desc.m) + ": more than " +
                   std::to_string(kMaxSmallTokens) + " tokens take fp16 or bf16";
    return plan;
  }
  for (int p = 0; p < desc.count; ++p) {
    int tokens = std::min(desc.m, kMostGroupTokens);
    while (tokens >= 1 &&
           !TryGroups(desc.shapes[p], desc.m, device, tuning, tokens, &plan.small[p])) {
      tokens /= 2;
    }
    if (tokens == 0) {
      plan.error = "no kernel geometry: cols " + std::to_string(desc.shapes[p].cols) +
                   " does not fit " + std::to_string(device.shared_per_block) +
                   " bytes of shared memory per block";
      return plan;
    }
  }
  return plan;
}

}  // namespace fewbit::cuda
