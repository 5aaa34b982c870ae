#include "runtime/quantize/matrix_quantizer.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <memory>
#include <numeric>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/products/pieces.h"
#include "runtime/quantize/drift_product.h"
#include "runtime/quantize/error_feedback.h"
#include "runtime/quantize/matrix_plan.h"
#include "runtime/quantize/panel_encoder.h"
#include "runtime/quantize/source_rows.h"
#include "runtime/quantize/strip_choice.h"
#include "runtime/quantize/tile_codes.h"
#include "runtime/quantize/tile_fit.h"
#include "scheduler/check.h"

namespace fewbit {
namespace {

// Outliers are picked in this many rounds, at most one per group and round: taking one out moves
// the scales of its group.
constexpr int kOutlierRounds = 3;
// A channel that calibration hardly saw still keeps this share of the mean Hessian diagonal.
constexpr float kHessianFloor = 0.01f;

std::vector<float> FlooredDiagonal(const std::vector<float>& diagonal) {
  const double mean =
      std::accumulate(diagonal.begin(), diagonal.end(), 0.0) / static_cast<double>(diagonal.size());
  // All zero (nothing reached the layer): every channel counts alike.
  const float floor = mean > 0.0 ? static_cast<float>(mean) * kHessianFloor : 1.0f;
  std::vector<float> result(diagonal);
  for (float& h : result) h = std::max(h, 0.0f) + floor;
  return result;
}

class MatrixJob {
 public:
  MatrixJob(const Matrix& matrix, const Hessian& hessian, const MatrixSettings& settings,
            ThreadTeam* team, const LaneKernels& kernels)
      : matrix_(matrix),
        h_(FlooredDiagonal(hessian.diagonal)),
        settings_(settings),
        method_(*settings.method),
        team_(team),
        kernels_(kernels),
        ranks_(team->size()) {
    for (auto& rank : ranks_) rank = std::make_unique<Rank>();
    plan_.method = settings.method;
    plan_.rows = MatrixRows(matrix);
    plan_.cols = MatrixCols(matrix);
    plan_.counts = ChooseStripCounts(plan_.rows, plan_.cols, settings.share4, method_.zero_points);
    plan_.CutTiles();
  }

  // `hessian`: the constructor's, of which everything may be used.
  absl::StatusOr<QuantizedMatrix> Run(const std::string& name, Hessian* hessian,
                                      TeamProducts* products);
  std::vector<StorageChoice> Choices();

 private:
  // What one rank works on.
  struct Rank {
    std::vector<float> rows;  // of the row block at hand, as LoadRowBlock gives them
    TileBlock tile;
    TileCodes codes;
    const float* group(int source_strip) const {
      return rows.data() + static_cast<size_t>(source_strip) * kGroup * kLanes;
    }
  };

  template <typename Fn>
  void ForRowBlocks(const Fn& fn);
  std::vector<double> StripSensitivities(int bits);
  void LoadTile(int row_block, const TileRange& tile, Rank* rank) const;
  void Fit(const TileBlock& block, TileFit* fit) const;
  void ChooseOutliers();
  void MarkOutliers(int64_t budget, const std::vector<float>& gains,
                    const std::vector<uint8_t>& channels);
  absl::Status EncodePanels(Hessian* hessian, TeamProducts* products,
                            quant::UnpackedMatrix* result);
  void EncodeBlock(int row_block, Rank* rank, quant::UnpackedMatrix* result);
  void StoreTile(int row_block, const TileRange& tile, const TileFit& fit, const Rank& rank,
                 quant::UnpackedMatrix* m, MatrixQuality* quality,
                 std::vector<quant::Outlier>* outliers) const;
  QuantizedMatrix Store(quant::UnpackedMatrix unpacked);
  KeptTile& kept(int row_block, int tile) {
    return kept_[static_cast<size_t>(row_block) * plan_.tiles.size() + tile];
  }

