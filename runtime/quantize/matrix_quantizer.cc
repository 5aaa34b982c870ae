#include "runtime/quantize/matrix_quantizer.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/quantize/code_descent.h"
#include "runtime/quantize/encoded_block.h"
#include "runtime/quantize/error_feedback.h"
#include "runtime/quantize/source_rows.h"
#include "runtime/quantize/strip_choice.h"
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

// Strips are counted in compact order here: the 2-bit ones, then the 4-bit ones, no padding.
class MatrixJob {
 public:
  MatrixJob(const Matrix& matrix, const Hessian& hessian, const MatrixSettings& settings,
            ThreadTeam* team, const LaneKernels& kernels)
      : matrix_(matrix),
        rows_(MatrixRows(matrix)),
        cols_(MatrixCols(matrix)),
        h_(FlooredDiagonal(hessian.diagonal)),
        hessian_(hessian),
        settings_(settings),
        method_(*settings.method),
        team_(team),
        kernels_(kernels),
        counts_(ChooseStripCounts(rows_, cols_, settings.share4, method_.zero_points)),
        row_blocks_(counts_.shape.row_blocks()),
        ranks_(team->size()) {
    for (auto& rank : ranks_) rank = std::make_unique<Rank>();
  }

  absl::StatusOr<QuantizedMatrix> Run(const std::string& name);
  std::vector<StorageChoice> Choices();

 private:
  // What one rank works on.
  struct Rank {
    std::vector<float> rows;  // of the row block at hand, as LoadRowBlock gives them
    TileBlock tile;
    const float* group(int source_strip) const {
      return rows.data() + static_cast<size_t>(source_strip) * kGroup * kLanes;
    }
  };

  int strips() const { return counts_.strips2 + counts_.strips4; }
  int tile_strips(int bits) const { return quant::kTileChunks * quant::ChunkStrips(bits); }
  int first_strip(int bits) const { return bits == 2 ? 0 : counts_.strips2; }
  int num_strips(int bits) const { return bits == 2 ? counts_.strips2 : counts_.strips4; }
  int position(int strip) const {
    return strip < counts_.strips2
               ? strip
               : quant::ChunkStrips(2) * counts_.shape.chunks2 + strip - counts_.strips2;
  }
  bool corrects() const { return method_.correction > 0.0f && !hessian_.drift.empty(); }
  bool IsOutlier(int row, int strip, int channel) const {
    return !masks_.empty() && strip < counts_.strips2 &&
           ((masks_[static_cast<size_t>(row) * counts_.strips2 + strip] >> channel) & 1) != 0;
  }

  template <typename Fn>
  void ForRowBlocks(const Fn& fn);
  std::vector<double> StripSensitivities(int bits);
  void LoadTile(int row_block, int bits, int tile, const float* work, Rank* rank) const;
  void Fit(const TileBlock& block, TileFit* fit) const;
  void ChooseOutliers();
  void MarkOutliers(int64_t budget, const std::vector<float>& gains,
                    const std::vector<uint8_t>& channels);
  void PlaceStrips();
  std::vector<float> InCompactOrder(const std::vector<float>& source) const;
  std::vector<float> Targets(const Rank& rank) const;
  void Encode(int row_block, const std::vector<float>& targets, Rank* rank,
              EncodedBlock* encoded) const;
  void ChooseCodes(int row_block, int strip, int channel, const float* targets,
                   EncodedBlock* encoded, float* errors) const;
  void StoreTile(int row_block, int bits, int tile, const TileFit& fit,
                 quant::UnpackedMatrix* m) const;
  void Store(int row_block, const Rank& rank, const EncodedBlock& encoded, QuantizedMatrix* result,
             MatrixQuality* quality, std::vector<quant::Outlier>* outliers) const;

  const Matrix& matrix_;
  const int rows_;
  const int cols_;
  const std::vector<float> h_;  // [K] in source order, all positive
  const Hessian& hessian_;
  const MatrixSettings& settings_;
  const QuantizeMethod& method_;
  ThreadTeam* const team_;
  const LaneKernels& kernels_;
  const StripCounts counts_;
  const int row_blocks_;
  std::vector<std::unique_ptr<Rank>> ranks_;
  std::vector<uint16_t> order_;     // [num_positions]
  std::vector<uint16_t> masks_;     // [16 * row_blocks, strips2] bit k: channel k is an outlier
  std::vector<StripPlace> places_;  // [strips]
  std::unique_ptr<ErrorFeedback> factor_;  // null: neither error feedback nor a correction
};

