// Linear layers on the GPU: y[m, rows] = x[m, cols] W^T for packed weights. This part is host code
// without CUDA: what a layer needs, which kernel instance it gets, and its launch geometry. The
// launches are in linear_launch.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/cuda/device_tile.h"
#include "kernels/cuda/half_tile.h"
#include "kernels/cuda/staging.h"
#include "kernels/cuda/stream_plan.h"
#include "kernels/cuda/wide_tile.h"
#include "kernels/matrix.h"

namespace fewbit::cuda {

// What the geometry depends on, read once from the device.
struct DeviceProps {
  int major = 0, minor = 0;
  int multiprocessors = 0;
  int shared_per_multiprocessor = 0;  // bytes
  int shared_per_block = 0;           // bytes, opt-in limit
  // Of the wide kernels, one block per multiprocessor, resident at once; 0 but on sm_90.
  int wide_teams = 0, wide_clusters = 0;
  int half_clusters = 0;  // of the kernel for many tokens, likewise
};

// One to kMostParts matrices with the same input, one launch.
struct Desc {
  int count = 1;
  quant::PackedShape shapes[kMostParts];
  int m = 1;                   // tokens
  DType x_type = DType::kF16;  // of plain activations: kF16, kBF16 or, staged only, kF32
  DType y_type = DType::kF16;  // kF16, kBF16 or kF32
  // What the layer could make its input from; whether it does is up to the plan.
  RowKind input = RowKind::kStaged;
};

// A packed matrix in device memory: tiles as Repack() writes them, outliers as RepackOutliers() and
// RepackOutliersByTile().
struct DeviceMatrix {
  quant::PackedShape shape;
  const uint8_t* tiles = nullptr;
  const uint16_t* strip_order = nullptr;
  const uint32_t* outlier_start = nullptr;       // [row_blocks * 16 * kSegments + 1]
  const uint32_t* outliers = nullptr;            // null: none
  const uint32_t* tile_outlier_start = nullptr;  // [num_outlier_lists + 1]; null: not for kHalf
  const uint32_t* tile_outliers = nullptr;       // [TileOutlierEntries()], 16-byte aligned
};

struct DeviceGroup {
  int count = 0;
  DeviceMatrix parts[kMostParts];
};

// Outliers by row and segment, so that one lane sums one list in order: entries
// start[row * kSegments + segment] .. of `entries`, each channel position | fp16 value << 16.
struct OutlierLists {
  std::vector<uint32_t> start;  // empty: no outliers
  std::vector<uint32_t> entries;
};
// From the lists of a packed matrix in host memory.
OutlierLists RepackOutliers(const quant::PackedMatrix& matrix);

// Outliers for Path::kHalf: the packed matrix's own lists, entries as HalfOutlier has them. What
// lies twice in one place is added up. `entries` is filled up, so that lists can be copied by 16
// bytes.
OutlierLists RepackOutliersByTile(const quant::PackedMatrix& matrix);
constexpr size_t TileOutlierEntries(size_t outliers) { return (outliers + 3) / 4 * 4; }

// One compiled kernel of the small path, which runs from sm_80 on. The table holds an instance only
// if a launch can reach it.
struct Instance {
  int token_tiles;  // of 4 tokens each
  int row_blocks;   // that a warp computes at once, so that it loads x once for all of them
  int max_warps;    // of a block
  int residency;    // blocks per multiprocessor that registers must leave room for
  bool zero_points;
};
std::span<const Instance> SmallInstances();

// The most tokens that one block takes; more run as groups in one grid.
inline constexpr int kMostGroupTokens = 16;
inline constexpr int kMaxSmallTokens = 64;
inline constexpr int kAsyncStages = 3;          // tiles under way per warp
inline constexpr int kMaxTiles = 256;           // of a row block
inline constexpr int kMaxPositions2 = 1 << 16;  // of channels in 2-bit strips

enum class Path : uint8_t {
  kStream,      // sm_90, up to kMaxStreamTokens: persistent blocks
  kWide,        // sm_90, any number of tokens: wgmma on integers
  kHalf,        // sm_90, many tokens (half_instances.h), fp16 input: wgmma on fp16
  kSmall,       // from sm_80 on, up to kMaxSmallTokens: cp.async, mma on integers
  kDequantize,  // once into fp16 scratch, then cuBLAS
};

// Zero means: choose. For experiments and ablations.
struct Tuning {
  int warps = 0;
  int stages = 0;
  int blocks_per_multiprocessor = 0;
  int use_cp_async = 0;    // the path of sm_80
  int no_early_start = 0;  // without programmatic dependent launch
  int synchronous = 0;     // nothing is under way while a block computes
};

// The geometry of the small-m kernel for one matrix.
struct SmallPlan {
  int instance = 0;  // row of SmallInstances()
  int warps = 0;     // per block
  int blocks = 0;    // per token group; each owns a run of row blocks
  int own = 0;       // row blocks of one block, at most
  int group_tokens = 0;
  int groups = 1;  // token groups
  size_t shared_bytes = 0;
};

struct Plan {
  std::string error;  // empty, or why no kernel can run this
  Path path = Path::kSmall;
  StreamPlan stream;
  WidePlan wide;
  HalfPlan half;
  SmallPlan small[kMostParts];  // kSmall: one launch per matrix

