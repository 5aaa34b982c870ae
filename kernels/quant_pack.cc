#include "kernels/quant_pack.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernels/quant_access.h"

namespace fewbit::quant {
namespace {

void Require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "kernels/quant_pack.cc: %s\n", what);
  std::abort();
}

// Positions p of width `bits` are first, first + 1, ...: chunk by chunk.
int FirstPosition(const PackedShape& shape, int bits) { return bits == 2 ? 0 : 8 * shape.chunks2; }

void RequireUnpacked(const UnpackedMatrix& m) {
  const PackedShape& shape = m.shape;
  Require(shape.rows > 0 && shape.cols > 0 && shape.chunks2 >= 0 && shape.chunks4 >= 0,
          "shape must be positive");
  const size_t rows = shape.rows, positions = shape.num_positions();
  Require(m.strip_order.size() == positions, "strip_order must have one entry per position");
  Require(m.codes.size() == rows * positions * kStripChannels, "codes must be [R, 16 * P]");
  Require(m.sub_scales.size() == rows * positions, "sub_scales must be [R, P]");
  Require(m.zeros.size() == (shape.zero_points ? rows * positions : 0), "zeros must be [R, P]");
  Require(m.second_order[0].size() == rows * shape.tiles(2), "second_order[0] must be [R, tiles2]");
  Require(m.second_order[1].size() == rows * shape.tiles(4), "second_order[1] must be [R, tiles4]");
}

// One row of one chunk; `position` is the chunk's first strip position.
void PackChunkRow(const UnpackedMatrix& m, int bits, int row, int position, uint8_t* codes,
                  uint8_t* scales, uint8_t* zeros) {
  const size_t positions = m.shape.num_positions();
  const int in_block = row % kBlockRows;
  for (int s = 0; s < ChunkStrips(bits); ++s) {
    if (m.strip_order[position + s] == kNoStrip) continue;
    const size_t at = row * positions + position + s;
    Require(m.sub_scales[at] <= kMaxSubScale, "sub_scale above 15");
    OrField(scales, PlaceOfSubScale(bits, in_block, s), m.sub_scales[at]);
    if (m.shape.zero_points) {
      Require(m.zeros[at] < (1 << bits), "zero out of range");
      OrField(zeros, PlaceOfZero(bits, in_block, s), m.zeros[at]);
    }
    for (int k = 0; k < kStripChannels; ++k) {
      const uint8_t code = m.codes[at * kStripChannels + k];
      Require(code < (1 << bits), "code out of range");
      OrField(codes, PlaceOfCode(bits, in_block, s, k), code);
    }
  }
}

void PackWidth(const UnpackedMatrix& m, int bits, int begin, int end, PackedStorage* out) {
  const PackedShape& shape = m.shape;
  for (int row = begin; row < end; ++row) {
    uint8_t* block = out->tiles.data() + (row / kBlockRows) * shape.row_block_bytes();
    for (int chunk = 0; chunk < shape.chunks(bits); ++chunk) {
      const ChunkView view = ViewChunk(shape, block, bits, chunk);
      PackChunkRow(m, bits, row, FirstPosition(shape, bits) + chunk * ChunkStrips(bits),
                   const_cast<uint8_t*>(view.codes), const_cast<uint8_t*>(view.sub_scales),
                   const_cast<uint8_t*>(view.zeros));
      const size_t tile = chunk / kTileChunks;
      const uint16_t d = m.second_order[bits == 2 ? 0 : 1][row * shape.tiles(bits) + tile];
      std::memcpy(const_cast<uint8_t*>(view.second_order) + PlaceOfSecondOrder(row % kBlockRows),
                  &d, sizeof(d));
    }
  }
}

void PackOutliers(const UnpackedMatrix& m, PackedStorage* out) {
  if (m.outliers.empty()) return;
  const PackedShape& shape = m.shape;
  constexpr int kTileChannels = kTileChunks * ChunkChannels(2);
  struct Entry {
    size_t list;
    uint32_t word;
    bool operator<(const Entry& o) const {
      constexpr uint32_t kPositionAndRow = 0x1FFF;  // row above position: compare them apart
      const uint32_t a = word & kPositionAndRow, b = o.word & kPositionAndRow;
      if (list != o.list) return list < o.list;
      if ((a & 0x1FF) != (b & 0x1FF)) return (a & 0x1FF) < (b & 0x1FF);
      return a < b;
    }
  };
  std::vector<Entry> entries;
  entries.reserve(m.outliers.size());
  for (const Outlier& o : m.outliers) {
    Require(o.row >= 0 && o.row < shape.rows, "outlier row out of range");
    Require(o.position >= 0 && o.position < ChunkChannels(2) * shape.chunks2,
            "outlier outside the 2-bit strips");
    Require(m.strip_order[o.position / kStripChannels] != kNoStrip, "outlier in a padding strip");
    const size_t list =
        static_cast<size_t>(o.row / kBlockRows) * shape.tiles(2) + o.position / kTileChannels;
    entries.push_back({list, static_cast<uint32_t>(o.position % kTileChannels) |
                                 static_cast<uint32_t>(o.row % kBlockRows) << 9 |
                                 static_cast<uint32_t>(o.value) << 16});
  }
  std::stable_sort(entries.begin(), entries.end());
  out->outlier_start.assign(shape.num_outlier_lists() + 1, 0);
  for (const Entry& e : entries) {
    ++out->outlier_start[e.list + 1];
    out->outliers.push_back(e.word);
  }
  for (size_t i = 1; i < out->outlier_start.size(); ++i) {
    out->outlier_start[i] += out->outlier_start[i - 1];
  }
}