template <typename Fn>
void MatrixJob::ForRowBlocks(const Fn& fn) {
  team_->Run([&](int rank) {
    const Share share = ShareOf(row_blocks_, 1, rank, team_->size());
    for (int b = share.begin; b < share.end; ++b) {
      LoadRowBlock(matrix_, b, &ranks_[rank]->rows);
      fn(b, ranks_[rank].get());
    }
  });
}

// `work`: the row block in compact order as a correction and error feedback have changed it, or
// null for the weights themselves.
void MatrixJob::LoadTile(int row_block, int bits, int tile, const float* work, Rank* rank) const {
  TileBlock* block = &rank->tile;
  const int begin = tile * tile_strips(bits);
  const bool feedback = method_.error_feedback && factor_ != nullptr;
  block->bits = bits;
  block->strips = std::min(tile_strips(bits), num_strips(bits) - begin);
  for (int g = 0; g < block->strips; ++g) {
    const int strip = first_strip(bits) + begin + g;
    const int source = order_[position(strip)];
    const float* group =
        work != nullptr ? work + static_cast<size_t>(strip) * kGroup * kLanes : rank->group(source);
    std::copy_n(group, kGroup * kLanes, block->w[g]);
    for (int k = 0; k < kGroup; ++k) {
      const float h = feedback ? factor_->weight(strip * kGroup + k) : h_[source * kGroup + k];
      for (int l = 0; l < kLanes; ++l) {
        const int row = row_block * quant::kBlockRows + l;
        block->h[g][k * kLanes + l] = IsOutlier(row, strip, k) ? 0.0f : h;
      }
    }
  }
}

void MatrixJob::Fit(const TileBlock& block, TileFit* fit) const {
  if (method_.search_scales) {
    FitSearched(kernels_, block, fit);
  } else {
    FitMinMax(block, fit);
  }
}

std::vector<double> MatrixJob::StripSensitivities(int bits) {
  std::vector<double> parts(static_cast<size_t>(row_blocks_) * strips());
  ForRowBlocks([&](int row_block, Rank* rank) {
    float* h = rank->tile.h[0];
    for (int s = 0; s < strips(); ++s) {
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
      parts[static_cast<size_t>(row_block) * strips() + s] = sum;
    }
  });
  std::vector<double> result(strips());
  for (size_t i = 0; i < parts.size(); ++i) result[i % strips()] += parts[i];
  return result;
}

