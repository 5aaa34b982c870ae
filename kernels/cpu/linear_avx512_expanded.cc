// Packed weights times many tokens: the codes of one tile of 16 rows are expanded once to a byte
// per weight, rows in lanes, into a buffer that stays in the first-level cache; then every token
// takes a broadcast dword of its staged values per vpdpbusd.
//
// Lanes hold rows in the layout's own order, lane 2 * g + hi for row g + 8 * hi; outputs are put in
// row order when stored. 2 bits: the byte is (2q - c) * sub_scale + 128, looked up by q | sub_scale
// << 2, and a token's sum starts from -128 * sum(x). 4 bits: the product with the sub-scale does
// not fit a byte, so the byte is 2q (with zero-points 2q - 2z + 30) and the sum of each strip, 16
// channels x 15 x 127 (8 x 30 x 127 for half a strip), which fits 16 bits, is multiplied by
// vpdpwssd with (sub_scale, 0).
#include <immintrin.h>

#include "kernels/cpu/linear_avx512.h"

namespace fewbit::cpu::avx512 {
namespace {

constexpr int kCodeBytes = 512, kScaleBytes2 = 64, kScaleBytes4 = 32, kZeroBytes = 32;
constexpr int kSecondOrder = 32, kTileChunks = 4, kRows = 16;
constexpr int kVectors2 = 32, kVectors4 = 16;  // expanded 64-byte vectors of a chunk
constexpr int kStrips4 = 4;
constexpr int kGroup = 8;  // tokens whose sums are in registers together

// A tile expanded. Read by all tokens.
struct alignas(64) TileBuffer {
  uint8_t weights[kTileChunks * kVectors2 * 64];
  uint8_t sub_scales[kTileChunks * kStrips4 * 64];  // 4 bits only: dwords (sub_scale, 0)
};

// Constant vectors. The windows are bit offsets for vpmultishiftqb, whose every byte takes any 8
// bits of its 64-bit lane; dword hi of the lane is row g + 8 * hi.
struct alignas(64) Tables {
  uint8_t codes2[4][64];    // window: strip i of the unit at bit 0; bytes [khi][e]
  uint8_t codes4[2][64];    // window: strip j of the unit at bit 1
  uint8_t sub2[8][64];      // window: sub-scale of strip s at bit 2, in all four bytes
  uint8_t sub4[4][64];      // window: sub-scale of strip s at bit 0
  uint8_t zero2[8][64];     // window: zero of strip s at bit 0
  uint8_t zero4[4][64];     // window: zero of strip s at bit 1
  uint8_t symmetric2[64];   // by q | sub << 2: (2q - 3) * sub + 128
  uint8_t asymmetric2[64];  // by q | sub << 2: 2q * sub
  uint8_t base2[64];        // by z | sub << 2: 128 - 2z * sub
  int32_t to_rows[kRows];   // lane order to row order
  int32_t to_lanes[kRows];
};

constexpr Tables MakeTables() {
  Tables out{};
  for (int i = 0; i < 64; ++i) {
    const int hi = (i >> 2) & 1, khi = (i >> 1) & 1, e = i & 1, code = 32 * hi + 16 * e;
    const auto window = [](int bit) { return static_cast<uint8_t>(bit & 63); };
    for (int s = 0; s < 4; ++s) out.codes2[s][i] = window(code + 4 * s + (khi ? 0 : 2));
    for (int s = 0; s < 2; ++s) out.codes4[s][i] = window(code + 8 * s + 4 * khi - 1);
    for (int s = 0; s < 8; ++s) {
      out.sub2[s][i] = window(32 * (s >> 2) + 16 * hi + 4 * (s & 3) - 2);
      out.zero2[s][i] = window(16 * hi + 2 * s);
    }
    for (int s = 0; s < 4; ++s) {
      out.sub4[s][i] = window(16 * hi + 4 * s);
      out.zero4[s][i] = window(16 * hi + 4 * s - 1);
    }
    const int q = i & 3, sub = i >> 2;
    out.symmetric2[i] = static_cast<uint8_t>((2 * q - 3) * sub + 128);
    out.asymmetric2[i] = static_cast<uint8_t>(2 * q * sub);
    out.base2[i] = static_cast<uint8_t>(128 - 2 * q * sub);
  }
  for (int lane = 0; lane < kRows; ++lane) {
    const int row = (lane >> 1) + 8 * (lane & 1);
    out.to_rows[row] = lane;
    out.to_lanes[lane] = row;
  }
  return out;
}

constexpr Tables kTables = MakeTables();

inline __m512i Window(const uint8_t* offsets, __m512i v) {
  return _mm512_multishift_epi64_epi8(_mm512_load_si512(offsets), v);
}

// Code vectors k (rows k, k + 8) with qwords [t][unit] to vectors 2 * t + unit with one qword per
// k: an 8x8 transpose of qwords.
inline void TransposeCodes(const uint8_t* codes, __m512i* out) {
  __m512i low[4], high[4];
  for (int i = 0; i < 4; ++i) {
    const __m512i a = _mm512_loadu_si512(codes + 128 * i);
    const __m512i b = _mm512_loadu_si512(codes + 128 * i + 64);
    low[i] = _mm512_unpacklo_epi64(a, b);
    high[i] = _mm512_unpackhi_epi64(a, b);
  }
  for (int odd = 0; odd < 2; ++odd) {
    const __m512i* v = odd ? high : low;
    const __m512i a = _mm512_shuffle_i32x4(v[0], v[1], 0x88);
    const __m512i b = _mm512_shuffle_i32x4(v[2], v[3], 0x88);
    const __m512i c = _mm512_shuffle_i32x4(v[0], v[1], 0xDD);
    const __m512i d = _mm512_shuffle_i32x4(v[2], v[3], 0xDD);
    out[0 + odd] = _mm512_shuffle_i32x4(a, b, 0x88);
    out[2 + odd] = _mm512_shuffle_i32x4(c, d, 0x88);
    out[4 + odd] = _mm512_shuffle_i32x4(a, b, 0xDD);
    out[6 + odd] = _mm512_shuffle_i32x4(c, d, 0xDD);
  }
}

// Words [g] whose halves belong to rows g and g + 8, one per 64-bit lane.
inline __m512i LoadHalves(const uint8_t* p) {
  return _mm512_cvtepu32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

// The bits of a where mask is 1, else those of b.
inline __m512i Select(__m512i mask, __m512i a, __m512i b) {
  return _mm512_ternarylogic_epi64(mask, a, b, 0xCA);
}

template <bool kZeroPoints>
inline void Expand2(const uint8_t* codes, const uint8_t* scales, const uint8_t* zeros,
                    uint8_t* out) {
  const __m512i three = _mm512_set1_epi8(3);
  const __m512i table = _mm512_load_si512(kZeroPoints ? kTables.asymmetric2 : kTables.symmetric2);
  const __m512i subs = _mm512_loadu_si512(scales);
  const __m512i zero_words = kZeroPoints ? LoadHalves(zeros) : _mm512_setzero_si512();
  __m512i v[8];
  TransposeCodes(codes, v);
  for (int unit = 0; unit < 2; ++unit) {
    for (int i = 0; i < 4; ++i) {
      const int s = 4 * unit + i;
      const __m512i sub = Window(kTables.sub2[s], subs);
      __m512i base = _mm512_setzero_si512();
      if constexpr (kZeroPoints) {
        const __m512i z = Window(kTables.zero2[s], zero_words);
        base = _mm512_permutexvar_epi8(Select(three, z, sub), _mm512_load_si512(kTables.base2));
      }
#pragma GCC unroll 4
      for (int t = 0; t < 4; ++t) {
        const __m512i q = Window(kTables.codes2[i], v[2 * t + unit]);
        __m512i weight = _mm512_permutexvar_epi8(Select(three, q, sub), table);
        if constexpr (kZeroPoints) weight = _mm512_add_epi8(weight, base);
        _mm512_store_si512(out + 64 * (4 * s + t), weight);
      }
    }
  }
}

template <bool kZeroPoints>
inline void Expand4(const uint8_t* codes, const uint8_t* scales, const uint8_t* zeros, uint8_t* out,
                    uint8_t* out_scales) {
  const __m512i field = _mm512_set1_epi8(0x1E);
  const __m512i subs = LoadHalves(scales);
  const __m512i zero_words = kZeroPoints ? LoadHalves(zeros) : _mm512_setzero_si512();
  __m512i v[8];
  TransposeCodes(codes, v);
  for (int unit = 0; unit < 2; ++unit) {
    for (int j = 0; j < 2; ++j) {
      const int s = 2 * unit + j;
      const __m512i sub = Window(kTables.sub4[s], subs);
      _mm512_store_si512(out_scales + 64 * s, _mm512_and_si512(sub, _mm512_set1_epi32(15)));
      __m512i base = _mm512_setzero_si512();
      if constexpr (kZeroPoints) {
        const __m512i z = Window(kTables.zero4[s], zero_words);
        base = _mm512_sub_epi8(_mm512_set1_epi8(30), _mm512_and_si512(z, field));
      }
#pragma GCC unroll 4
      for (int t = 0; t < 4; ++t) {
        __m512i weight = _mm512_and_si512(Window(kTables.codes4[j], v[2 * t + unit]), field);
        if constexpr (kZeroPoints) weight = _mm512_add_epi8(weight, base);
        _mm512_store_si512(out + 64 * (4 * s + t), weight);
      }
    }
  }
}

inline __m512i BroadcastDword(const uint8_t* p) {
  int32_t word;
  __builtin_memcpy(&word, p, sizeof(word));
  return _mm512_set1_epi32(word);
}

// What a tile's token loop needs of the staged activations: token records and the place of the
// first chunk in each.
struct TileActivations {
  const uint8_t* codes;  // first chunk of the tile, token 0
  const float* scales;   // of that chunk, token 0
  size_t token_stride;
};

// One 2-bit chunk for kTokens tokens. Few tokens are summed in several independent chains, to cover
// the latency of vpdpbusd.
template <int kTokens>
inline void Chunk2(const uint8_t* weights, const uint8_t* x, size_t stride, __m512i* sums) {
  constexpr int kChains = kTokens >= 8 ? 1 : kTokens >= 4 ? 2 : 4;
  __m512i chains[kChains][kTokens];
#pragma GCC unroll 8
  for (int n = 0; n < kTokens; ++n) {
    chains[0][n] = BroadcastDword(x + n * stride + kChunk2Codes);
#pragma GCC unroll 4
    for (int c = 1; c < kChains; ++c) chains[c][n] = _mm512_setzero_si512();
  }
  for (int v = 0; v < kVectors2; v += 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m512i weight = _mm512_load_si512(weights + 64 * (v + i));
#pragma GCC unroll 8
      for (int n = 0; n < kTokens; ++n) {
        const __m512i xn = BroadcastDword(x + n * stride + 4 * (v + i));
        __m512i* sum = &chains[i % kChains][n];
        *sum = _mm512_dpbusd_epi32(*sum, weight, xn);
      }
    }
  }
#pragma GCC unroll 8
  for (int n = 0; n < kTokens; ++n) {
    sums[n] = chains[0][n];
#pragma GCC unroll 4
    for (int c = 1; c < kChains; ++c) sums[n] = _mm512_add_epi32(sums[n], chains[c][n]);
  }
}

template <int kTokens, bool kZeroPoints>
inline void Chunk4(const uint8_t* weights, const uint8_t* sub_scales, const uint8_t* x,
                   size_t stride, __m512i* sums) {
  constexpr int kParts = kZeroPoints ? 2 : 1, kSpan = 4 / kParts;
#pragma GCC unroll 8
  for (int n = 0; n < kTokens; ++n) sums[n] = _mm512_setzero_si512();
  for (int s = 0; s < kStrips4; ++s) {
    const __m512i sub = _mm512_load_si512(sub_scales + 64 * s);
#pragma GCC unroll 2
    for (int part = 0; part < kParts; ++part) {
      const int first = 4 * s + part * kSpan;
      __m512i a[kTokens];
#pragma GCC unroll 8
      for (int n = 0; n < kTokens; ++n) {
        a[n] = BroadcastDword(x + n * stride + kChunk4Codes + 4 * (2 * s + part));
      }
#pragma GCC unroll 4
      for (int v = 0; v < kSpan; ++v) {
        const __m512i weight = _mm512_load_si512(weights + 64 * (first + v));
#pragma GCC unroll 8
        for (int n = 0; n < kTokens; ++n) {
          const __m512i xn = BroadcastDword(x + n * stride + 4 * (first + v));
          a[n] = _mm512_dpbusd_epi32(a[n], weight, xn);
        }
      }
#pragma GCC unroll 8
      for (int n = 0; n < kTokens; ++n) sums[n] = _mm512_dpwssd_epi32(sums[n], a[n], sub);
    }
  }
}

// y: the block's rows of the group's first token.
template <int kTokens, int kBits, bool kZeroPoints>
inline void TileTokens(const TileBuffer& buffer, int chunks, __m512 d, const TileActivations& x,
                       int token, bool first, __mmask16 mask, float* y, size_t y_stride) {
  constexpr int kStride = kBits == 2 ? kChunk2Stride : kChunk4Stride;
  constexpr int kVectors = kBits == 2 ? kVectors2 : kVectors4;
  __m512 acc[kTokens];
#pragma GCC unroll 8
  for (int n = 0; n < kTokens; ++n) {
    acc[n] = first ? _mm512_setzero_ps()
                   : _mm512_permutexvar_ps(_mm512_load_si512(kTables.to_lanes),
                                           _mm512_maskz_loadu_ps(mask, y + n * y_stride));
  }
  const uint8_t* codes = x.codes + token * x.token_stride;
  const uint8_t* scales = reinterpret_cast<const uint8_t*>(x.scales) + token * x.token_stride;
  for (int i = 0; i < chunks; ++i) {
    __m512i sums[kTokens];
    const uint8_t* weights = buffer.weights + i * kVectors * 64;
    if constexpr (kBits == 2) {
      Chunk2<kTokens>(weights, codes, x.token_stride, sums);
    } else {
      Chunk4<kTokens, kZeroPoints>(weights, buffer.sub_scales + i * kStrips4 * 64, codes,
                                   x.token_stride, sums);
    }
#pragma GCC unroll 8
    for (int n = 0; n < kTokens; ++n) {
      const __m512 scale =
          _mm512_set1_ps(*reinterpret_cast<const float*>(scales + n * x.token_stride));
      acc[n] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[n]), _mm512_mul_ps(d, scale), acc[n]);
    }
    codes += kStride;
    scales += sizeof(float);
  }
#pragma GCC unroll 8
  for (int n = 0; n < kTokens; ++n) {
    _mm512_mask_storeu_ps(y + n * y_stride, mask,
                          _mm512_permutexvar_ps(_mm512_load_si512(kTables.to_rows), acc[n]));
  }
}