  const Matrix& matrix_;
  const std::vector<float> h_;  // [K] in source order, all positive
  const MatrixSettings& settings_;
  const QuantizeMethod& method_;
  ThreadTeam* const team_;
  const LaneKernels& kernels_;
  MatrixPlan plan_;
  std::vector<std::unique_ptr<Rank>> ranks_;
  std::vector<KeptTile> kept_;  // [row_blocks, tiles]
};

template <typename Fn>
void MatrixJob::ForRowBlocks(const Fn& fn) {
  team_->Run([&](int rank) {
    const Share share = ShareOf(plan_.row_blocks(), 1, rank, team_->size());
    for (int b = share.begin; b < share.end; ++b) {
      LoadRowBlock(matrix_, b, &ranks_[rank]->rows);
      fn(b, ranks_[rank].get());
    }
  });
}

void MatrixJob::LoadTile(int row_block, const TileRange& tile, Rank* rank) const {
  std::vector<float> h(tile.channels());
  for (int g = 0; g < tile.strips; ++g) {
    const int source = plan_.source_channel(tile.first_strip + g);
    std::copy_n(rank->group(source / kGroup), kGroup * kLanes, rank->tile.w[g]);
    std::copy_n(h_.data() + source, kGroup, h.data() + g * kGroup);
  }
  FillTileBlock(plan_, row_block, tile, h, &rank->tile);
}

void MatrixJob::Fit(const TileBlock& block, TileFit* fit) const {
  if (method_.search_scales) {
    FitSearched(kernels_, block, fit);
  } else {
    FitMinMax(block, fit);
  }
}

std::vector<double> MatrixJob::StripSensitivities(int bits) {
  const int strips = plan_.strips();
  std::vector<double> parts(static_cast<size_t>(plan_.row_blocks()) * strips);
  ForRowBlocks([&](int row_block, Rank* rank) {
    float* h = rank->tile.h[0];
    for (int s = 0; s < strips; ++s) {
      const float* w = rank->group(s);
      float h_sum = 0.0f;
      for (int k = 0; k < kGroup; ++k) {
        h_sum += h_[s * kGroup + k];
        std::fill_n(h + k * kLanes, kLanes, h_[s * kGroup + k]);
      }
      double sum = 0.0;
      if (method_.sensitivity != Sensitivity::kError) {
        const float weight = method_.sensitivity == Sensitivity::kRange ? 1.0f : h_sum;
        for (int l = 0; l < kLanes; ++l) {
          float low = w[l], high = w[l];
          for (int k = 1; k < kGroup; ++k) {
            low = std::min(low, w[k * kLanes + l]);
            high = std::max(high, w[k * kLanes + l]);
          }
          sum += static_cast<double>(high - low) * (high - low) * weight;
        }
      } else {
        float steps[kLanes], errors[kLanes];
        if (method_.search_scales) {
          BestFreeStep(kernels_, bits, w, h, steps, errors);
        } else {
          MinMaxErrors(bits, w, h, errors);
        }
        for (const float e : errors) sum += e;
      }
      parts[static_cast<size_t>(row_block) * strips + s] = sum;
    }
  });
  std::vector<double> result(strips);
  for (size_t i = 0; i < parts.size(); ++i) result[i % strips] += parts[i];
  return result;
}

void MatrixJob::ChooseOutliers() {
  const int64_t budget =
      static_cast<int64_t>(settings_.outliers * static_cast<double>(plan_.rows) * plan_.cols);
  const size_t groups = static_cast<size_t>(plan_.row_blocks()) * kLanes * plan_.counts.strips2;
  if (budget <= 0 || groups == 0) return;
  plan_.masks.assign(groups, 0);
  std::vector<float> gains(groups);
  std::vector<uint8_t> channels(groups);
  for (int round = 0; round < kOutlierRounds; ++round) {
    ForRowBlocks([&](int row_block, Rank* rank) {
      for (const TileRange& tile : plan_.tiles) {
        if (tile.bits != 2) continue;
        TileFit fit;
        LoadTile(row_block, tile, rank);
        Fit(rank->tile, &fit);
        for (int g = 0; g < tile.strips; ++g) {
          BestOutlier best;
          if (method_.search_scales) {
            FindOutliersSearched(kernels_, rank->tile, fit, g, &best);
          } else {
            FindOutliersMinMax(rank->tile, fit, g, &best);
          }
          for (int l = 0; l < kLanes; ++l) {
            const size_t i =
                static_cast<size_t>(row_block * quant::kBlockRows + l) * plan_.counts.strips2 +
                tile.first_strip + g;
            gains[i] = best.gain[l];
            channels[i] = best.channel[l];
          }
        }
      }
    });
    MarkOutliers(budget * (round + 1) / kOutlierRounds - budget * round / kOutlierRounds, gains,
                 channels);
  }
}

// The `budget` groups that gain most, of equals the first. Gains are counted by their upper half:
// positive floats are in order as integers, too.
void MatrixJob::MarkOutliers(int64_t budget, const std::vector<float>& gains,
                             const std::vector<uint8_t>& channels) {
  constexpr int kBins = 1 << 16;
  const auto bin_of = [&](size_t i) {
    return gains[i] > 0.0f ? std::bit_cast<uint32_t>(gains[i]) >> 16 : 0u;
  };
  const auto mark = [&](size_t i) { plan_.masks[i] |= static_cast<uint16_t>(1u << channels[i]); };
  std::vector<std::vector<int64_t>> counts(ranks_.size());
  const auto groups = static_cast<int64_t>(gains.size());
  const auto for_groups = [&](const auto& fn) {
    ForPieces(team_, groups, kPieceElements, [&](int rank, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) fn(rank, static_cast<size_t>(i));
    });
  };
  for (std::vector<int64_t>& of_rank : counts) of_rank.resize(kBins);
  for_groups([&](int rank, size_t i) { ++counts[rank][bin_of(i)]; });
  const auto count_of = [&](uint32_t bin) {
    int64_t sum = 0;
    for (const std::vector<int64_t>& of_rank : counts) sum += of_rank[bin];
    return sum;
  };
  uint32_t last = kBins - 1;  // the bin with which the budget is spent; 0: it is not
  int64_t left = budget;
  for (; last > 0 && count_of(last) < left; --last) left -= count_of(last);
  std::vector<std::vector<size_t>> found(ranks_.size());
  for_groups([&](int rank, size_t i) {
    const uint32_t bin = bin_of(i);
    if (bin > last) mark(i);
    if (bin == last && last > 0) found[rank].push_back(i);
  });
  std::vector<size_t> candidates;
  for (const auto& of_rank : found) {
    candidates.insert(candidates.end(), of_rank.begin(), of_rank.end());
  }
  const auto before = [&](size_t a, size_t b) {
    return gains[a] != gains[b] ? gains[a] > gains[b] : a < b;
  };
  if (static_cast<int64_t>(candidates.size()) > left) {
    std::nth_element(candidates.begin(), candidates.begin() + left, candidates.end(), before);
    candidates.resize(left);
  }
  for (const size_t i : candidates) mark(i);
}

// Codes one tile after the other, nearest to the weights.
void MatrixJob::EncodeBlock(int row_block, Rank* rank, quant::UnpackedMatrix* result) {
  for (size_t t = 0; t < plan_.tiles.size(); ++t) {
    const TileRange& tile = plan_.tiles[t];
    TileFit fit;
    LoadTile(row_block, tile, rank);
    Fit(rank->tile, &fit);
    rank->codes.Begin(plan_, row_block, tile);
    for (int i = 0; i < tile.channels(); ++i) {
      rank->codes.Choose(method_.zero_points, fit, i, rank->tile.w[0] + i * kLanes);
    }
    KeepTile(plan_, row_block, tile, rank->codes, fit, result,
             &kept(row_block, static_cast<int>(t)));
  }
}

absl::Status MatrixJob::EncodePanels(Hessian* hessian, TeamProducts* products,
                                     quant::UnpackedMatrix* result) {
  ScratchFloats misses;
  if (method_.correction > 0.0f && !hessian->drift.empty()) {
    misses = DriftProduct(matrix_, settings_.last_use, &hessian->drift, products);
  } else if (method_.correction > 0.0f) {
    misses = std::move(hessian->misses);
  }
  std::vector<int> channels;  // source channels in compact order
  for (int s = 0; s < plan_.strips(); ++s) {
    for (int k = 0; k < kGroup; ++k) channels.push_back(plan_.source_channel(s) + k);
  }
  hessian->matrix.Arrange(channels, team_);
  std::unique_ptr<ErrorFeedback> factor;
  if (method_.error_feedback || !misses.empty()) {
    auto made = ErrorFeedback::Create(&hessian->matrix, products);
    if (!made.ok()) return made.status();
    factor = *std::move(made);
  }
  PanelEncoder encoder(plan_, matrix_, h_, hessian->matrix, factor.get(), &misses, products,
                       kernels_);
  ForPieces(team_, encoder.panels(), 1, [&](int rank, int64_t panel, int64_t) {
    encoder.Run(rank, static_cast<int>(panel), result, &kept_);
  });
  return absl::OkStatus();
}

// Scales and outliers of a finished tile into the result. Quality is against the source weights.
void MatrixJob::StoreTile(int row_block, const TileRange& tile, const TileFit& fit,
                          const Rank& rank, quant::UnpackedMatrix* m, MatrixQuality* quality,
                          std::vector<quant::Outlier>* outliers) const {
  const int first_row = row_block * quant::kBlockRows;
  const int rows = std::min(kLanes, plan_.rows - first_row);
  const int width_tiles = plan_.counts.shape.tiles(tile.bits);
  const size_t positions = plan_.counts.shape.num_positions();
  for (int l = 0; l < rows; ++l) {
    const size_t row = first_row + l;
    m->second_order[tile.bits == 2 ? 0 : 1][row * width_tiles + tile.index] = fit.stored[l];
    for (int g = 0; g < tile.strips; ++g) {
      const size_t i = row * positions + plan_.position(tile.first_strip + g);
      m->sub_scales[i] = fit.sub[g][l];
      if (method_.zero_points) m->zeros[i] = fit.zero[g][l];
    }
  }
  for (int i = 0; i < tile.channels(); ++i) {
    const int strip = tile.first_strip + i / kGroup, channel = i % kGroup;
    const int source = plan_.source_channel(strip) + channel;
    for (int l = 0; l < rows; ++l) {
      const int at = i * kLanes + l;
      float value = rank.codes.values[at];
      if (rank.codes.is_outlier[at] != 0) {
        const float base = rank.codes.ValueOf(method_.zero_points, fit, i, l);
        const uint16_t correction = quant::FloatToHalf(value - base);
        value = base + quant::HalfToFloat(correction);
        outliers->push_back({.row = first_row + l,
                             .position = plan_.position(strip) * kGroup + channel,
                             .value = correction});
        ++quality->outliers;
      }
      const double weight = rank.rows[static_cast<size_t>(source) * kLanes + l];
      const double error = weight - value;
      quality->weighted_error += h_[source] * error * error;
      quality->weighted_norm += h_[source] * weight * weight;
      quality->error += error * error;
      quality->norm += weight * weight;
      ++quality->weights;
      if (tile.bits == 4) ++quality->weights4;
    }
  }
}

// The kept tiles into the result.
QuantizedMatrix MatrixJob::Store(quant::UnpackedMatrix unpacked) {
  const int row_blocks = plan_.row_blocks();
  std::vector<MatrixQuality> qualities(row_blocks);
  std::vector<std::vector<quant::Outlier>> outliers(row_blocks);
  ForRowBlocks([&](int row_block, Rank* rank) {
    for (size_t t = 0; t < plan_.tiles.size(); ++t) {
      const TileRange& tile = plan_.tiles[t];
      const KeptTile& tile_kept = kept(row_block, static_cast<int>(t));
      rank->codes.Begin(plan_, row_block, tile);
      RecallTile(plan_, row_block, tile, unpacked, tile_kept, &rank->codes);
      StoreTile(row_block, tile, tile_kept.fit, *rank, &unpacked, &qualities[row_block],
                &outliers[row_block]);
    }
  });
  QuantizedMatrix result;
  result.unpacked = std::move(unpacked);
  for (int b = 0; b < row_blocks; ++b) {
    result.quality.Add(qualities[b]);
    result.unpacked.outliers.insert(result.unpacked.outliers.end(), outliers[b].begin(),
                                    outliers[b].end());
  }
  return result;
}

absl::StatusOr<QuantizedMatrix> MatrixJob::Run(const std::string& name, Hessian* hessian,
                                               TeamProducts* products) {
  std::vector<double> sensitivity;
  if (plan_.counts.strips2 > 0 && plan_.counts.strips4 > 0) sensitivity = StripSensitivities(2);
  // Error feedback gains if the channels that carry most come first of their width.
  std::vector<double> importance(plan_.strips(), 0.0);
  if (method_.large_first) {
    for (int k = 0; k < plan_.cols; ++k) importance[k / kGroup] += h_[k];
  }
  plan_.order = OrderStrips(plan_.counts, sensitivity, importance);
  ChooseOutliers();

  quant::UnpackedMatrix m;
  const size_t rows = plan_.rows, positions = plan_.counts.shape.num_positions();
  m.shape = plan_.counts.shape;
  m.strip_order = plan_.order;
  m.codes.assign(rows * positions * kGroup, 0);
  m.sub_scales.assign(rows * positions, 0);
  if (method_.zero_points) m.zeros.assign(rows * positions, 0);
  m.second_order[0].assign(rows * m.shape.tiles(2), 0);
  m.second_order[1].assign(rows * m.shape.tiles(4), 0);
  kept_.resize(plan_.row_blocks() * plan_.tiles.size());
  if (method_.full_hessian()) {
    if (absl::Status status = EncodePanels(hessian, products, &m); !status.ok()) {
      return absl::Status(status.code(), absl::StrCat(name, ": ", status.message()));
    }
  } else {
    ForRowBlocks([&](int row_block, Rank* rank) { EncodeBlock(row_block, rank, &m); });
  }
  return Store(std::move(m));
}

std::vector<StorageChoice> MatrixJob::Choices() {
  const std::vector<double> errors2 = StripSensitivities(2);
  const std::vector<double> errors4 = StripSensitivities(4);
  std::vector<int> ranked(plan_.strips());
  std::iota(ranked.begin(), ranked.end(), 0);
  std::stable_sort(ranked.begin(), ranked.end(),
                   [&](int a, int b) { return errors2[a] > errors2[b]; });
  std::vector<StorageChoice> choices;
  double loss = std::accumulate(errors2.begin(), errors2.end(), 0.0);
  int strips4 = 0;
  for (const StripCounts& counts : UsefulStripCounts(plan_.rows, plan_.cols, method_.zero_points)) {
    for (; strips4 < counts.strips4; ++strips4) {
      loss -= errors2[ranked[strips4]] - errors4[ranked[strips4]];
    }
    const int64_t outliers =
        counts.strips2 == 0 ? 0
                            : static_cast<int64_t>(settings_.outliers *
                                                   static_cast<double>(plan_.rows) * plan_.cols);
    const size_t starts = outliers == 0 ? 0 : counts.shape.num_outlier_lists() + 1;
    choices.push_back(
        {.strips4 = counts.strips4,
         .bytes = static_cast<int64_t>(counts.shape.total_bytes() +
                                       sizeof(uint16_t) * counts.shape.num_positions() +
                                       sizeof(uint32_t) * (starts + outliers)),
         .loss = loss});
  }
  return choices;
}

}  // namespace

