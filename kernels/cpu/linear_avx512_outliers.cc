// Sparse corrections of the 2-bit strips, added to finished rows: y[t, row] = fma(value, x[t,
// channel], y[t, row]) in list order.
#include <immintrin.h>

#include "kernels/cpu/linear_avx512.h"

namespace fewbit::cpu::avx512 {
namespace {

constexpr int kRows = 16, kStrip = 16;
constexpr int kTileStrips = 32;
constexpr uint16_t kNoStrip = 0xFFFF;

inline float ValueOf(uint32_t entry) { return _cvtsh_ss(static_cast<uint16_t>(entry >> 16)); }

// Few tokens: entry by entry.
void AddToToken(const PackedView& w, size_t first_list, const float* x, float* y) {
  const uint16_t* strips = w.strip_order;
  for (int tile = 0; tile < w.tiles2; ++tile, strips += kTileStrips) {
    const uint32_t end = w.outlier_start[first_list + tile + 1];
    for (uint32_t i = w.outlier_start[first_list + tile]; i < end; ++i) {
      const uint32_t entry = w.outliers[i];
      const uint32_t position = entry & 0x1FF, row = (entry >> 9) & 0xF;
      const size_t source = static_cast<size_t>(strips[position >> 4]) * kStrip + (position & 15);
      y[row] = __builtin_fmaf(ValueOf(entry), x[source], y[row]);
    }
  }
}

// In place: v[i] lane j <-> v[j] lane i.
inline void Transpose16(__m512* v) {
  __m512d a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_castps_pd(_mm512_unpacklo_ps(v[i], v[i + 1]));
    a[i + 1] = _mm512_castps_pd(_mm512_unpackhi_ps(v[i], v[i + 1]));
  }
  for (int i = 0; i < 16; i += 4) {  // b[i + j]: column 4 * lane + j of rows i .. i + 3
    b[i] = _mm512_unpacklo_pd(a[i], a[i + 2]);
    b[i + 1] = _mm512_unpackhi_pd(a[i], a[i + 2]);
    b[i + 2] = _mm512_unpacklo_pd(a[i + 1], a[i + 3]);
    b[i + 3] = _mm512_unpackhi_pd(a[i + 1], a[i + 3]);
  }
  for (int j = 0; j < 4; ++j) {
    const __m512 r0 = _mm512_castpd_ps(b[j]), r1 = _mm512_castpd_ps(b[4 + j]);
    const __m512 r2 = _mm512_castpd_ps(b[8 + j]), r3 = _mm512_castpd_ps(b[12 + j]);
    const __m512 even01 = _mm512_shuffle_f32x4(r0, r1, 0x88);
    const __m512 even23 = _mm512_shuffle_f32x4(r2, r3, 0x88);
    const __m512 odd01 = _mm512_shuffle_f32x4(r0, r1, 0xDD);
    const __m512 odd23 = _mm512_shuffle_f32x4(r2, r3, 0xDD);
    v[j] = _mm512_shuffle_f32x4(even01, even23, 0x88);
    v[4 + j] = _mm512_shuffle_f32x4(odd01, odd23, 0x88);
    v[8 + j] = _mm512_shuffle_f32x4(even01, even23, 0xDD);
    v[12 + j] = _mm512_shuffle_f32x4(odd01, odd23, 0xDD);
  }
}

// 16 tokens: outputs transposed to [row, token], against the transposed activations.
void AddToGroup(const PackedView& w, size_t first_list, const float* x, int tokens, __mmask16 mask,
                float* y, size_t y_stride) {
  __m512 v[kTransposeTokens];
  for (int t = 0; t < kTransposeTokens; ++t) {
    v[t] = t < tokens ? _mm512_maskz_loadu_ps(mask, y + t * y_stride) : _mm512_setzero_ps();
  }
  Transpose16(v);
  alignas(64) float rows[kRows][kTransposeTokens];
  for (int r = 0; r < kRows; ++r) _mm512_store_ps(rows[r], v[r]);
  for (int tile = 0; tile < w.tiles2; ++tile) {
    const float* tile_x = x + static_cast<size_t>(tile) * kTileStrips * kStrip * kTransposeTokens;
    const uint32_t end = w.outlier_start[first_list + tile + 1];
    for (uint32_t i = w.outlier_start[first_list + tile]; i < end; ++i) {
      const uint32_t entry = w.outliers[i];
      float* row = rows[(entry >> 9) & 0xF];
      const __m512 channel = _mm512_loadu_ps(tile_x + (entry & 0x1FF) * kTransposeTokens);
      const __m512 value = _mm512_set1_ps(ValueOf(entry));
      _mm512_store_ps(row, _mm512_fmadd_ps(value, channel, _mm512_load_ps(row)));
    }
  }
  for (int r = 0; r < kRows; ++r) v[r] = _mm512_load_ps(rows[r]);
  Transpose16(v);
  for (int t = 0; t < tokens; ++t) _mm512_mask_storeu_ps(y + t * y_stride, mask, v[t]);
}

}  // namespace

void StageTransposed(const PackedView& w, const StageCall& call, int first, int begin, int end) {
  float* out = reinterpret_cast<float*>(call.activations + call.layout.transposed_offset) +
               static_cast<size_t>(first) * w.chunks2 * kChunk2Codes;
  for (int strip = 0; strip < 8 * w.chunks2; ++strip, out += kStrip * kTransposeTokens) {
    const uint16_t source = w.strip_order[strip];
    if (source == kNoStrip) continue;  // no outlier lies there
    const float* x = call.x + static_cast<size_t>(source) * kStrip;
    if (end - begin == kTransposeTokens) {
      __m512 v[kTransposeTokens];
      for (int t = 0; t < kTransposeTokens; ++t) {
        v[t] = _mm512_loadu_ps(x + (first + t) * call.x_stride);
      }
      Transpose16(v);
      for (int c = 0; c < kStrip; ++c) _mm512_storeu_ps(out + c * kTransposeTokens, v[c]);
      continue;
    }
    for (int t = begin; t < end; ++t) {
      const float* token = x + t * call.x_stride;
      for (int c = 0; c < kStrip; ++c) out[c * kTransposeTokens + t - first] = token[c];
    }
  }
}

void AddOutliers(const PackedView& w, const LinearCall& call, int row_begin) {
  const size_t list = static_cast<size_t>(row_begin / kRows) * w.tiles2;
  if (w.outlier_start[list] == w.outlier_start[list + w.tiles2]) return;
  float* y = call.y + row_begin;
  if (call.layout.transposed_offset == 0) {
    for (int t = 0; t < call.tokens; ++t) {
      AddToToken(w, list, call.x + t * call.x_stride, y + t * call.y_stride);
    }
    return;
  }
  const int left = call.row_end - row_begin;
  const __mmask16 mask = left >= kRows ? 0xFFFF : static_cast<__mmask16>((1u << left) - 1u);
  const float* x = reinterpret_cast<const float*>(call.activations + call.layout.transposed_offset);
  const size_t group = static_cast<size_t>(w.chunks2) * kChunk2Codes * kTransposeTokens;
  for (int t = 0; t < call.tokens; t += kTransposeTokens, x += group) {
    const int tokens = call.tokens - t < kTransposeTokens ? call.tokens - t : kTransposeTokens;
    AddToGroup(w, list, x, tokens, mask, y + t * call.y_stride, call.y_stride);
  }
}

}  // namespace fewbit::cpu::avx512
