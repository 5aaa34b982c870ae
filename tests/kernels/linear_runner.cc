#include "tests/kernels/linear_runner.h"

#include <algorithm>
#include <cstring>

#include "gtest/gtest.h"
#include "tests/kernels/random_matrix.h"

namespace fewbit::testing {
namespace {

constexpr uint32_t kPoison = 0x7FC0DEAD;  // a NaN that no arithmetic makes

uint32_t BitsOf(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof(bits));
  return bits;
}

}  // namespace

std::vector<cpu::Isa> SupportedIsas() {
  std::vector<cpu::Isa> isas;
  for (const cpu::Isa isa : {cpu::Isa::kPortable, cpu::Isa::kAvx2, cpu::Isa::kAvx512}) {
    if (cpu::IsaSupported(isa)) isas.push_back(isa);
  }
  return isas;
}

std::vector<float> RunLinear(cpu::Isa isa, const Matrix& w, const float* x, size_t x_stride,
                             int tokens, const Cut& cut) {
  const int rows = MatrixRows(w);
  const size_t bytes = cpu::ActivationBytes(w, tokens);
  EXPECT_EQ(bytes % 64, 0u);
  const Guarded<uint8_t> activations(bytes);
  if (bytes > 0) std::memset(activations.data(), 0xA5, bytes);
  for (int part = 0; part < cut.stage_parts; ++part) {
    cpu::PrepareActivations(isa, w, x, x_stride, tokens, tokens * part / cut.stage_parts,
                            tokens * (part + 1) / cut.stage_parts, activations.data());
  }
  // A margin of 5 poisoned floats between rows, none behind the last.
  const size_t stride = rows + 5;
  const Guarded<float> y(tokens * stride - 5);
  for (size_t i = 0; i < y.size(); ++i) std::memcpy(&y[i], &kPoison, sizeof(kPoison));
  const int blocks = (rows + 15) / 16;
  for (int part = 0; part < cut.row_parts; ++part) {
    const int begin = 16 * (blocks * part / cut.row_parts);
    const int end = std::min(rows, 16 * (blocks * (part + 1) / cut.row_parts));
    if (begin < end) {
      cpu::Linear(isa, w, x, x_stride, activations.data(), tokens, begin, end, y.data(), stride);
    }
  }
  std::vector<float> out;
  for (size_t i = 0; i < y.size(); ++i) {
    const bool inside = i % stride < static_cast<size_t>(rows);
    EXPECT_EQ(BitsOf(y[i]) == kPoison, !inside)
        << cpu::IsaName(isa) << (inside ? " left out " : " wrote outside at ") << i;
    if (inside) out.push_back(y[i]);
  }
  return out;
}

}  // namespace fewbit::testing
