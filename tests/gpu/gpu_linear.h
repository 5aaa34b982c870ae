// A packed matrix on the device and one linear layer run the way a caller does it, in poisoned
// memory with guards around the output.
#pragma once

#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/dequantize.h"
#include "kernels/cuda/device_buffer.h"
#include "kernels/cuda/linear_launch.h"
#include "kernels/quant_pack.h"
#include "tests/kernels/random_matrix.h"

namespace fewbit::testing {

class GpuMatrix {
 public:
  explicit GpuMatrix(const quant::PackedStorage& packed);
  const cuda::DeviceMatrix& view() const { return view_; }

 private:
  cuda::DeviceBuffer<uint8_t> tiles_;
  cuda::DeviceBuffer<uint16_t> strip_order_;
  cuda::DeviceBuffer<uint32_t> outlier_start_, outliers_, tile_outlier_start_, tile_outliers_;
  cuda::DeviceMatrix view_;
};

// A random matrix, plain and on the device, and a layer of it.
struct LinearCase {
  quant::UnpackedMatrix plain;
  GpuMatrix gpu;
  cuda::Desc desc;

  LinearCase(const PackedOptions& options, std::mt19937* rng)
      : plain(RandomUnpacked(options, rng)), gpu(quant::Pack(plain)) {
    desc.shapes[0] = plain.shape;
  }
};

cuda::DeviceProps ThisDevice();

// LinearWorkspace::exchange as launches expect it. After them, it must be all zero again.
cuda::DeviceBuffer<uint8_t> ZeroedExchange();
void ExpectZero(const cuda::DeviceBuffer<uint8_t>& exchange);

// Values as they are after rounding to `type`.
std::vector<float> RoundTo(DType type, const std::vector<float>& x);
// Such values as the bytes of an array of `type`.
std::vector<uint8_t> AllBytes(DType type, const std::vector<float>& x);

// y [m, rows] of the one matrix of `desc` as floats, x [m, cols] already rounded to desc.x_type.
// Fails the test if an output stays unwritten, a guard is touched, no kernel is selected or CUDA
// reports an error. Large batches need cuBLAS.
std::vector<float> RunGpuLinear(const cuda::Desc& desc, const GpuMatrix& w,
                                const std::vector<float>& x, const cuda::Tuning& tuning = {},
                                cuda::Cublas* cublas = nullptr);

// y [m, rows] of kF32 of `times` launches without a pause, x as above. Fails the test if they do
// not all give the same bits or leave the exchange not zero. REQUIRES: plan == Select(desc, ...).
std::vector<float> LaunchInARow(const cuda::Desc& desc, const cuda::Plan& plan, const GpuMatrix& w,
                                const std::vector<float>& x, int times,
                                const cuda::DeviceBuffer<uint8_t>& exchange);

float FromBits(DType type, uint16_t bits);

// y [m, rows] in double precision.
std::vector<double> ReferenceLinear(const quant::UnpackedMatrix& w, const std::vector<float>& x,
                                    int m);

// ||a - b|| / ||b||.
double RelativeError(const std::vector<float>& a, const std::vector<double>& b);

}  // namespace fewbit::testing
