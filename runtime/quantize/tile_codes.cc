#include "runtime/quantize/tile_codes.h"

#include <algorithm>

#include "kernels/quant_layout.h"

namespace fewbit {
namespace {

// Calls fn(row, lane) for the rows of the block that the matrix has.
template <typename Fn>
void ForRowsOf(const MatrixPlan& plan, int row_block, const Fn& fn) {
  const int first = row_block * quant::kBlockRows;
  const int count = std::min(kLanes, plan.rows - first);
  for (int l = 0; l < count; ++l) fn(first + l, l);
}

// The first code of the strip in a row of the result.
size_t CodeIndex(const MatrixPlan& plan, int row, int strip) {
  const size_t columns = static_cast<size_t>(plan.counts.shape.num_positions()) * kGroup;
  return static_cast<size_t>(row) * columns + static_cast<size_t>(plan.position(strip)) * kGroup;
}

}  // namespace

void TileCodes::Begin(const MatrixPlan& plan, int row_block, const TileRange& tile) {
  bits = tile.bits;
  channels = tile.channels();
  for (int i = 0; i < channels; ++i) {
    for (int l = 0; l < kLanes; ++l) {
      is_outlier[i * kLanes + l] = plan.IsOutlier(row_block * quant::kBlockRows + l,
                                                  tile.first_strip + i / kGroup, i % kGroup)
                                       ? 1
                                       : 0;
    }
  }
}

float TileCodes::ValueOf(bool zero_points, const TileFit& fit, int channel, int lane) const {
  const int code = codes[channel * kLanes + lane];
  const float step = fit.step(channel / kGroup, lane);
  return zero_points ? CodeWeight(bits, code, step, fit.zero[channel / kGroup][lane])
                     : CodeWeight(bits, code, step);
}

void TileCodes::Choose(bool zero_points, const TileFit& fit, int channel, const float* targets) {
  const int strip = channel / kGroup;
  for (int l = 0; l < kLanes; ++l) {
    const int i = channel * kLanes + l;
    const float step = fit.step(strip, l);
    codes[i] =
        static_cast<uint8_t>(zero_points ? NearestCode(bits, targets[l], step, fit.zero[strip][l])
                                         : NearestCode(bits, targets[l], step));
    values[i] = is_outlier[i] != 0 ? targets[l] : ValueOf(zero_points, fit, channel, l);
  }
}

void KeepTile(const MatrixPlan& plan, int row_block, const TileRange& tile, const TileCodes& codes,
              const TileFit& fit, quant::UnpackedMatrix* result, KeptTile* kept) {
  kept->fit = fit;
  ForRowsOf(plan, row_block, [&](int row, int l) {
    for (int g = 0; g < tile.strips; ++g) {
      uint8_t* out = result->codes.data() + CodeIndex(plan, row, tile.first_strip + g);
      for (int k = 0; k < kGroup; ++k) out[k] = codes.codes[(g * kGroup + k) * kLanes + l];
    }
  });
  kept->outliers.clear();
  for (int i = 0; i < codes.channels * kLanes; ++i) {
    if (codes.is_outlier[i] != 0) kept->outliers.push_back(codes.values[i]);
  }
}

void RecallTile(const MatrixPlan& plan, int row_block, const TileRange& tile,
                const quant::UnpackedMatrix& result, const KeptTile& kept, TileCodes* codes) {
  std::fill_n(codes->codes, codes->channels * kLanes, uint8_t{0});
  ForRowsOf(plan, row_block, [&](int row, int l) {
    for (int g = 0; g < tile.strips; ++g) {
      const uint8_t* from = result.codes.data() + CodeIndex(plan, row, tile.first_strip + g);
      for (int k = 0; k < kGroup; ++k) codes->codes[(g * kGroup + k) * kLanes + l] = from[k];
    }
  });
  size_t next = 0;
  for (int i = 0; i < codes->channels; ++i) {
    for (int l = 0; l < kLanes; ++l) {
      const int at = i * kLanes + l;
      codes->values[at] = codes->is_outlier[at] != 0
                              ? kept.outliers[next++]
                              : codes->ValueOf(plan.method->zero_points, kept.fit, i, l);
    }
  }
}

void FillTileBlock(const MatrixPlan& plan, int row_block, const TileRange& tile,
                   std::span<const float> h, TileBlock* block) {
  block->bits = tile.bits;
  block->strips = tile.strips;
  for (int i = 0; i < tile.channels(); ++i) {
    const int strip = tile.first_strip + i / kGroup;
    float* out = block->h[i / kGroup] + i % kGroup * kLanes;
    for (int l = 0; l < kLanes; ++l) {
      const int row = row_block * quant::kBlockRows + l;
      out[l] = plan.IsOutlier(row, strip, i % kGroup) ? 0.0f : h[i];
    }
  }
}

void RefitSubScale(const LaneKernels& kernels, const TileBlock& block, int strip, TileFit* fit) {
  constexpr int kSubScales = quant::kMaxSubScale + 1;
  alignas(64) float steps[kSubScales * kLanes];
  alignas(64) float errors[kSubScales * kLanes];
  for (int s = 0; s < kSubScales; ++s) {
    for (int l = 0; l < kLanes; ++l) steps[s * kLanes + l] = static_cast<float>(s) * fit->d[l];
  }
  kernels.symmetric_errors(block.bits, block.w[strip], block.h[strip], steps, kSubScales, errors);
  for (int l = 0; l < kLanes; ++l) {
    int best = 0;
    for (int s = 1; s < kSubScales; ++s) {
      if (errors[s * kLanes + l] < errors[best * kLanes + l]) best = s;
    }
    fit->sub[strip][l] = static_cast<uint8_t>(best);
  }
}

}  // namespace fewbit