void UnpackWidth(const PackedMatrix& m, int bits, UnpackedMatrix* out) {
  const PackedShape& shape = m.shape;
  const size_t positions = shape.num_positions();
  for (int row = 0; row < shape.rows; ++row) {
    const uint8_t* block = m.tiles + (row / kBlockRows) * shape.row_block_bytes();
    const int in_block = row % kBlockRows;
    for (int chunk = 0; chunk < shape.chunks(bits); ++chunk) {
      const ChunkView view = ViewChunk(shape, block, bits, chunk);
      for (int s = 0; s < ChunkStrips(bits); ++s) {
        const size_t at =
            row * positions + FirstPosition(shape, bits) + chunk * ChunkStrips(bits) + s;
        out->sub_scales[at] = ReadField(view.sub_scales, PlaceOfSubScale(bits, in_block, s), 4);
        if (shape.zero_points) {
          out->zeros[at] = ReadField(view.zeros, PlaceOfZero(bits, in_block, s), bits);
        }
        for (int k = 0; k < kStripChannels; ++k) {
          out->codes[at * kStripChannels + k] =
              ReadField(view.codes, PlaceOfCode(bits, in_block, s, k), bits);
        }
      }
      const size_t tile = chunk / kTileChunks;
      out->second_order[bits == 2 ? 0 : 1][row * shape.tiles(bits) + tile] =
          LoadHalf(view.second_order + PlaceOfSecondOrder(in_block));
    }
  }
}

void UnpackOutliers(const PackedMatrix& m, UnpackedMatrix* out) {
  if (m.outlier_start == nullptr) return;
  const int tiles = m.shape.tiles(2);
  for (size_t list = 0; list < m.shape.num_outlier_lists(); ++list) {
    for (uint32_t i = m.outlier_start[list]; i < m.outlier_start[list + 1]; ++i) {
      const uint32_t entry = m.outliers[i];
      const int tile = static_cast<int>(list % tiles);
      const int block = static_cast<int>(list / tiles);
      out->outliers.push_back({block * kBlockRows + OutlierRow(entry),
                               tile * kTileChunks * ChunkChannels(2) + OutlierPosition(entry),
                               OutlierValue(entry)});
    }
  }
}

const char* ValidateStripOrder(const PackedMatrix& m) {
  const int strips = m.shape.cols / kStripChannels;
  std::vector<bool> seen(strips, false);
  int used = 0;
  for (int p = 0; p < m.shape.num_positions(); ++p) {
    const uint16_t strip = m.strip_order[p];
    if (strip == kNoStrip) continue;
    if (strip >= strips) return "strip_order names a strip beyond the input channels";
    if (seen[strip]) return "strip_order names a strip twice";
    seen[strip] = true;
    ++used;
  }
  return used == strips ? nullptr : "strip_order leaves out a strip";
}

const char* ValidateOutliers(const PackedMatrix& m, size_t num_starts, size_t outlier_count) {
  if (m.outlier_start == nullptr) {
    return num_starts == 0 && outlier_count == 0 ? nullptr : "outliers without their start table";
  }
  const PackedShape& shape = m.shape;
  if (num_starts != shape.num_outlier_lists() + 1) return "outlier start table has a wrong length";
  if (m.outlier_start[0] != 0) return "outlier start table does not begin at 0";
  if (outlier_count > 0 && m.outliers == nullptr) return "outliers are missing";
  for (size_t i = 0; i + 1 < num_starts; ++i) {
    if (m.outlier_start[i + 1] < m.outlier_start[i]) return "outlier start table descends";
  }
  if (m.outlier_start[num_starts - 1] != outlier_count) {
    return "outlier start table does not end at the number of outliers";
  }
  for (size_t list = 0; list + 1 < num_starts; ++list) {
    const int tile = static_cast<int>(list % shape.tiles(2));
    const int block = static_cast<int>(list / shape.tiles(2));
    const int channels = shape.tile_chunks(2, tile) * ChunkChannels(2);
    for (uint32_t i = m.outlier_start[list]; i < m.outlier_start[list + 1]; ++i) {
      const int position = OutlierPosition(m.outliers[i]);
      if (position >= channels) return "an outlier lies beyond its tile";
      if (block * kBlockRows + OutlierRow(m.outliers[i]) >= shape.rows) {
        return "an outlier lies beyond the rows";
      }
      const int strip = tile * kTileChunks * ChunkStrips(2) + position / kStripChannels;
      if (m.strip_order[strip] == kNoStrip) return "an outlier lies in a padding strip";
    }
  }
  return nullptr;
}

}  // namespace