void MatrixQuality::Add(const MatrixQuality& other) {
  weighted_error += other.weighted_error;
  weighted_norm += other.weighted_norm;
  error += other.error;
  norm += other.norm;
  weights += other.weights;
  weights4 += other.weights4;
  outliers += other.outliers;
}

absl::StatusOr<QuantizedMatrix> QuantizeMatrix(const std::string& name, const Matrix& matrix,
                                               Hessian* hessian, const MatrixSettings& settings,
                                               TeamProducts* products, const LaneKernels& kernels) {
  const int rows = MatrixRows(matrix), cols = MatrixCols(matrix);
  if (rows <= 0 || cols <= 0) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": empty, ", rows, " x ", cols));
  }
  if (cols % quant::kStripChannels != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        name, ": K = ", cols, " input channels is not a multiple of ", quant::kStripChannels));
  }
  if (absl::Status status = CheckWeights(name, matrix, products->team()); !status.ok())
    return status;
  FEWBIT_CHECK(static_cast<int>(hessian->diagonal.size()) == cols) << name;
  for (int k = 0; k < cols; ++k) {
    if (std::isfinite(hessian->diagonal[k])) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        name, ": the calibration inputs of channel ", k,
        " are NaN or infinite; the weights before this layer are out of any sensible range"));
  }
  return MatrixJob(matrix, *hessian, settings, products->team(), kernels)
      .Run(name, hessian, products);
}

