#include "tests/kernels/random_matrix.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numeric>
#include <set>
#include <utility>

namespace fewbit::testing {
namespace {

int Uniform(int low, int high, std::mt19937* rng) {
  return std::uniform_int_distribution<int>(low, high)(*rng);
}

// strips spread over a whole number of chunks, padding at random positions.
std::vector<uint16_t> WithPadding(std::vector<uint16_t> strips, int chunk_strips, int extra_chunks,
                                  std::mt19937* rng) {
  const size_t chunks = (strips.size() + chunk_strips - 1) / chunk_strips + extra_chunks;
  strips.resize(chunks * chunk_strips, quant::kNoStrip);
  std::shuffle(strips.begin(), strips.end(), *rng);
  return strips;
}

template <typename T>
T* Keep(const std::vector<T>& from, TestMatrix* m) {
  auto memory = std::make_shared<Guarded<T>>(from);
  T* data = memory->data();
  m->memory.push_back(std::move(memory));
  return data;
}

}  // namespace

GuardedBytes::GuardedBytes(size_t bytes) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t body = (bytes + page - 1) / page * page;
  mapped_ = body + page;
  void* p = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) std::abort();
  mapping_ = static_cast<uint8_t*>(p);
  if (mprotect(mapping_ + body, page, PROT_NONE) != 0) std::abort();
  data_ = mapping_ + (body - bytes);
}

GuardedBytes::~GuardedBytes() { munmap(mapping_, mapped_); }

std::string Describe(const PackedOptions& o) {
  return "packed rows " + std::to_string(o.rows) + " cols " + std::to_string(o.cols) + " share4 " +
         std::to_string(o.share4) + (o.zero_points ? " zero points" : "") + " outliers " +
         std::to_string(o.outlier_share) + " padding " + std::to_string(o.extra_padding);
}

quant::UnpackedMatrix RandomUnpacked(const PackedOptions& o, std::mt19937* rng) {
  const int strips = o.cols / quant::kStripChannels;
  std::vector<uint16_t> order(strips);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), *rng);
  const int count4 = static_cast<int>(std::lround(o.share4 * strips));
  const auto order4 = WithPadding({order.begin(), order.begin() + count4}, 4, o.extra_padding, rng);
  quant::UnpackedMatrix m;
  m.strip_order = WithPadding({order.begin() + count4, order.end()}, 8, o.extra_padding, rng);
  m.shape = {o.rows, o.cols, static_cast<int32_t>(m.strip_order.size() / 8),
             static_cast<int32_t>(order4.size() / 4), o.zero_points};
  m.strip_order.insert(m.strip_order.end(), order4.begin(), order4.end());

  const size_t positions = m.shape.num_positions();
  m.codes.resize(o.rows * positions * quant::kStripChannels);
  m.sub_scales.resize(o.rows * positions);
  if (o.zero_points) m.zeros.resize(o.rows * positions);
  for (size_t i = 0; i < m.sub_scales.size(); ++i) {
    const size_t p = i % positions;
    const int top = p < 8u * m.shape.chunks2 ? 3 : 15;
    if (m.strip_order[p] == quant::kNoStrip) continue;
    // Rows of extremes reach the largest sums that the integer paths must hold.
    const bool extreme = Uniform(0, 9, rng) == 0;
    m.sub_scales[i] = extreme ? 15 : Uniform(0, 15, rng);
    if (o.zero_points) m.zeros[i] = extreme ? 0 : Uniform(0, top, rng);
    for (int k = 0; k < quant::kStripChannels; ++k) {
      m.codes[i * quant::kStripChannels + k] = extreme ? top : Uniform(0, top, rng);
    }
  }
  for (int width = 0; width < 2; ++width) {
    m.second_order[width].resize(o.rows * m.shape.tiles(width == 0 ? 2 : 4));
    for (uint16_t& d : m.second_order[width]) {
      d = quant::FloatToHalf(64.0f * 0.002f * (1 + Uniform(0, 1000, rng) / 500.0f));
    }
  }
  std::set<std::pair<int, int>> used;
  const int channels2 = quant::ChunkChannels(2) * m.shape.chunks2;
  const int wanted = static_cast<int>(o.outlier_share * o.rows * channels2);
  for (int i = 0; i < wanted; ++i) {
    const int row = Uniform(0, o.rows - 1, rng), position = Uniform(0, channels2 - 1, rng);
    if (m.strip_order[position / 16] == quant::kNoStrip) continue;
    if (!used.insert({row, position}).second) continue;
    m.outliers.push_back({row, position, quant::FloatToHalf(Uniform(-1000, 1000, rng) / 2000.0f)});
  }
  return m;
}

