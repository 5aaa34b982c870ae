// Packed weights: codes are decoded in registers, one row at a time, and used by up to 8 tokens.
//
// Two 32-byte vectors hold rows k and k + 8. A byte shuffle per 128-bit lane (one t) and an unpack
// leave each row in one vector, bytes [t: 0 2 1 3][unit][strip pair or strip of the unit][e]. Each
// bit field is shifted to bit 1, so that it reads as 2q, and goes through vpmaddubsw with the
// staged values. Nothing saturates: 2 x 30 x 127 for a pair, 4 x 30 x 127 for both halves of a
// strip. vpmaddwd with the sub-scales, one per 16-bit sum, gives exact 32-bit sums.
#include <immintrin.h>

#include "kernels/cpu/linear_avx2.h"

namespace fewbit::cpu::avx2 {
namespace {

constexpr int kCodeBytes = 512, kScaleBytes2 = 64, kScaleBytes4 = 32, kZeroBytes = 32;
constexpr int kSecondOrder = 32, kTileChunks = 4, kRows = 16;
constexpr int kStrip = 16, kTileStrips = 32;

// Index vectors, as bytes.
struct alignas(32) Constants {
  uint8_t codes[32];       // bytes of a lane to [hi][unit][pair][e]
  uint8_t scales2[2][32];  // [hi]: a row pair's 8 bytes to the low bytes of words [unit][pair]
  uint8_t fields[2][32];   // [hi]: a row pair's 4 bytes to the high bytes of words [unit][.]
  uint16_t second[16];     // mulhi factor: shifts odd words of fields right by 12, even ones by 8
};

constexpr Constants MakeConstants() {
  Constants out{};
  for (int i = 0; i < 32; ++i) {
    const int byte = i & 15, hi = byte >> 3, unit = (byte >> 2) & 1, pair = (byte >> 1) & 1;
    out.codes[i] = static_cast<uint8_t>(4 * (2 * unit + hi) + 2 * (byte & 1) + pair);
    for (int h = 0; h < 2; ++h) {
      out.scales2[h][i] = static_cast<uint8_t>((byte & 1) ? 0x80 : 4 * unit + 2 * h + pair);
      out.fields[h][i] = static_cast<uint8_t>((byte & 1) ? 2 * h + unit : 0x80);
    }
    out.second[i / 2] = pair ? 16 : 256;
  }
  return out;
}

constexpr Constants kConstants = MakeConstants();

inline __m256i Shuffle(__m256i v, const uint8_t* order) {
  return _mm256_shuffle_epi8(v, _mm256_load_si256(reinterpret_cast<const __m256i*>(order)));
}

inline __m256i Load(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

inline __m256i Load4(const uint8_t* p) {
  int32_t word;
  __builtin_memcpy(&word, p, sizeof(word));
  return _mm256_set1_epi32(word);
}

inline __m256i Load8(const uint8_t* p) {
  int64_t word;
  __builtin_memcpy(&word, p, sizeof(word));
  return _mm256_set1_epi64x(word);
}

// 16 vectors of 8 partial sums to one sum per row.
inline void Reduce(const __m256i* v, __m256i* low, __m256i* high) {
  __m256i a[4];
  for (int i = 0; i < 4; ++i) {  // each lane: half of the sums of rows 4i .. 4i + 3
    a[i] = _mm256_hadd_epi32(_mm256_hadd_epi32(v[4 * i], v[4 * i + 1]),
                             _mm256_hadd_epi32(v[4 * i + 2], v[4 * i + 3]));
  }
  *low = _mm256_add_epi32(_mm256_permute2x128_si256(a[0], a[1], 0x20),
                          _mm256_permute2x128_si256(a[0], a[1], 0x31));
  *high = _mm256_add_epi32(_mm256_permute2x128_si256(a[2], a[3], 0x20),
                           _mm256_permute2x128_si256(a[2], a[3], 0x31));
}

struct ChunkPointers {
  const uint8_t* codes;
  const uint8_t* scales;
  const uint8_t* zeros;
};

// sums[n][row] += one row of a 2-bit chunk. v: the row's bytes; s: its sub-scale bytes as words.
template <int kTokens, bool kZeroPoints>
inline void Row2(__m256i v, __m256i s, __m256i z, const uint8_t* x, size_t stride, int row,
                 __m256i (*sums)[kRows]) {
  const __m256i mask = _mm256_set1_epi8(6), nibble = _mm256_set1_epi16(15);
  const __m256i q00 = _mm256_and_si256(_mm256_srli_epi16(v, 1), mask);
  const __m256i q01 = _mm256_and_si256(_mm256_add_epi8(v, v), mask);
  const __m256i q10 = _mm256_and_si256(_mm256_srli_epi16(v, 5), mask);
  const __m256i q11 = _mm256_and_si256(_mm256_srli_epi16(v, 3), mask);
  const __m256i s0 = _mm256_and_si256(s, nibble), s1 = _mm256_srli_epi16(s, 4);
  const __m256i three = _mm256_set1_epi16(3);
  const __m256i z0 = _mm256_and_si256(z, three);
  const __m256i z1 = _mm256_and_si256(_mm256_srli_epi16(z, 2), three);
#pragma GCC unroll 8
  for (int n = 0; n < kTokens; ++n, x += stride) {
    __m256i start0 = Load(x + kChunk2Codes), start1 = Load(x + kChunk2Codes + 32);
    if constexpr (kZeroPoints) {
      start0 = _mm256_mullo_epi16(start0, z0);
      start1 = _mm256_mullo_epi16(start1, z1);
    }
    const __m256i a0 =
        _mm256_add_epi16(_mm256_add_epi16(start0, _mm256_maddubs_epi16(q00, Load(x))),
                         _mm256_maddubs_epi16(q01, Load(x + 32)));
    const __m256i a1 =
        _mm256_add_epi16(_mm256_add_epi16(start1, _mm256_maddubs_epi16(q10, Load(x + 64))),
                         _mm256_maddubs_epi16(q11, Load(x + 96)));
    sums[n][row] = _mm256_add_epi32(_mm256_madd_epi16(a0, s0), _mm256_madd_epi16(a1, s1));
  }
}

template <int kTokens, bool kZeroPoints>
inline void Row4(__m256i v, __m256i s, __m256i z, const uint8_t* x, size_t stride, int row,
                 __m256i (*sums)[kRows]) {
  const __m256i mask = _mm256_set1_epi8(30);
  const __m256i q0 = _mm256_and_si256(_mm256_add_epi8(v, v), mask);
  const __m256i q1 = _mm256_and_si256(_mm256_srli_epi16(v, 3), mask);
#pragma GCC unroll 8
  for (int n = 0; n < kTokens; ++n, x += stride) {
    __m256i start = Load(x + kChunk4Codes);
    if constexpr (kZeroPoints) start = _mm256_mullo_epi16(start, z);
    const __m256i a = _mm256_add_epi16(_mm256_add_epi16(start, _mm256_maddubs_epi16(q0, Load(x))),
                                       _mm256_maddubs_epi16(q1, Load(x + 32)));
    sums[n][row] = _mm256_madd_epi16(a, s);
  }
}

template <int kTokens, int kBits, bool kZeroPoints>
inline void Chunk(const ChunkPointers& p, const uint8_t* x, size_t stride, __m256i (*sums)[kRows]) {
  const __m256i nibble = _mm256_set1_epi16(15);
  const __m256i second = _mm256_load_si256(reinterpret_cast<const __m256i*>(kConstants.second));
  for (int k = 0; k < 8; ++k) {
    const __m256i t01 = Shuffle(Load(p.codes + 64 * k), kConstants.codes);
    const __m256i t23 = Shuffle(Load(p.codes + 64 * k + 32), kConstants.codes);
    const __m256i rows[2] = {_mm256_unpacklo_epi64(t01, t23), _mm256_unpackhi_epi64(t01, t23)};
#pragma GCC unroll 2
    for (int hi = 0; hi < 2; ++hi) {
      __m256i z = _mm256_setzero_si256();
      if constexpr (kZeroPoints) {
        z = _mm256_mulhi_epu16(Shuffle(Load4(p.zeros + 4 * k), kConstants.fields[hi]), second);
      }
      if constexpr (kBits == 2) {
        const __m256i s = Shuffle(Load8(p.scales + 8 * k), kConstants.scales2[hi]);
        Row2<kTokens, kZeroPoints>(rows[hi], s, z, x, stride, k + 8 * hi, sums);
      } else {
        const __m256i s = _mm256_and_si256(
            _mm256_mulhi_epu16(Shuffle(Load4(p.scales + 4 * k), kConstants.fields[hi]), second),
            nibble);
        Row4<kTokens, kZeroPoints>(rows[hi], s, _mm256_and_si256(z, nibble), x, stride, k + 8 * hi,
                                   sums);
      }
    }
  }
}

// d from [g][hi] to row order.
inline void LoadSecondOrder(const uint8_t* p, __m256* low, __m256* high) {
  const __m256 a = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m256 b = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16)));
  const auto order = [](__m256 v) {
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xD8));
  };
  *low = order(_mm256_shuffle_ps(a, b, 0x88));
  *high = order(_mm256_shuffle_ps(a, b, 0xDD));
}