  // Of the staged form of one part.
  StagedForm form() const {
    return path == Path::kWide   ? StagedForm::kSlabs
           : path == Path::kHalf ? StagedForm::kHalves
                                 : StagedForm::kColumns;
  }
  int group_tokens(const Desc& desc, int part) const;
  int groups(int part) const;

  // The launch takes a LinearInput::source of desc.input, and nothing has to be staged before.
  bool makes_input() const { return path == Path::kStream && stream.input != RowKind::kStaged; }

  // The launch can add rows to its result (LinearOutput::add): others than y, or those in y.
  bool adds() const { return path == Path::kStream; }
  bool adds_in_place() const { return path == Path::kDequantize; }

  // What the producer of the input has to leave.
  bool staged() const { return path != Path::kDequantize; }
  bool plain() const { return path == Path::kDequantize; }  // [m, cols] of x_type
};

// Deterministic; never fails with an abort: what cannot run comes back as an error that names the
// field, its value and the limit.
Plan Select(const Desc& desc, const DeviceProps& device, const Tuning& tuning = {});

// Bytes of the staged activations of one token group of `tokens` tokens, and of all matrices and
// tokens of a plan (staging.h has the form).
size_t StagedGroupBytes(const quant::PackedShape& shape, int tokens);
size_t StagedBytes(const Desc& desc, const Plan& plan);

// Bytes of LinearWorkspace::exchange (linear_launch.h), whatever the layers of this device.
size_t ExchangeBytes(const DeviceProps& device);

// What the producer of the group's input has to write, and LaunchLinear reads: the staged forms
// behind each other at `staged` (StagedBytes() bytes, 16-byte aligned) if the plan takes them, and
// `plain` if the plan needs it or the caller has another use for it (null: not wanted).
LinearInput InputOf(const Desc& desc, const Plan& plan, const DeviceGroup& group, void* staged,
                    void* plain);

// Shared memory of one block, as the kernel lays it out.
struct SharedLayout {
  int tile_bytes = 0;  // of the largest tile; a ring slot has one per row block
  int outlier_bounds = 0, outlier_entries = 0;  // words: list starts, then as many entries as fit
  int terms = 0, outliers = 0, total = 0;       // offsets and size
};
SharedLayout LayoutShared(const quant::PackedShape& shape, const SmallPlan& plan);

// The geometry of the persistent kernel; false if it cannot run this (m, sm_80, no room).
bool SelectStream(const Desc& desc, const DeviceProps& device, const Tuning& tuning,
                  StreamPlan* plan);
// The same for the wide kernel; false where there is none.
bool SelectWide(const Desc& desc, const DeviceProps& device, const Tuning& tuning, WidePlan* plan);
// The same for the kernel for many tokens.
bool SelectHalf(const Desc& desc, const DeviceProps& device, const Tuning& tuning, HalfPlan* plan);

}  // namespace fewbit::cuda