template <int kBits, bool kZeroPoints>
void TileAllTokens(const TileBuffer& buffer, int chunks, __m512 d, const TileActivations& x,
                   bool first, __mmask16 mask, int tokens, float* y, size_t y_stride) {
  int t = 0;
  for (; t + kGroup <= tokens; t += kGroup, y += kGroup * y_stride) {
    TileTokens<kGroup, kBits, kZeroPoints>(buffer, chunks, d, x, t, first, mask, y, y_stride);
  }
  for (; t + 4 <= tokens; t += 4, y += 4 * y_stride) {
    TileTokens<4, kBits, kZeroPoints>(buffer, chunks, d, x, t, first, mask, y, y_stride);
  }
  for (; t + 2 <= tokens; t += 2, y += 2 * y_stride) {
    TileTokens<2, kBits, kZeroPoints>(buffer, chunks, d, x, t, first, mask, y, y_stride);
  }
  if (t < tokens) {
    TileTokens<1, kBits, kZeroPoints>(buffer, chunks, d, x, t, first, mask, y, y_stride);
  }
}

// The tile that follows, while the token loop leaves the memory idle. Beyond the end of the matrix
// it is harmless.
inline void PrefetchTile(const uint8_t* tile) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(tile);
  for (int line = 0; line < kTileChunks * (kCodeBytes + kScaleBytes2); line += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(begin + line), _MM_HINT_T0);
  }
}

