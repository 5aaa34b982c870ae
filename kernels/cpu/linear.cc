#include "kernels/cpu/linear.h"

#include <cstring>
#if defined(FEWBIT_KERNELS_X86)
#include <cpuid.h>
#endif

#include "kernels/cpu/linear_kernels.h"
#include "kernels/quant_access.h"
#include "kernels/quant_pack.h"

namespace fewbit::cpu {
namespace {

struct IsaRow {
  Isa isa;
  const char* name;
  const LinearKernels* kernels;
};

// The instance table, best last. A row is used only where IsaSupported() says so.
constexpr IsaRow kIsaRows[] = {
    {Isa::kPortable, "portable", &kPortableLinear},
#if defined(FEWBIT_KERNELS_X86)
    {Isa::kAvx2, "avx2", &kAvx2Linear},
    {Isa::kAvx512, "avx512", &kAvx512Linear},
#endif
};

const LinearKernels& KernelsOf(Isa isa) {
  for (const IsaRow& row : kIsaRows) {
    if (row.isa == isa) return *row.kernels;
  }
  return kPortableLinear;
}

PackedView ViewOf(const quant::PackedMatrix& m) {
  const quant::PackedShape& s = m.shape;
  PackedView view{};
  view.tiles = m.tiles;
  view.strip_order = m.strip_order;
  const bool outliers =
      m.outlier_start != nullptr && m.outlier_start[s.num_outlier_lists()] > m.outlier_start[0];
  view.outlier_start = outliers ? m.outlier_start : nullptr;
  view.outliers = m.outliers;
  view.row_block_bytes = s.row_block_bytes();
  view.section2_bytes = s.section_bytes(2);
  view.rows = s.rows;
  view.cols = s.cols;
  view.chunks2 = s.chunks2;
  view.chunks4 = s.chunks4;
  view.tiles2 = s.tiles(2);
  view.tiles4 = s.tiles(4);
  view.zero_points = s.zero_points;
  return view;
}

Int8View ViewOf(const Int8Matrix& m) {
  return {m.codes, m.scales, m.rows, m.cols, (m.cols + kInt8Block - 1) / kInt8Block};
}

DenseView ViewOf(const DenseMatrix& m) {
  const DenseType type = m.dtype == DType::kF32   ? DenseType::kF32
                         : m.dtype == DType::kF16 ? DenseType::kF16
                                                  : DenseType::kBF16;
  return {m.data, type, m.rows, m.cols};
}

constexpr size_t RoundUp64(size_t bytes) { return (bytes + 63) / 64 * 64; }

static_assert(kStageTokens == kTransposeTokens);

ActivationLayout LayoutOf(const PackedView& w, int tokens) {
  ActivationLayout layout{};
  layout.chunk4_offset = static_cast<size_t>(w.chunks2) * kChunk2Stride;
  layout.scale_offset = layout.chunk4_offset + static_cast<size_t>(w.chunks4) * kChunk4Stride;
  layout.token_stride =
      RoundUp64(layout.scale_offset + sizeof(float) * static_cast<size_t>(w.chunks2 + w.chunks4));
  layout.total = layout.token_stride * tokens;
  if (w.outlier_start != nullptr && tokens >= kTransposeMinTokens) {
    const size_t groups = (tokens + kTransposeTokens - 1) / kTransposeTokens;
    layout.transposed_offset = layout.total;
    layout.total += groups * w.chunks2 * kChunk2Codes * kTransposeTokens * sizeof(float);
  }
  return layout;
}

ActivationLayout LayoutOf(const Int8View& w, int tokens) {
  ActivationLayout layout{};
  const size_t blocks = w.blocks;
  layout.bias_offset = blocks * kInt8Block;
  layout.scale_offset = layout.bias_offset + blocks * sizeof(int32_t);
  layout.token_stride = RoundUp64(layout.scale_offset + blocks * sizeof(float));
  layout.total = layout.token_stride * tokens;
  return layout;
}

ActivationLayout LayoutOf(const DenseView&, int) { return {}; }

void DequantizePackedRow(const quant::PackedMatrix& m, int row, float* out) {
  const quant::PackedShape& shape = m.shape;
  const int in_block = row % quant::kBlockRows, block = row / quant::kBlockRows;
  const uint8_t* base = m.tiles + block * shape.row_block_bytes();
  int position = 0;
  for (const int bits : {2, 4}) {
    for (int chunk = 0; chunk < shape.chunks(bits); ++chunk) {
      const quant::ChunkView view = quant::ViewChunk(shape, base, bits, chunk);
      const float half_d = quant::HalfToFloat(quant::LoadHalf(
                               view.second_order + quant::PlaceOfSecondOrder(in_block))) *
                           kHalfStep;
      for (int s = 0; s < quant::ChunkStrips(bits); ++s, ++position) {
        const uint16_t strip = m.strip_order[position];
        if (strip == quant::kNoStrip) continue;
        const int sub =
            quant::ReadField(view.sub_scales, quant::PlaceOfSubScale(bits, in_block, s), 4);
        const int c =
            shape.zero_points
                ? 2 * quant::ReadField(view.zeros, quant::PlaceOfZero(bits, in_block, s), bits)
                : (1 << bits) - 1;
        for (int k = 0; k < quant::kStripChannels; ++k) {
          const int q =
              quant::ReadField(view.codes, quant::PlaceOfCode(bits, in_block, s, k), bits);
          out[strip * quant::kStripChannels + k] = static_cast<float>((2 * q - c) * sub) * half_d;
        }
      }
    }
  }
  if (m.outlier_start == nullptr) return;
  for (int tile = 0; tile < shape.tiles(2); ++tile) {
    const size_t list = static_cast<size_t>(block) * shape.tiles(2) + tile;
    for (uint32_t i = m.outlier_start[list]; i < m.outlier_start[list + 1]; ++i) {
      const uint32_t entry = m.outliers[i];
      if (quant::OutlierRow(entry) != in_block) continue;
      const int at = tile * quant::kTileChunks * kChunk2Codes + quant::OutlierPosition(entry);
      const int strip = m.strip_order[at / quant::kStripChannels];
      out[strip * quant::kStripChannels + at % quant::kStripChannels] +=
          quant::HalfToFloat(quant::OutlierValue(entry));
    }
  }
}

void DequantizeInt8Row(const Int8Matrix& m, int row, float* out) {
  const uint8_t* codes = m.codes + static_cast<size_t>(row) * m.cols;
  const float scale = m.scales[row];
  for (int c = 0; c < m.cols; ++c) out[c] = static_cast<float>(codes[c] - 128) * scale;
}

void DequantizeDenseRow(const DenseMatrix& m, int row, float* out) {
  const size_t begin = static_cast<size_t>(row) * m.cols;
  if (m.dtype == DType::kF32) {
    std::memcpy(out, static_cast<const float*>(m.data) + begin, sizeof(float) * m.cols);
    return;
  }
  const uint16_t* in = static_cast<const uint16_t*>(m.data) + begin;
  for (int c = 0; c < m.cols; ++c) {
    if (m.dtype == DType::kF16) {
      out[c] = quant::HalfToFloat(in[c]);
    } else {
      const uint32_t bits = static_cast<uint32_t>(in[c]) << 16;
      std::memcpy(&out[c], &bits, sizeof(bits));
    }
  }
}

#if defined(FEWBIT_KERNELS_X86)
// F16C: leaf 1, ECX bit 29. Clang's __builtin_cpu_supports does not know it by name. Its other
// condition, that the system saves the wide registers, is part of the test for AVX2.
bool HasHalfConversion() {
  unsigned eax, ebx, ecx = 0, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & (1u << 29)) != 0;
}
#endif

}  // namespace