TestMatrix RandomPacked(const PackedOptions& options, std::mt19937* rng) {
  TestMatrix out;
  out.name = Describe(options);
  out.plain = RandomUnpacked(options, rng);
  const quant::PackedStorage storage = quant::Pack(out.plain);
  quant::PackedMatrix m;
  m.shape = storage.shape;
  m.tiles = Keep(storage.tiles, &out);
  m.strip_order = Keep(storage.strip_order, &out);
  if (!storage.outlier_start.empty()) {
    m.outlier_start = Keep(storage.outlier_start, &out);
    m.outliers = Keep(storage.outliers, &out);
  }
  out.matrix = m;
  return out;
}

TestMatrix RandomInt8(int rows, int cols, std::mt19937* rng) {
  TestMatrix out;
  out.name = "int8 rows " + std::to_string(rows) + " cols " + std::to_string(cols);
  std::vector<uint8_t> codes(static_cast<size_t>(rows) * cols);
  // Now and then a run of one extreme; code 0 is not written by us, but a file may hold it.
  for (size_t i = 0; i < codes.size(); ++i) {
    const int kind = static_cast<int>(i / 37 % 11);
    codes[i] = kind == 0 ? 255 : kind == 1 ? 0 : Uniform(1, 255, rng);
  }
  std::vector<float> scales(rows);
  for (float& s : scales) s = 0.001f * (1 + Uniform(0, 1000, rng) / 500.0f);
  Int8Matrix m;
  m.codes = Keep(codes, &out);
  m.scales = Keep(scales, &out);
  m.rows = rows;
  m.cols = cols;
  out.matrix = m;
  return out;
}

TestMatrix RandomDense(DType dtype, int rows, int cols, std::mt19937* rng) {
  TestMatrix out;
  out.name = std::string(dtype == DType::kF32   ? "f32"
                         : dtype == DType::kF16 ? "f16"
                                                : "bf16") +
             " rows " + std::to_string(rows) + " cols " + std::to_string(cols);
  std::normal_distribution<float> normal(0.0f, 0.05f);
  std::vector<float> values(static_cast<size_t>(rows) * cols);
  for (float& v : values) v = normal(*rng);
  DenseMatrix m;
  m.dtype = dtype;
  m.rows = rows;
  m.cols = cols;
  if (dtype == DType::kF32) {
    m.data = Keep(values, &out);
  } else {
    std::vector<uint16_t> halves(values.size());
    for (size_t i = 0; i < values.size(); ++i) {
      uint32_t bits;
      std::memcpy(&bits, &values[i], sizeof(bits));
      halves[i] =
          dtype == DType::kF16 ? quant::FloatToHalf(values[i]) : static_cast<uint16_t>(bits >> 16);
    }
    m.data = Keep(halves, &out);
  }
  out.matrix = m;
  return out;
}

std::vector<float> RandomActivations(size_t count, std::mt19937* rng) {
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<float> x(count);
  for (float& v : x) {
    const int kind = Uniform(0, 63, rng);
    v = kind == 0 ? 20.0f * normal(*rng) : kind == 1 ? 0.0f : normal(*rng);
  }
  return x;
}

}  // namespace fewbit::testing