// One width's section of a row block, for all tokens.
template <int kBits, bool kZeroPoints>
void Section(TileBuffer* buffer, const uint8_t* tile, int chunks, TileActivations x, bool first,
             __mmask16 mask, int tokens, float* y, size_t y_stride) {
  constexpr int kScaleBytes = kBits == 2 ? kScaleBytes2 : kScaleBytes4;
  constexpr int kStride = kBits == 2 ? kChunk2Stride : kChunk4Stride;
  constexpr int kZeros = kZeroPoints ? kZeroBytes : 0;
  for (int begin = 0; begin < chunks; begin += kTileChunks) {
    const int count = chunks - begin < kTileChunks ? chunks - begin : kTileChunks;
    const uint8_t* scales = tile + count * kCodeBytes;
    const uint8_t* zeros = scales + count * kScaleBytes;
    const uint8_t* second = zeros + count * kZeros;
    for (int i = 0; i < count; ++i) {
      if constexpr (kBits == 2) {
        Expand2<kZeroPoints>(tile + i * kCodeBytes, scales + i * kScaleBytes, zeros + i * kZeros,
                             buffer->weights + i * kVectors2 * 64);
      } else {
        Expand4<kZeroPoints>(tile + i * kCodeBytes, scales + i * kScaleBytes, zeros + i * kZeros,
                             buffer->weights + i * kVectors4 * 64,
                             buffer->sub_scales + i * kStrips4 * 64);
      }
    }
    PrefetchTile(second + kSecondOrder);
    const __m512 d = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(second)));
    TileAllTokens<kBits, kZeroPoints>(*buffer, count, d, x, first, mask, tokens, y, y_stride);
    first = false;
    x.codes += count * kStride;
    x.scales += count;
    tile = second + kSecondOrder;
  }
}

