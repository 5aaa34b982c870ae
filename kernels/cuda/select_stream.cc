// Geometry of the persistent small-batch kernel.
#include <algorithm>

#include "kernels/cuda/linear.h"

namespace fewbit::cuda {
namespace {

constexpr int kLine = 128;       // copies begin and end at whole lines
constexpr int kReserved = 1024;  // bytes of shared memory that the system takes per block
// Blocks that start early go wherever there is room, and two of one kernel on a multiprocessor take
// twice as long as all others. So every other layer of a model takes a little more than half of a
// multiprocessor, of which two never fit, and those between them as much less.
constexpr int kUneven = 1024;

int CeilDiv(int a, int b) { return (a + b - 1) / b; }
int AlignUp(int bytes, int to) { return CeilDiv(bytes, to) * to; }

// Blocks for each matrix so that the busiest block has as few bytes to read as possible.
void ShareBlocks(const Desc& d, int most_blocks, StreamPlan* plan) {
  int blocks[kMostParts] = {};
  const auto cost = [&](int p) {
    return CeilDiv(d.shapes[p].row_blocks(), blocks[p]) * d.shapes[p].row_block_bytes();
  };
  int total = d.count;
  for (int p = 0; p < d.count; ++p) blocks[p] = 1;
  while (total < most_blocks) {
    int busiest = 0;
    for (int p = 1; p < d.count; ++p) {
      if (cost(p) > cost(busiest)) busiest = p;
    }
    if (blocks[busiest] == d.shapes[busiest].row_blocks()) break;
    ++blocks[busiest];
    ++total;
  }
  for (int p = 0; p < d.count; ++p) plan->first_block[p + 1] = plan->first_block[p] + blocks[p];
  plan->blocks = total;
}

// Query, key and value; gate and up: they widen, and layers that do not stand between them.
bool TakesMore(const Desc& d) {
  int rows = 0;
  for (int p = 0; p < d.count; ++p) rows += d.shapes[p].rows;
  return rows > d.shapes[0].cols;
}

// Whether blocks make their input themselves: where that costs less than a launch before.
RowKind InputKind(const Desc& d) {
  const int reads = d.input == RowKind::kRows ? 1 : 2;
  const int64_t bytes = int64_t{4} * reads * d.m * d.shapes[0].cols;
  return d.m <= kMostMadeTokens && bytes <= kMostMadeBytes ? d.input : RowKind::kStaged;
}

// Phases of a term slot's barrier are told apart by their parity, so a warp that waits for one must
// know that those before it are over. It knows so of the phase that it waited for last: consumers
// come to a row block after at most so many, pairs of outlier warps after as many as there are. If
// these are no more than the slots, or no slot has a third phase, no old phase is taken for a new.
bool PhasesAreClear(const Desc& d, const StreamForm& form, int term_slots, int most_own) {
  if (most_own <= 2 * term_slots) return true;
  int step = form.outliers / 2;
  for (int p = 0; p < d.count; ++p) {
    step = std::max(step, CeilDiv(form.consumers, NumTiles(d.shapes[p])));
  }
  return step <= term_slots;
}

// The layout of a block for plan->stages and plan->term_slots, with room for every part.
StreamLayout Layout(const Desc& d, const StreamPlan& plan) {
  StreamLayout out;
  const int tile =
      static_cast<int>(quant::TileBytes(2, quant::kTileChunks, d.shapes[0].zero_points));
  out.stage_bytes = AlignUp(plan.stage_tiles * tile + 2 * kLine, kLine);
  int x = 0, tiles = 0, rows = 0, positions = 0;
  for (int p = 0; p < d.count; ++p) {
    const quant::PackedShape& s = d.shapes[p];
    const int blocks = plan.first_block[p + 1] - plan.first_block[p];
    x = std::max(x, static_cast<int>(StagedGroupBytes(s, plan.tokens())));
    tiles = std::max(tiles, NumTiles(s));
    positions = std::max(positions, s.num_positions());
    rows = std::max(rows, CeilDiv(s.row_blocks(), blocks) * quant::kBlockRows);
  }
  // Room for outliers at 0.22 % of all weights.
  out.entry_capacity = rows * std::max(4, d.shapes[0].cols / 448);
  out.x = plan.stages * out.stage_bytes;
  out.terms = AlignUp(out.x + x, 16);
  out.bounds = out.terms + 4 * plan.term_slots * StreamTermFloats(tiles, plan.tokens());
  out.entries = out.bounds + 4 * (rows * kSegments + 1);
  out.works = AlignUp(out.entries + 4 * out.entry_capacity, 16);
  out.barriers = out.works + plan.stages * plan.stage_tiles * 16;
  out.total = out.barriers + 8 * (2 * plan.stages + 2 * plan.term_slots);
  if (plan.input == RowKind::kNorm) {
    out.norm = AlignUp(out.total, 16);
    out.total =
        out.norm + static_cast<int>(sizeof(NormBoard)) + 4 * positions * quant::kStripChannels;
  }
  out.total = AlignUp(out.total, 128);
  return out;
}

// The geometry with x from `input`; false if there is no room.
bool Geometry(const Desc& desc, const DeviceProps& device, const Tuning& tuning, RowKind input,
              StreamPlan* plan) {
  *plan = {};
  plan->input = input;
  while (desc.m > kStreamForms[plan->form].tokens) ++plan->form;
  const StreamForm& form = kStreamForms[plan->form];
  ShareBlocks(desc, device.multiprocessors, plan);
  plan->early = !tuning.no_early_start && !tuning.synchronous;
  plan->stage_tiles = tuning.synchronous ? form.consumers : form.stage_tiles;
  int most_own = 1;
  for (int p = 0; p < desc.count; ++p) {
    most_own = std::max(most_own, CeilDiv(desc.shapes[p].row_blocks(),
                                          plan->first_block[p + 1] - plan->first_block[p]));
  }
  // Every consumer uses every `step`th stage. It must meet each phase of a slot, or it could take
  // an old one for the one that it waits for: so a multiple of that many stages.
  const int step = form.consumers / plan->stage_tiles;
  const int most = tuning.stages > 0 ? std::min(tuning.stages, kMostStages) : kMostStages;
  const int wanted = tuning.synchronous ? 1 : std::max(most / step, 1) * step;
  // About half of a multiprocessor, so that the next layer's blocks find room; if that leaves
  // hardly a ring, all of it. Few term slots serve, but with more nobody waits for them.
  const int half = device.shared_per_multiprocessor / 2 - kReserved;
  const bool more = TakesMore(desc);
  const int share = more ? half + kUneven : half - kUneven;
  struct Try {
    int budget, stages, slots;  // the least that will do
  };
  const int own_slots = std::min(most_own, kMostTermSlots);
  for (const Try& t : {Try{share, 4, 2}, Try{share, 2, 2}, Try{device.shared_per_block, 2, 2},
                       Try{device.shared_per_block, 1, 1}}) {
    for (plan->term_slots = own_slots; plan->term_slots >= std::min(t.slots, own_slots);
         --plan->term_slots) {
      if (!PhasesAreClear(desc, form, plan->term_slots, most_own)) break;
      for (plan->stages = wanted; plan->stages >= std::max(std::min(t.stages, wanted), step);
           plan->stages -= step) {
        plan->layout = Layout(desc, *plan);
        if (plan->layout.total > t.budget) continue;
        plan->lets_next = plan->early && plan->layout.total <= share;
        if (plan->lets_next && more) {
          plan->layout.total = std::max(plan->layout.total, AlignUp(half + 1, 128));
        }
        return true;
      }
    }
  }
  return false;
}

}  // namespace

bool SelectStream(const Desc& desc, const DeviceProps& device, const Tuning& tuning,
                  StreamPlan* plan) {
  if (device.major < 9 || desc.m > kMaxStreamTokens || tuning.use_cp_async) return false;
  const RowKind input = InputKind(desc);
  // An early start is worth more than a launch less.
  if (input != RowKind::kStaged && Geometry(desc, device, tuning, input, plan) && plan->lets_next) {
    return true;
  }
  return Geometry(desc, device, tuning, RowKind::kStaged, plan);
}

}  // namespace fewbit::cuda