bool IsaSupported(Isa isa) {
  if (isa == Isa::kPortable) return true;
#if defined(FEWBIT_KERNELS_X86)
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && HasHalfConversion();
  if (isa == Isa::kAvx2) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
#else
  return false;
#endif
}

Isa BestIsa() {
  Isa best = Isa::kPortable;
  for (const IsaRow& row : kIsaRows) {
    if (IsaSupported(row.isa)) best = row.isa;
  }
  return best;
}

const char* IsaName(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
  }
  return "unknown";
}

size_t ActivationBytes(const Matrix& w, int tokens) {
  return std::visit([&](const auto& m) { return LayoutOf(ViewOf(m), tokens).total; }, w);
}

void PrepareActivations(Isa isa, const Matrix& w, const float* x, size_t x_stride, int tokens,
                        int token_begin, int token_end, void* activations) {
  const LinearKernels& kernels = KernelsOf(isa);
  StageCall call{x, x_stride, tokens, token_begin, token_end, static_cast<uint8_t*>(activations),
                 {}};
  if (const auto* packed = std::get_if<quant::PackedMatrix>(&w)) {
    const PackedView view = ViewOf(*packed);
    call.layout = LayoutOf(view, tokens);
    kernels.stage_packed(view, call);
  } else if (const auto* int8 = std::get_if<Int8Matrix>(&w)) {
    const Int8View view = ViewOf(*int8);
    call.layout = LayoutOf(view, tokens);
    kernels.stage_int8(view, call);
  }
}

void Linear(Isa isa, const Matrix& w, const float* x, size_t x_stride, const void* activations,
            int tokens, int row_begin, int row_end, float* y, size_t y_stride) {
  if (tokens <= 0 || row_begin >= row_end) return;
  const LinearKernels& kernels = KernelsOf(isa);
  LinearCall call{x,       x_stride, static_cast<const uint8_t*>(activations),
                  {},      tokens,   row_begin,
                  row_end, y,        y_stride};
  if (const auto* packed = std::get_if<quant::PackedMatrix>(&w)) {
    const PackedView view = ViewOf(*packed);
    call.layout = LayoutOf(view, tokens);
    kernels.packed(view, call);
  } else if (const auto* int8 = std::get_if<Int8Matrix>(&w)) {
    const Int8View view = ViewOf(*int8);
    call.layout = LayoutOf(view, tokens);
    kernels.int8(view, call);
  } else {
    kernels.dense(ViewOf(std::get<DenseMatrix>(w)), call);
  }
}

void DequantizeRow(const Matrix& w, int row, float* out) {
  if (const auto* packed = std::get_if<quant::PackedMatrix>(&w)) {
    DequantizePackedRow(*packed, row, out);
  } else if (const auto* int8 = std::get_if<Int8Matrix>(&w)) {
    DequantizeInt8Row(*int8, row, out);
  } else {
    DequantizeDenseRow(std::get<DenseMatrix>(w), row, out);
  }
}

}  // namespace fewbit::cpu