// One width's section of a row block: acc[n] += 16 rows.
template <int kTokens, int kBits, bool kZeroPoints>
inline void Section(const uint8_t* tile, int chunks, const uint8_t* x, const uint8_t* x_scales,
                    size_t stride, float (*acc)[kRows]) {
  constexpr int kScaleBytes = kBits == 2 ? kScaleBytes2 : kScaleBytes4;
  constexpr int kStride = kBits == 2 ? kChunk2Stride : kChunk4Stride;
  constexpr int kZeros = kZeroPoints ? kZeroBytes : 0;
  for (int begin = 0; begin < chunks; begin += kTileChunks) {
    const int count = chunks - begin < kTileChunks ? chunks - begin : kTileChunks;
    const uint8_t* scales = tile + count * kCodeBytes;
    const uint8_t* zeros = scales + count * kScaleBytes;
    const uint8_t* second = zeros + count * kZeros;
    __m256 d_low, d_high;
    LoadSecondOrder(second, &d_low, &d_high);
    for (int i = 0; i < count; ++i, x += kStride, x_scales += sizeof(float)) {
      __m256i sums[kTokens][kRows];
      Chunk<kTokens, kBits, kZeroPoints>(
          {tile + i * kCodeBytes, scales + i * kScaleBytes, zeros + i * kZeros}, x, stride, sums);
      for (int n = 0; n < kTokens; ++n) {
        __m256i low, high;
        Reduce(sums[n], &low, &high);
        const __m256 scale = _mm256_set1_ps(*reinterpret_cast<const float*>(x_scales + n * stride));
        float* y = acc[n];
        _mm256_store_ps(y, _mm256_fmadd_ps(_mm256_cvtepi32_ps(low), _mm256_mul_ps(d_low, scale),
                                           _mm256_load_ps(y)));
        _mm256_store_ps(y + 8,
                        _mm256_fmadd_ps(_mm256_cvtepi32_ps(high), _mm256_mul_ps(d_high, scale),
                                        _mm256_load_ps(y + 8)));
      }
    }
    tile = second + kSecondOrder;
  }
}