template <bool kZeroPoints>
void Rows(const PackedView& w, const LinearCall& call) {
  TileBuffer buffer;
  const float* scales = reinterpret_cast<const float*>(call.activations + call.layout.scale_offset);
  const TileActivations x2 = {call.activations, scales, call.layout.token_stride};
  const TileActivations x4 = {call.activations + call.layout.chunk4_offset, scales + w.chunks2,
                              call.layout.token_stride};
  for (int row = call.row_begin; row < call.row_end; row += kRows) {
    const uint8_t* block = w.tiles + static_cast<size_t>(row / kRows) * w.row_block_bytes;
    const int left = call.row_end - row;
    const __mmask16 mask = left >= kRows ? 0xFFFF : static_cast<__mmask16>((1u << left) - 1u);
    float* y = call.y + row;
    Section<2, kZeroPoints>(&buffer, block, w.chunks2, x2, true, mask, call.tokens, y,
                            call.y_stride);
    Section<4, kZeroPoints>(&buffer, block + w.section2_bytes, w.chunks4, x4, w.chunks2 == 0, mask,
                            call.tokens, y, call.y_stride);
    if (w.outlier_start != nullptr) AddOutliers(w, call, row);
  }
}

}  // namespace

void PackedExpanded(const PackedView& w, const LinearCall& call) {
  if (w.zero_points) {
    Rows<true>(w, call);
  } else {
    Rows<false>(w, call);
  }
}

}  // namespace fewbit::cpu::avx512
