#include "tests/bench/cuda/random_layers.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "kernels/quant_pack.h"

namespace fewbit::bench {
namespace {

using quant::PackedShape;

PackedShape ShapeOf(int rows, int cols, const WeightMix& mix) {
  const int strips = cols / quant::kStripChannels;
  const int four = static_cast<int>(std::lround(strips * mix.share4));
  return {rows, cols, (strips - four + 7) / 8, (four + 3) / 4, mix.zero_points};
}

std::vector<uint16_t> StripOrder(const PackedShape& s, const WeightMix& mix, std::mt19937_64* rng) {
  const int strips = s.cols / quant::kStripChannels;
  const int four = static_cast<int>(std::lround(strips * mix.share4));
  std::vector<uint16_t> all(strips), order(s.num_positions(), quant::kNoStrip);
  std::iota(all.begin(), all.end(), 0);
  std::shuffle(all.begin(), all.end(), *rng);
  std::copy(all.begin() + four, all.end(), order.begin());
  std::copy(all.begin(), all.begin() + four, order.begin() + 8 * s.chunks2);
  return order;
}

// Any bits are codes, sub-scales and zeros; only d has to be a sensible number.
std::vector<uint8_t> RandomTiles(const PackedShape& s, std::mt19937_64* rng) {
  std::vector<uint8_t> tiles(s.total_bytes());
  auto* words = reinterpret_cast<uint64_t*>(tiles.data());
  for (size_t i = 0; i < tiles.size() / 8; ++i) words[i] = (*rng)();
  for (int block = 0; block < s.row_blocks(); ++block) {
    for (int bits : {2, 4}) {
      for (int tile = 0; tile < s.tiles(bits); ++tile) {
        const size_t tile_bytes = quant::TileBytes(bits, s.tile_chunks(bits, tile), s.zero_points);
        auto* d = reinterpret_cast<uint16_t*>(tiles.data() + block * s.row_block_bytes() +
                                              s.tile_offset(bits, tile) + tile_bytes -
                                              quant::kSecondOrderBytes);
        for (int r = 0; r < quant::kBlockRows; ++r) {
          const float spread = 0.5f + static_cast<float>((*rng)() % 1000) / 1000.0f;
          d[r] = quant::FloatToHalf(64.0f * spread * (bits == 2 ? 2e-3f : 4e-4f));
        }
      }
    }
  }
  return tiles;
}

// The lists of a packed matrix.
cuda::OutlierLists RandomOutliers(const PackedShape& s, double share, std::mt19937_64* rng) {
  std::vector<uint32_t> start(1, 0), entries;
  for (size_t list = 0; list < s.num_outlier_lists(); ++list) {
    const int tile = static_cast<int>(list % s.tiles(2));
    const int channels = s.tile_chunks(2, tile) * quant::ChunkChannels(2);
    std::poisson_distribution<int> count(share * channels * quant::kBlockRows);
    std::vector<uint32_t> places;
    for (int i = count(*rng); i > 0; --i) {
      places.push_back(static_cast<uint32_t>((*rng)() % channels) << 4 | ((*rng)() & 15));
    }
    std::sort(places.begin(), places.end());
    places.erase(std::unique(places.begin(), places.end()), places.end());
    for (uint32_t place : places) {
      const float value = (static_cast<float>((*rng)() % 2001) - 1000.0f) * 2e-4f;
      entries.push_back((place >> 4) | (place & 15) << 9 |
                        static_cast<uint32_t>(quant::FloatToHalf(value)) << 16);
    }
    start.push_back(static_cast<uint32_t>(entries.size()));
  }
  return {start, entries};
}

// `copies` copies of `one` behind each other, each padded to a multiple of 16 bytes.
template <typename T>
cuda::DeviceBuffer<T> Repeat(const std::vector<T>& one, size_t stride, int copies) {
  cuda::DeviceBuffer<T> all(stride * copies);
  for (int i = 0; i < copies && !one.empty(); ++i) {
    cuda::CheckCuda(cudaMemcpy(all.get() + i * stride, one.data(), one.size() * sizeof(T),
                               cudaMemcpyHostToDevice),
                    "upload");
  }
  return all;
}

}  // namespace

RandomMatrix::RandomMatrix(int rows, int cols, const WeightMix& mix, int copies, uint64_t seed)
    : shape_(ShapeOf(rows, cols, mix)), copies_(copies) {
  std::mt19937_64 rng(seed);
  tiles_ = Repeat(RandomTiles(shape_, &rng), shape_.total_bytes(), copies);
  strip_order_ = cuda::DeviceBuffer<uint16_t>(StripOrder(shape_, mix, &rng));
  if (mix.outlier_share > 0 && shape_.chunks2 > 0) {
    const cuda::OutlierLists lists = RandomOutliers(shape_, mix.outlier_share, &rng);
    quant::PackedMatrix packed;
    packed.shape = shape_;
    packed.outlier_start = lists.start.data();
    packed.outliers = lists.entries.data();
    by_row_ = Lists(cuda::RepackOutliers(packed), copies);
    by_tile_ = Lists(cuda::RepackOutliersByTile(packed), copies);
  }
}

RandomMatrix::Lists::Lists(const cuda::OutlierLists& one, int copies)
    : start_count(one.start.size()), count(one.entries.size()) {
  start = Repeat(one.start, start_count, copies);
  entries = Repeat(one.entries, count, copies);
}

const uint32_t* RandomMatrix::Lists::Start(int i) const {
  return start_count == 0 ? nullptr : start.get() + i * start_count;
}

const uint32_t* RandomMatrix::Lists::Entries(int i) const {
  return start_count == 0 ? nullptr : entries.get() + i * count;
}

cuda::DeviceMatrix RandomMatrix::copy(int i) const {
  return {shape_,
          tiles_.get() + i * shape_.total_bytes(),
          strip_order_.get(),
          by_row_.Start(i),
          by_row_.Entries(i),
          by_tile_.Start(i),
          by_tile_.Entries(i)};
}

size_t RandomMatrix::bytes() const {
  return shape_.total_bytes() + 2 * shape_.num_positions() + by_row_.bytes();
}

}  // namespace fewbit::bench