void AddOutliers(const PackedView& w, size_t list, const float* x, float* acc) {
  const uint16_t* strips = w.strip_order;
  for (int tile = 0; tile < w.tiles2; ++tile, strips += kTileStrips) {
    const uint32_t end = w.outlier_start[list + tile + 1];
    for (uint32_t i = w.outlier_start[list + tile]; i < end; ++i) {
      const uint32_t entry = w.outliers[i];
      const uint32_t position = entry & 0x1FF, row = (entry >> 9) & 0xF;
      const size_t source = static_cast<size_t>(strips[position >> 4]) * kStrip + (position & 15);
      const float value = _cvtsh_ss(static_cast<uint16_t>(entry >> 16));
      acc[row] = __builtin_fmaf(value, x[source], acc[row]);
    }
  }
}

template <int kTokens, bool kZeroPoints>
void BlockTokens(const PackedView& w, const LinearCall& call, int row, int token) {
  const uint8_t* tiles = w.tiles + static_cast<size_t>(row / kRows) * w.row_block_bytes;
  const size_t stride = call.layout.token_stride;
  const uint8_t* record = call.activations + token * stride;
  const uint8_t* scales = record + call.layout.scale_offset;
  alignas(32) float acc[kTokens][kRows] = {};
  Section<kTokens, 2, kZeroPoints>(tiles, w.chunks2, record, scales, stride, acc);
  Section<kTokens, 4, kZeroPoints>(tiles + w.section2_bytes, w.chunks4,
                                   record + call.layout.chunk4_offset,
                                   scales + w.chunks2 * sizeof(float), stride, acc);
  const int left = call.row_end - row;
  const size_t rows = left < kRows ? left : kRows;
  for (int n = 0; n < kTokens; ++n) {
    if (w.outlier_start != nullptr) {
      AddOutliers(w, static_cast<size_t>(row / kRows) * w.tiles2,
                  call.x + (token + n) * call.x_stride, acc[n]);
    }
    __builtin_memcpy(call.y + (token + n) * call.y_stride + row, acc[n], rows * sizeof(float));
  }
}

template <bool kZeroPoints>
void Rows(const PackedView& w, const LinearCall& call) {
  for (int row = call.row_begin; row < call.row_end; row += kRows) {
    int t = 0;
    for (; t + 8 <= call.tokens; t += 8) BlockTokens<8, kZeroPoints>(w, call, row, t);
    for (; t + 4 <= call.tokens; t += 4) BlockTokens<4, kZeroPoints>(w, call, row, t);
    for (; t + 2 <= call.tokens; t += 2) BlockTokens<2, kZeroPoints>(w, call, row, t);
    if (t < call.tokens) BlockTokens<1, kZeroPoints>(w, call, row, t);
  }
}

}  // namespace

void Packed(const PackedView& w, const LinearCall& call) {
  if (w.zero_points) {
    Rows<true>(w, call);
  } else {
    Rows<false>(w, call);
  }
}

}  // namespace fewbit::cpu::avx2