void MatrixJob::ChooseOutliers() {
  const int64_t budget =
      static_cast<int64_t>(settings_.outliers * static_cast<double>(rows_) * cols_);
  const size_t groups = static_cast<size_t>(row_blocks_) * kLanes * counts_.strips2;
  if (budget <= 0 || groups == 0) return;
  masks_.assign(groups, 0);
  std::vector<float> gains(groups);
  std::vector<uint8_t> channels(groups);
  for (int round = 0; round < kOutlierRounds; ++round) {
    ForRowBlocks([&](int row_block, Rank* rank) {
      for (int tile = 0; tile < counts_.shape.tiles(2); ++tile) {
        TileFit fit;
        LoadTile(row_block, 2, tile, nullptr, rank);
        Fit(rank->tile, &fit);
        for (int g = 0; g < rank->tile.strips; ++g) {
          BestOutlier best;
          if (method_.search_scales) {
            FindOutliersSearched(kernels_, rank->tile, fit, g, &best);
          } else {
            FindOutliersMinMax(rank->tile, fit, g, &best);
          }
          for (int l = 0; l < kLanes; ++l) {
            const size_t i =
                static_cast<size_t>(row_block * quant::kBlockRows + l) * counts_.strips2 +
                tile * tile_strips(2) + g;
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

void MatrixJob::MarkOutliers(int64_t budget, const std::vector<float>& gains,
                             const std::vector<uint8_t>& channels) {
  std::vector<size_t> candidates;
  for (size_t i = 0; i < gains.size(); ++i) {
    if (gains[i] > 0.0f) candidates.push_back(i);
  }
  const auto before = [&](size_t a, size_t b) {
    return gains[a] != gains[b] ? gains[a] > gains[b] : a < b;
  };
  if (static_cast<int64_t>(candidates.size()) > budget) {
    std::nth_element(candidates.begin(), candidates.begin() + budget, candidates.end(), before);
    candidates.resize(budget);
  }
  for (const size_t i : candidates) masks_[i] |= static_cast<uint16_t>(1u << channels[i]);
}

void MatrixJob::StoreTile(int row_block, int bits, int tile, const TileFit& fit,
                          quant::UnpackedMatrix* m) const {
  const int tiles = counts_.shape.tiles(bits);
  const int begin = tile * tile_strips(bits);
  const int count = std::min(tile_strips(bits), num_strips(bits) - begin);
  const int positions = counts_.shape.num_positions();
  for (int l = 0; l < kLanes; ++l) {
    const int row = row_block * quant::kBlockRows + l;
    if (row >= rows_) break;
    m->second_order[bits == 2 ? 0 : 1][static_cast<size_t>(row) * tiles + tile] = fit.stored[l];
    for (int g = 0; g < count; ++g) {
      const size_t i =
          static_cast<size_t>(row) * positions + position(first_strip(bits) + begin + g);
      m->sub_scales[i] = fit.sub[g][l];
      if (method_.zero_points) m->zeros[i] = fit.zero[g][l];
    }
  }
}

// The nearest codes for `targets` [16 rows]; `errors`: what is left of the targets.
void MatrixJob::ChooseCodes(int row_block, int strip, int channel, const float* targets,
                            EncodedBlock* encoded, float* errors) const {
  const StripPlace& place = places_[strip];
  const TileFit& fit = encoded->fits[place.fit];
  for (int l = 0; l < kLanes; ++l) {
    const size_t i = EncodedBlock::Index(strip, channel, l);
    const float step = fit.step(place.strip_in_tile, l);
    const int zero = fit.zero[place.strip_in_tile][l];
    const int code = method_.zero_points ? NearestCode(place.bits, targets[l], step, zero)
                                         : NearestCode(place.bits, targets[l], step);
    encoded->codes[i] = static_cast<uint8_t>(code);
    encoded->is_outlier[i] = IsOutlier(row_block * quant::kBlockRows + l, strip, channel) ? 1 : 0;
    encoded->values[i] = encoded->is_outlier[i] ? targets[l]
                         : method_.zero_points  ? CodeWeight(place.bits, code, step, zero)
                                                : CodeWeight(place.bits, code, step);
    errors[l] = targets[l] - encoded->values[i];
  }
}

// [K channels][16 rows] from source order.
std::vector<float> MatrixJob::InCompactOrder(const std::vector<float>& source) const {
  std::vector<float> compact(source.size());
  for (int s = 0; s < strips(); ++s) {
    std::copy_n(source.data() + static_cast<size_t>(places_[s].source) * kLanes, kGroup * kLanes,
                compact.data() + static_cast<size_t>(s) * kGroup * kLanes);
  }
  return compact;
}

// What the codes of a row block shall come to [K channels in source order][16 rows]: the weights W,
// or with a correction what gives W z from x best in the mean, W (I + D H^-1) with the drift D; as
// much of that as the method says.
std::vector<float> MatrixJob::Targets(const Rank& rank) const {
  std::vector<float> targets = rank.rows;
  if (!corrects()) return targets;
  std::vector<float> missing(targets.size());  // -W D
  for (int begin = 0; begin < cols_; begin += kGroup) {
    const float* rows[kGroup];
    for (int k = 0; k < kGroup; ++k) {
      rows[k] = hessian_.drift.data() + static_cast<size_t>(begin + k) * cols_;
    }
    kernels_.subtract_outers(missing.data(), targets.data() + static_cast<size_t>(begin) * kLanes,
                             rows, kGroup, cols_);
  }
  std::vector<float> change = InCompactOrder(missing);
  factor_->Solve(kernels_, change.data());
  for (int i = 0; i < cols_; ++i) {
    float* target =
        targets.data() + static_cast<size_t>(places_[i / kGroup].source + i % kGroup) * kLanes;
    for (int l = 0; l < kLanes; ++l) {
      target[l] -= method_.correction * change[static_cast<size_t>(i) * kLanes + l];
    }
  }
  return targets;
}

void MatrixJob::Encode(int row_block, const std::vector<float>& targets, Rank* rank,
                       EncodedBlock* encoded) const {
  TileBlock* block = &rank->tile;
  std::vector<float> work;
  if (factor_) work = InCompactOrder(targets);
  for (const int bits : {2, 4}) {
    for (int tile = 0; tile < counts_.shape.tiles(bits); ++tile) {
      const int first = first_strip(bits) + tile * tile_strips(bits);
      TileFit& fit = encoded->fits[places_[first].fit];
      LoadTile(row_block, bits, tile, factor_ ? work.data() : nullptr, rank);
      Fit(*block, &fit);
      for (int g = 0; g < block->strips; ++g) {
        const int strip = first + g;
        if (method_.error_feedback) {
          float* group = work.data() + static_cast<size_t>(strip) * kGroup * kLanes;
          std::copy_n(group, kGroup * kLanes, block->w[g]);
          if (method_.search_scales) RefitSubScale(kernels_, *block, g, &fit);
        }
        float errors[kGroup * kLanes];
        for (int k = 0; k < kGroup; ++k) {
          const float* targets_of =
              factor_ ? work.data() + (static_cast<size_t>(strip) * kGroup + k) * kLanes
                      : block->w[g] + k * kLanes;
          ChooseCodes(row_block, strip, k, targets_of, encoded, errors + k * kLanes);
          if (!method_.error_feedback) continue;
          factor_->SpreadInStrip(kernels_, strip * kGroup + k, errors + k * kLanes, work.data());
        }
        if (method_.error_feedback) factor_->SpreadStrip(kernels_, strip, errors, work.data());
      }
    }
  }
}

// Codes, scales and outliers of a finished row block into the result. Quality is against the source
// weights.
void MatrixJob::Store(int row_block, const Rank& rank, const EncodedBlock& encoded,
                      QuantizedMatrix* result, MatrixQuality* quality,
                      std::vector<quant::Outlier>* outliers) const {
  const size_t columns = static_cast<size_t>(counts_.shape.num_positions()) * kGroup;
  for (const int bits : {2, 4}) {
    for (int tile = 0; tile < counts_.shape.tiles(bits); ++tile) {
      const int fit = places_[first_strip(bits) + tile * tile_strips(bits)].fit;
      StoreTile(row_block, bits, tile, encoded.fits[fit], &result->unpacked);
    }
  }
  for (int i = 0; i < cols_; ++i) {
    const int strip = i / kGroup, channel = i % kGroup;
    const StripPlace& place = places_[strip];
    const int column = position(strip) * kGroup + channel;
    const int source = place.source + channel;
    for (int l = 0; l < kLanes; ++l) {
      const int row = row_block * quant::kBlockRows + l;
      if (row >= rows_) break;
      const size_t at = EncodedBlock::Index(strip, channel, l);
      const int code = encoded.codes[at];
      float value = encoded.values[at];
      if (encoded.is_outlier[at]) {
        const float step = encoded.fits[place.fit].step(place.strip_in_tile, l);
        const int zero = encoded.fits[place.fit].zero[place.strip_in_tile][l];
        const float base = method_.zero_points ? CodeWeight(place.bits, code, step, zero)
                                               : CodeWeight(place.bits, code, step);
        const uint16_t correction = quant::FloatToHalf(value - base);
        value = base + quant::HalfToFloat(correction);
        outliers->push_back({.row = row, .position = column, .value = correction});
        ++quality->outliers;
      }
      result->unpacked.codes[row * columns + column] = static_cast<uint8_t>(code);
      const double weight = rank.rows[static_cast<size_t>(source) * kLanes + l];
      const double error = weight - value;
      quality->weighted_error += h_[source] * error * error;
      quality->weighted_norm += h_[source] * weight * weight;
      quality->error += error * error;
      quality->norm += weight * weight;
      ++quality->weights;
      if (place.bits == 4) ++quality->weights4;
    }
  }
}

// places_ for order_.
void MatrixJob::PlaceStrips() {
  const int tiles2 = counts_.shape.tiles(2);
  for (int s = 0; s < strips(); ++s) {
    const int bits = s < counts_.strips2 ? 2 : 4;
    const int in_width = s - first_strip(bits);
    places_.push_back({.bits = bits,
                       .fit = (bits == 2 ? 0 : tiles2) + in_width / tile_strips(bits),
                       .strip_in_tile = in_width % tile_strips(bits),
                       .source = order_[position(s)] * kGroup});
  }
}

absl::StatusOr<QuantizedMatrix> MatrixJob::Run(const std::string& name) {
  std::vector<double> sensitivity;
  if (counts_.strips2 > 0 && counts_.strips4 > 0) sensitivity = StripSensitivities(2);
  // Error feedback gains if the channels that carry most come first of their width.
  std::vector<double> importance(strips(), 0.0);
  if (method_.large_first) {
    for (int k = 0; k < cols_; ++k) importance[k / kGroup] += h_[k];
  }
  order_ = OrderStrips(counts_, sensitivity, importance);
  PlaceStrips();
  ChooseOutliers();
  if (method_.error_feedback || corrects()) {
    std::vector<int> channels;  // source channels in compact order
    for (const StripPlace& place : places_) {
      for (int k = 0; k < kGroup; ++k) channels.push_back(place.source + k);
    }
    auto factor = ErrorFeedback::Create(hessian_.matrix, channels, team_, kernels_);
    if (!factor.ok()) {
      return absl::Status(factor.status().code(),
                          absl::StrCat(name, ": ", factor.status().message()));
    }
    factor_ = *std::move(factor);
  }

  QuantizedMatrix result;
  quant::UnpackedMatrix& m = result.unpacked;
  const size_t positions = counts_.shape.num_positions();
  m.shape = counts_.shape;
  m.strip_order = order_;
  m.codes.assign(rows_ * positions * kGroup, 0);
  m.sub_scales.assign(rows_ * positions, 0);
  if (method_.zero_points) m.zeros.assign(rows_ * positions, 0);
  m.second_order[0].assign(static_cast<size_t>(rows_) * counts_.shape.tiles(2), 0);
  m.second_order[1].assign(static_cast<size_t>(rows_) * counts_.shape.tiles(4), 0);

  std::vector<MatrixQuality> qualities(row_blocks_);
  std::vector<std::vector<quant::Outlier>> outliers(row_blocks_);
  std::unique_ptr<CodeDescent> descent;
  if (method_.descent_sweeps > 0) {
    descent = std::make_unique<CodeDescent>(hessian_.matrix, places_, kernels_);
  }
  ForRowBlocks([&](int row_block, Rank* rank) {
    EncodedBlock encoded(strips(), counts_.shape.tiles(2) + counts_.shape.tiles(4));
    const std::vector<float> targets = Targets(*rank);
    Encode(row_block, targets, rank, &encoded);
    if (descent) descent->Run(targets, method_.descent_sweeps, method_.descent, &encoded);
    Store(row_block, *rank, encoded, &result, &qualities[row_block], &outliers[row_block]);
  });
  for (int b = 0; b < row_blocks_; ++b) {
    result.quality.Add(qualities[b]);
    m.outliers.insert(m.outliers.end(), outliers[b].begin(), outliers[b].end());
  }
  return result;
}

std::vector<StorageChoice> MatrixJob::Choices() {
  const std::vector<double> errors2 = StripSensitivities(2);
  const std::vector<double> errors4 = StripSensitivities(4);
  std::vector<int> ranked(strips());
  std::iota(ranked.begin(), ranked.end(), 0);
  std::stable_sort(ranked.begin(), ranked.end(),
                   [&](int a, int b) { return errors2[a] > errors2[b]; });
  std::vector<StorageChoice> choices;
  double loss = std::accumulate(errors2.begin(), errors2.end(), 0.0);
  int strips4 = 0;
  for (const StripCounts& counts : UsefulStripCounts(rows_, cols_, method_.zero_points)) {
    for (; strips4 < counts.strips4; ++strips4) {
      loss -= errors2[ranked[strips4]] - errors4[ranked[strips4]];
    }
    const int64_t outliers =
        counts.strips2 == 0
            ? 0
            : static_cast<int64_t>(settings_.outliers * static_cast<double>(rows_) * cols_);
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
                                               const Hessian& hessian,
                                               const MatrixSettings& settings, ThreadTeam* team,
                                               const LaneKernels& kernels) {
  const int rows = MatrixRows(matrix), cols = MatrixCols(matrix);
  if (rows <= 0 || cols <= 0) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": empty, ", rows, " x ", cols));
  }
  if (cols % quant::kStripChannels != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        name, ": K = ", cols, " input channels is not a multiple of ", quant::kStripChannels));
  }
  if (absl::Status status = CheckWeights(name, matrix); !status.ok()) return status;
  FEWBIT_CHECK(static_cast<int>(hessian.diagonal.size()) == cols) << name;
  for (int k = 0; k < cols; ++k) {
    if (std::isfinite(hessian.diagonal[k])) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        name, ": the calibration inputs of channel ", k,
        " are NaN or infinite; the weights before this layer are out of any sensible range"));
  }
  return MatrixJob(matrix, hessian, settings, team, kernels).Run(name);
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
