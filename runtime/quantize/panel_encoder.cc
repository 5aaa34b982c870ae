#include "runtime/quantize/panel_encoder.h"

#include <algorithm>

#include "runtime/products/pieces.h"
#include "runtime/quantize/source_rows.h"

namespace fewbit {
namespace {

// [channels][16 rows] <-> the 16 columns from `column` on of a panel's rows.
void TakeColumns(const float* panel, int panel_rows, int channels, int column, float* lanes) {
  for (int i = 0; i < channels; ++i) {
    std::copy_n(panel + static_cast<size_t>(i) * panel_rows + column, kLanes, lanes + i * kLanes);
  }
}
void PutColumns(const float* lanes, int channels, int panel_rows, int column, float* panel) {
  for (int i = 0; i < channels; ++i) {
    std::copy_n(lanes + i * kLanes, kLanes, panel + static_cast<size_t>(i) * panel_rows + column);
  }
}

}  // namespace

PanelEncoder::PanelEncoder(const MatrixPlan& plan, const Matrix& matrix, std::span<const float> h,
                           const HessianMatrix& hessian, const ErrorFeedback* factor,
                           ScratchFloats* misses, TeamProducts* products,
                           const LaneKernels& kernels)
    : plan_(plan),
      matrix_(matrix),
      hessian_(hessian),
      h_(h),
      factor_(factor),
      misses_(*misses),
      products_(*products),
      kernels_(kernels),
      damping_(static_cast<float>(kHessianDamping * hessian.MeanDiagonal())),
      panel_rows_(PanelRows(plan.cols)),
      panels_(static_cast<int>(Pieces(plan.rows, panel_rows_))),
      ranks_(products->team()->size()) {}

int PanelEncoder::blocks_of(int panel) const {
  return std::min(panel_blocks(), plan_.row_blocks() - panel * panel_blocks());
}

// What the codes of a panel shall come to: the weights W, or with a correction what gives W z from
// x best in the mean, W (I + D H^-1) with the drift D; as much of that as the method says.
void PanelEncoder::LoadTargets(int number, int panel, Rank* rank) const {
  std::vector<float>& targets = rank->errors;
  targets.assign(static_cast<size_t>(plan_.cols) * panel_rows_, 0.0f);
  const auto source_of = [this](int i) { return plan_.source_channel(i / kGroup) + i % kGroup; };
  if (!misses_.empty()) {
    const size_t first = static_cast<size_t>(panel) * targets.size();
    const float* misses = misses_.values().data() + first;
    for (int i = 0; i < plan_.cols; ++i) {
      std::copy_n(misses + static_cast<size_t>(source_of(i)) * panel_rows_, panel_rows_,
                  targets.data() + static_cast<size_t>(i) * panel_rows_);
    }
    misses_.Drop(first, targets.size());
    factor_->Solve(&products_.multiplier(number), panel_rows_, targets.data());
    for (float& target : targets) target *= plan_.method->correction;
  }
  for (int b = 0; b < blocks_of(panel); ++b) {
    LoadRowBlock(matrix_, panel * panel_blocks() + b, &rank->source);
    for (int i = 0; i < plan_.cols; ++i) {
      const float* weights = rank->source.data() + static_cast<size_t>(source_of(i)) * kLanes;
      float* to = targets.data() + static_cast<size_t>(i) * panel_rows_ + b * kLanes;
      for (int l = 0; l < kLanes; ++l) to[l] += weights[l];
    }
  }
}

// The codes of sixteen rows, the columns from `column` on of the panel: each channel's error
// becomes part of what the later ones are to be.
void PanelEncoder::EncodeRows(const TileRange& tile, int column, DescentTile* state,
                              Rank* rank) const {
  const int channels = tile.channels(), first = tile.first_channel();
  const bool feedback = plan_.method->error_feedback;
  float* errors = rank->errors.data() + static_cast<size_t>(first) * panel_rows_ + column;
  std::vector<float>& work = rank->work;
  work.resize(static_cast<size_t>(channels) * kLanes);
  TakeColumns(rank->terms.data(), panel_rows_, channels, column, work.data());
  for (int i = 0; i < channels; ++i) {
    for (int l = 0; l < kLanes; ++l) {
      float& value = work[i * kLanes + l];
      value = errors[static_cast<size_t>(i) * panel_rows_ + l] - value;
    }
  }
  TileBlock* block = &rank->block;
  std::copy(work.begin(), work.end(), block->w[0]);
  if (plan_.method->search_scales) {
    FitSearched(kernels_, *block, &state->fit);
  } else {
    FitMinMax(*block, &state->fit);
  }
  const int end = first + channels;
  for (int g = 0; g < tile.strips; ++g) {
    float* group = work.data() + g * kGroup * kLanes;
    std::copy_n(group, kGroup * kLanes, block->w[g]);
    if (feedback && plan_.method->search_scales) RefitSubScale(kernels_, *block, g, &state->fit);
    float strip_errors[kGroup * kLanes];
    for (int k = 0; k < kGroup; ++k) {
      const int i = g * kGroup + k;
      state->codes.Choose(plan_.method->zero_points, state->fit, i, group + k * kLanes);
      float* error = errors + static_cast<size_t>(i) * panel_rows_;
      for (int l = 0; l < kLanes; ++l) {
        error[l] = state->codes.values[i * kLanes + l] - error[l];
        strip_errors[k * kLanes + l] = error[l];
      }
      if (!feedback) continue;
      factor_->SpreadInStrip(kernels_, first + i, strip_errors + k * kLanes,
                             group + (k + 1) * kLanes);
    }
    if (!feedback) continue;
    factor_->SpreadStrip(kernels_, tile.first_strip + g, strip_errors, end,
                         group + kGroup * kLanes);
  }
}

// H of the tile's channels, with the damping.
void PanelEncoder::LoadHessian(const TileRange& tile, Rank* rank) const {
  const int channels = tile.channels(), first = tile.first_channel();
  rank->hessian.resize(static_cast<size_t>(channels) * channels);
  float* to = rank->hessian.data();
  for (int begin = 0; begin < channels; begin += kGroup) {
    for (int i = begin; i < channels; ++i) {
      const float* row = hessian_.row(first + i) + first;
      for (int j = begin; j < std::min(begin + kGroup, i + 1); ++j) {
        to[static_cast<size_t>(i) * channels + j] = row[j];
        to[static_cast<size_t>(j) * channels + i] = row[j];
      }
    }
  }
  for (int i = 0; i < channels; ++i) to[static_cast<size_t>(i) * (channels + 1)] += damping_;
}

// terms <- H errors, for the channels of the tile.
void PanelEncoder::Slopes(int number, const TileRange& tile, Rank* rank) const {
  TileProduct product;
  product.m = tile.channels();
  product.n = panel_rows_;
  product.c = rank->terms.data();
  product.c_row_stride = panel_rows_;
  const auto add = [&](TileOperand a, int from, int count) {
    if (count == 0) return;
    product.k = count;
    product.a = a;
    product.b = {rank->errors.data() + static_cast<size_t>(from) * panel_rows_, panel_rows_, false};
    products_.multiplier(number).Multiply(product);
    product.beta = 1.0f;
  };
  const int begin = tile.first_channel(), end = begin + tile.channels(), size = hessian_.size();
  add({rank->hessian.data(), tile.channels(), false}, begin, end - begin);
  add({hessian_.row(begin), size, false}, 0, begin);
  add({hessian_.row(end < size ? end : 0) + begin, size, true}, end, size - end);
}

void PanelEncoder::DescendTile(int number, int panel, int index, quant::UnpackedMatrix* result,
                               std::vector<KeptTile>* kept, Rank* rank) const {
  const TileRange& tile = plan_.tiles[index];
  const int channels = tile.channels();
  LoadHessian(tile, rank);
  Slopes(number, tile, rank);
  const CodeDescent descent(kernels_, rank->hessian.data(), channels);
  const int first_block = panel * panel_blocks();
  const auto kept_of = [&](int b) -> KeptTile& {
    return (*kept)[static_cast<size_t>(first_block + b) * plan_.tiles.size() + index];
  };
  for (int b = 0; b < blocks_of(panel); ++b) {
    DescentTile& state = rank->tiles[b];
    state.codes.Begin(plan_, first_block + b, tile);
    RecallTile(plan_, first_block + b, tile, *result, kept_of(b), &state.codes);
    state.fit = kept_of(b).fit;
    std::fill_n(state.change, channels * kLanes, 0.0f);
    TakeColumns(rank->terms.data(), panel_rows_, channels, b * kLanes, state.slope);
    descent.MoveStrips(plan_.method->descent, &state);
    PutColumns(state.direction, channels, panel_rows_, b * kLanes, rank->direction.data());
  }
  TileProduct bend;
  bend.m = bend.k = channels;
  bend.n = panel_rows_;
  bend.a = {rank->hessian.data(), channels, false};
  bend.b = {rank->direction.data(), panel_rows_, false};
  bend.c = rank->terms.data();
  bend.c_row_stride = panel_rows_;
  products_.multiplier(number).Multiply(bend);
  for (int b = 0; b < blocks_of(panel); ++b) {
    DescentTile& state = rank->tiles[b];
    TakeColumns(rank->terms.data(), panel_rows_, channels, b * kLanes, state.bend);
    descent.MoveTileScales(&state);
    float* errors =
        rank->errors.data() + static_cast<size_t>(tile.first_channel()) * panel_rows_ + b * kLanes;
    for (int i = 0; i < channels; ++i) {
      for (int l = 0; l < kLanes; ++l) {
        errors[static_cast<size_t>(i) * panel_rows_ + l] += state.change[i * kLanes + l];
      }
    }
    KeepTile(plan_, first_block + b, tile, state.codes, state.fit, result, &kept_of(b));
  }
}

void PanelEncoder::EncodeTile(int panel, const TileRange& tile, Rank* rank, int number) const {
  const int channels = tile.channels(), first = tile.first_channel();
  std::vector<float> h(channels);
  if (plan_.method->error_feedback) {
    factor_->Collect(&products_.multiplier(number), first, first + channels, rank->errors.data(),
                     panel_rows_, rank->terms.data());
    for (int i = 0; i < channels; ++i) h[i] = factor_->weight(first + i);
  } else {
    std::fill_n(rank->terms.begin(), static_cast<size_t>(channels) * panel_rows_, 0.0f);
    for (int i = 0; i < channels; ++i) {
      h[i] = h_[plan_.source_channel(tile.first_strip + i / kGroup) + i % kGroup];
    }
  }
  for (int b = 0; b < blocks_of(panel); ++b) {
    const int row_block = panel * panel_blocks() + b;
    FillTileBlock(plan_, row_block, tile, h, &rank->block);
    rank->tiles[b].codes.Begin(plan_, row_block, tile);
    EncodeRows(tile, b * kLanes, &rank->tiles[b], rank);
  }
}

void PanelEncoder::Run(int number, int panel, quant::UnpackedMatrix* result,
                       std::vector<KeptTile>* kept) {
  Rank* rank = &ranks_[number];
  const size_t tile_floats = static_cast<size_t>(kMaxTileChannels) * panel_rows_;
  rank->terms.resize(tile_floats);
  rank->direction.resize(tile_floats);
  rank->tiles.resize(panel_blocks());
  LoadTargets(number, panel, rank);
  const int tiles = static_cast<int>(plan_.tiles.size());
  for (int t = 0; t < tiles; ++t) {
    EncodeTile(panel, plan_.tiles[t], rank, number);
    for (int b = 0; b < blocks_of(panel); ++b) {
      const int row_block = panel * panel_blocks() + b;
      KeepTile(plan_, row_block, plan_.tiles[t], rank->tiles[b].codes, rank->tiles[b].fit, result,
               &(*kept)[static_cast<size_t>(row_block) * tiles + t]);
    }
  }
  for (int sweep = 0; sweep < plan_.method->descent_sweeps; ++sweep) {
    for (int t = 0; t < tiles; ++t) DescendTile(number, panel, t, result, kept, rank);
  }
}

}  // namespace fewbit
