#include "tests/gpu/gpu_linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "kernels/cuda/repack.h"
#include "tests/gpu/stage_rows.h"

namespace fewbit::testing {
namespace {

uint16_t ToBits(DType type, float value) {
  if (type == DType::kF16) return quant::FloatToHalf(value);
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

// The output with guard elements before and behind it. 0xFF bytes are a NaN of every type that no
// arithmetic makes.
constexpr size_t kGuard = 64;
constexpr uint8_t kPoison = 0xFF;

bool AllPoison(const uint8_t* p, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) {
    if (p[i] != kPoison) return false;
  }
  return true;
}

std::vector<float> Outputs(const cuda::Desc& d, const std::vector<uint8_t>& raw, int64_t stride) {
  const size_t width = d.y_type == DType::kF32 ? 4 : 2;
  std::vector<float> y(static_cast<size_t>(d.m) * d.shapes[0].rows);
  EXPECT_TRUE(AllPoison(raw.data(), kGuard * width)) << "written before the output";
  for (int i = 0; i < d.m; ++i) {
    const uint8_t* row = raw.data() + (kGuard + i * stride) * width;
    for (int r = 0; r < d.shapes[0].rows; ++r) {
      const uint8_t* p = row + r * width;
      if (AllPoison(p, width)) {
        ADD_FAILURE() << "output " << i << ", " << r << " was not written";
        return y;
      }
      float value;
      uint16_t half;
      std::memcpy(&value, p, sizeof(value));
      std::memcpy(&half, p, sizeof(half));
      y[static_cast<size_t>(i) * d.shapes[0].rows + r] =
          width == 4 ? value : FromBits(d.y_type, half);
    }
    EXPECT_TRUE(AllPoison(row + d.shapes[0].rows * width, (stride - d.shapes[0].rows) * width))
        << "written behind row " << i;
  }
  return y;
}

}  // namespace

float FromBits(DType type, uint16_t bits) {
  if (type == DType::kF16) return quant::HalfToFloat(bits);
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

GpuMatrix::GpuMatrix(const quant::PackedStorage& packed)
    : tiles_(packed.tiles.size()), strip_order_(packed.strip_order) {
  const cuda::OutlierLists lists = cuda::RepackOutliers(packed.view());
  outlier_start_ = cuda::DeviceBuffer<uint32_t>(lists.start);
  outliers_ = cuda::DeviceBuffer<uint32_t>(lists.entries);
  const cuda::OutlierLists by_tile = cuda::RepackOutliersByTile(packed.view());
  tile_outlier_start_ = cuda::DeviceBuffer<uint32_t>(by_tile.start);
  tile_outliers_ = cuda::DeviceBuffer<uint32_t>(by_tile.entries);
  const cuda::DeviceBuffer<uint8_t> file(packed.tiles);
  cuda::CheckCuda(cuda::Repack(packed.shape, file.get(), tiles_.get(), nullptr), "Repack");
  cuda::CheckCuda(cudaDeviceSynchronize(), "Repack");
  view_ = {packed.shape,         tiles_.get(),    strip_order_.get(),
           outlier_start_.get(), outliers_.get(), tile_outlier_start_.get(),
           tile_outliers_.get()};
}

cuda::DeviceProps ThisDevice() {
  cuda::DeviceProps props;
  cuda::CheckCuda(cuda::ReadDeviceProps(0, &props), "ReadDeviceProps");
  static const bool prepared = [&] {
    cuda::CheckCuda(cuda::PrepareLinearKernels(props), "PrepareLinearKernels");
    return true;
  }();
  EXPECT_TRUE(prepared);
  return props;
}

cuda::DeviceBuffer<uint8_t> ZeroedExchange() {
  cuda::DeviceBuffer<uint8_t> exchange(cuda::ExchangeBytes(ThisDevice()));
  cuda::CheckCuda(cudaMemset(exchange.get(), 0, exchange.bytes()), "zero");
  cuda::CheckCuda(cudaDeviceSynchronize(), "zero");  // launches may be on another stream
  return exchange;
}

void ExpectZero(const cuda::DeviceBuffer<uint8_t>& exchange) {
  const cuda::DeviceBuffer<unsigned long long> left(std::vector<unsigned long long>{0});
  cuda::CheckCuda(
      CountDifferences(reinterpret_cast<const float*>(exchange.get()), nullptr,
                       static_cast<int64_t>(exchange.size() / sizeof(float)), left.get(), nullptr),
      "CountDifferences");
  EXPECT_EQ(left.Download()[0], 0u) << "words are left in the exchange";
}

std::vector<float> RoundTo(DType type, const std::vector<float>& x) {
  std::vector<float> out;
  out.reserve(x.size());
  for (float v : x) out.push_back(type == DType::kF32 ? v : FromBits(type, ToBits(type, v)));
  return out;
}

std::vector<uint8_t> AllBytes(DType type, const std::vector<float>& x) {
  std::vector<uint8_t> bytes(x.size() * (type == DType::kF32 ? 4 : 2));
  for (size_t i = 0; i < x.size(); ++i) {
    const uint16_t bits = ToBits(type, x[i]);
    if (type == DType::kF32) {
      std::memcpy(bytes.data() + 4 * i, &x[i], 4);
    } else {
      std::memcpy(bytes.data() + 2 * i, &bits, 2);
    }
  }
  return bytes;
}

std::vector<float> RunGpuLinear(const cuda::Desc& desc, const GpuMatrix& w,
                                const std::vector<float>& x, const cuda::Tuning& tuning,
                                cuda::Cublas* cublas) {
  const cuda::Plan plan = cuda::Select(desc, ThisDevice(), tuning);
  if (!plan.error.empty()) {
    ADD_FAILURE() << "not selected: " << plan.error;
    return {};
  }
  const cuda::DeviceBuffer<uint8_t> x_device(AllBytes(desc.x_type, x));
  const cuda::DeviceBuffer<uint8_t> staged(cuda::StagedBytes(desc, plan));
  const cuda::DeviceBuffer<uint8_t> scratch(plan.plain() ? cuda::ScratchBytes(desc.shapes[0]) : 0);
  const int64_t stride = desc.shapes[0].rows + 8;
  const size_t width = desc.y_type == DType::kF32 ? 4 : 2;
  cuda::DeviceBuffer<uint8_t> y((2 * kGuard + desc.m * stride) * width);
  cuda::CheckCuda(cudaMemset(staged.get(), kPoison, staged.bytes()), "poison");
  cuda::CheckCuda(cudaMemset(y.get(), kPoison, y.bytes()), "poison");
  const cuda::DeviceGroup group = {1, {w.view()}};
  const cuda::LinearInput in =
      cuda::InputOf(desc, plan, group, staged.get(), plan.plain() ? x_device.get() : nullptr);
  if (plan.staged()) {
    cuda::CheckCuda(cuda::StageActivations(desc, x_device.get(), desc.shapes[0].cols, in, nullptr),
                    "StageActivations");
  }
  cuda::LinearOutput out;
  out.y = y.get() + kGuard * width;
  out.stride = stride;
  const cuda::DeviceBuffer<uint8_t> exchange = ZeroedExchange();
  const cuda::LinearWorkspace workspace = {scratch.get(), cublas, exchange.get()};
  EXPECT_EQ(cuda::LaunchLinear(desc, plan, group, in, out, workspace, nullptr), "");
  cuda::CheckCuda(cudaDeviceSynchronize(), "LaunchLinear");
  ExpectZero(exchange);
  return Outputs(desc, y.Download(), stride);
}

std::vector<float> LaunchInARow(const cuda::Desc& desc, const cuda::Plan& plan, const GpuMatrix& w,
                                const std::vector<float>& x, int times,
                                const cuda::DeviceBuffer<uint8_t>& exchange) {
  const quant::PackedShape& shape = desc.shapes[0];
  const cuda::DeviceBuffer<uint8_t> x_device(AllBytes(desc.x_type, x));
  const cuda::DeviceGroup group = {1, {w.view()}};
  const cuda::DeviceBuffer<uint8_t> staged(cuda::StagedBytes(desc, plan));
  const cuda::LinearInput in = cuda::InputOf(desc, plan, group, staged.get(), nullptr);
  cuda::CheckCuda(cuda::StageActivations(desc, x_device.get(), shape.cols, in, nullptr), "stage");
  std::vector<cuda::DeviceBuffer<float>> y;
  for (int i = 0; i < times; ++i) {
    y.emplace_back(size_t{1} * desc.m * shape.rows);
    cuda::CheckCuda(cudaMemset(y[i].get(), 0xAB, y[i].bytes()), "poison");
  }
  cuda::LinearWorkspace workspace;
  workspace.exchange = exchange.get();
  cuda::LinearOutput out;
  out.stride = shape.rows;
  for (int i = 0; i < times; ++i) {
    out.y = y[i].get();
    EXPECT_EQ(cuda::LaunchLinear(desc, plan, group, in, out, workspace, nullptr), "");
  }
  cuda::CheckCuda(cudaDeviceSynchronize(), "launches in a row");
  ExpectZero(exchange);
  std::vector<float> first = y[0].Download();
  for (int i = 1; i < times; ++i) {
    EXPECT_EQ(std::memcmp(y[i].Download().data(), first.data(), y[i].bytes()), 0) << i;
  }
  return first;
}

std::vector<double> ReferenceLinear(const quant::UnpackedMatrix& w, const std::vector<float>& x,
                                    int m) {
  const quant::PackedShape& s = w.shape;
  const int positions = s.num_positions();
  std::vector<double> y(static_cast<size_t>(m) * s.rows, 0.0);
  std::vector<double> row(s.cols);
  std::vector<std::vector<quant::Outlier>> outliers(s.rows);
  for (const quant::Outlier& o : w.outliers) outliers[o.row].push_back(o);
  for (int r = 0; r < s.rows; ++r) {
    std::vector<double> weights(static_cast<size_t>(positions) * 16, 0.0);
    for (int p = 0; p < positions; ++p) {
      const int bits = p < 8 * s.chunks2 ? 2 : 4;
      const int tile = bits == 2 ? p / 32 : (p - 8 * s.chunks2) / 16;
      const size_t at = static_cast<size_t>(r) * positions + p;
      const double d =
          quant::HalfToFloat(w.second_order[bits == 2 ? 0 : 1][r * s.tiles(bits) + tile]) / 64.0;
      const double zero = s.zero_points ? w.zeros[at] : ((1 << bits) - 1) / 2.0;
      for (int k = 0; k < 16; ++k) {
        weights[p * 16 + k] = (w.codes[at * 16 + k] - zero) * w.sub_scales[at] * d;
      }
    }
    for (const quant::Outlier& o : outliers[r]) {
      weights[o.position] += quant::HalfToFloat(o.value);
    }
    for (int p = 0; p < positions; ++p) {
      if (w.strip_order[p] == quant::kNoStrip) continue;
      for (int k = 0; k < 16; ++k) row[w.strip_order[p] * 16 + k] = weights[p * 16 + k];
    }
    for (int i = 0; i < m; ++i) {
      double sum = 0;
      for (int c = 0; c < s.cols; ++c) sum += row[c] * x[static_cast<size_t>(i) * s.cols + c];
      y[static_cast<size_t>(i) * s.rows + r] = sum;
    }
  }
  return y;
}

double RelativeError(const std::vector<float>& a, const std::vector<double>& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference / norm);
}

}  // namespace fewbit::testing