PackedMatrix PackedStorage::view() const {
  PackedMatrix m;
  m.shape = shape;
  m.tiles = tiles.data();
  m.strip_order = strip_order.data();
  m.outlier_start = outlier_start.empty() ? nullptr : outlier_start.data();
  m.outliers = outlier_start.empty() ? nullptr : outliers.data();
  return m;
}

PackedStorage Pack(const UnpackedMatrix& m) {
  return Pack(m, [](int rows, const auto& pack) { pack(0, rows); });
}

PackedStorage Pack(const UnpackedMatrix& m, const RowRanges& ranges) {
  RequireUnpacked(m);
  PackedStorage out;
  out.shape = m.shape;
  out.strip_order = m.strip_order;
  out.tiles.assign(m.shape.total_bytes(), 0);
  ranges(m.shape.rows, [&](int begin, int end) {
    PackWidth(m, 2, begin, end, &out);
    PackWidth(m, 4, begin, end, &out);
  });
  PackOutliers(m, &out);
  return out;
}

UnpackedMatrix Unpack(const PackedMatrix& m) {
  const PackedShape& shape = m.shape;
  const size_t rows = shape.rows, positions = shape.num_positions();
  UnpackedMatrix out;
  out.shape = shape;
  out.strip_order.assign(m.strip_order, m.strip_order + positions);
  out.codes.assign(rows * positions * kStripChannels, 0);
  out.sub_scales.assign(rows * positions, 0);
  if (shape.zero_points) out.zeros.assign(rows * positions, 0);
  out.second_order[0].assign(rows * shape.tiles(2), 0);
  out.second_order[1].assign(rows * shape.tiles(4), 0);
  UnpackWidth(m, 2, &out);
  UnpackWidth(m, 4, &out);
  UnpackOutliers(m, &out);
  return out;
}

const char* ValidatePacked(const PackedMatrix& m, size_t tile_bytes, size_t num_positions,
                           size_t num_starts, size_t outlier_count) {
  const PackedShape& shape = m.shape;
  constexpr int32_t kMaxChunks = 65535;  // strips are numbered in 16 bits
  constexpr int32_t kMaxRows = 1 << 30;
  if (shape.rows <= 0 || shape.cols <= 0) return "rows and columns must be positive";
  if (shape.rows > kMaxRows) return "too many rows";
  if (shape.cols % kStripChannels != 0) return "columns must be a multiple of 16";
  if (shape.chunks2 < 0 || shape.chunks4 < 0 || shape.chunks2 > kMaxChunks ||
      shape.chunks4 > kMaxChunks) {
    return "chunk counts out of range";
  }
  if (shape.num_positions() * kStripChannels < shape.cols) return "too few chunks for the columns";
  if (tile_bytes != shape.total_bytes()) return "tile data has a wrong length";
  if (num_positions != static_cast<size_t>(shape.num_positions())) {
    return "strip_order has a wrong length";
  }
  if (m.tiles == nullptr || m.strip_order == nullptr) return "tiles or strip_order are missing";
  if (reinterpret_cast<uintptr_t>(m.tiles) % 16 != 0) return "tile data is not 16-byte aligned";
  if (const char* error = ValidateStripOrder(m)) return error;
  return ValidateOutliers(m, num_starts, outlier_count);
}

uint16_t FloatToHalf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return sign | 0x7E00u;   // NaN
  if (magnitude >= 0x477FF000u) return sign | 0x7BFFu;  // rounds beyond 65504: saturate
  const auto round_shift = [](uint32_t v, int shift) {  // to nearest, ties to even
    const uint32_t half = 1u << (shift - 1), rest = v & ((1u << shift) - 1u);
    const uint32_t kept = v >> shift;
    return kept + (rest > half || (rest == half && (kept & 1u)) ? 1u : 0u);
  };
  if (magnitude >= 0x38800000u) {  // normal in half: rebias the exponent, drop 13 bits
    return static_cast<uint16_t>(sign | round_shift(magnitude - 0x38000000u, 13));
  }
  if (magnitude < 0x33000000u) return sign;  // below half of the smallest subnormal
  const uint32_t mantissa = (magnitude & 0x7FFFFFu) | 0x800000u;
  const int shift = 126 - static_cast<int>(magnitude >> 23);  // 14 .. 24
  return static_cast<uint16_t>(sign | round_shift(mantissa, shift));
}

float HalfToFloat(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1Fu;
  const uint32_t mantissa = bits & 0x3FFu;
  uint32_t out;
  if (exponent == 31) {
    out = sign | 0x7F800000u | mantissa << 13;
  } else if (exponent != 0) {
    out = sign | (exponent + 112) << 23 | mantissa << 13;
  } else {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // exact
    std::memcpy(&out, &magnitude, sizeof(out));
    out |= sign;
  }
  float value;
  std::memcpy(&value, &out, sizeof(value));
  return value;
}

}  // namespace fewbit::quant