std::vector<StorageChoice> StorageChoices(const Matrix& matrix, const Hessian& hessian,
                                          const MatrixSettings& settings, ThreadTeam* team,
                                          const LaneKernels& kernels) {
  return MatrixJob(matrix, hessian, settings, team, kernels).Choices();
}

std::vector<float> Dequantize(const quant::UnpackedMatrix& m) {
  const quant::PackedShape& shape = m.shape;
  const int positions = shape.num_positions();
  const int positions2 = quant::ChunkStrips(2) * shape.chunks2;
  std::vector<float> dense(static_cast<size_t>(shape.rows) * shape.cols);
  for (int r = 0; r < shape.rows; ++r) {
    for (int p = 0; p < positions; ++p) {
      if (m.strip_order[p] == quant::kNoStrip) continue;
      const int bits = p < positions2 ? 2 : 4;
      const int tile =
          (p - (bits == 2 ? 0 : positions2)) / (quant::kTileChunks * quant::ChunkStrips(bits));
      const uint16_t stored =
          m.second_order[bits == 2 ? 0 : 1][static_cast<size_t>(r) * shape.tiles(bits) + tile];
      const size_t i = static_cast<size_t>(r) * positions + p;
      const float step = static_cast<float>(m.sub_scales[i]) *
                         (quant::HalfToFloat(stored) / quant::kStoredSecondOrderFactor);
      for (int k = 0; k < kGroup; ++k) {
        const int code = m.codes[i * kGroup + k];
        dense[static_cast<size_t>(r) * shape.cols + m.strip_order[p] * kGroup + k] =
            shape.zero_points ? CodeWeight(bits, code, step, m.zeros[i])
                              : CodeWeight(bits, code, step);
      }
    }
  }
  for (const quant::Outlier& outlier : m.outliers) {
    const int channel =
        m.strip_order[outlier.position / kGroup] * kGroup + outlier.position % kGroup;
    dense[static_cast<size_t>(outlier.row) * shape.cols + channel] +=
        quant::HalfToFloat(outlier.value);
  }
  return dense;
}

}  // namespace fewbit
