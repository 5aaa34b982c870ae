// Packed weights times one token: codes are decoded in registers, two rows at a time, and used
// once.
//
// A 64-byte vector of codes holds rows k and k + 8 of a block. One byte permutation brings together
// what one dword of vpdpbusd needs, four channels of one row and one strip: dwords [row
// half][unit][strip of the unit, or strip pair][t >> 1]. Each field of its bytes is then shifted to
// bit 1, so that it reads as 2q, and multiplied with the staged int8 values. The accumulators start
// from the staged sums, -c * sum(x), so that symmetric levels cost nothing; they fit 16 bits (8
// channels x 15 x 127, or x 30 x 127 with zero-points), so vpmaddwd against (sub_scale, 0) applies
// the sub-scales exactly.
#include <immintrin.h>

#include "kernels/cpu/linear_avx512.h"

namespace fewbit::cpu::avx512 {
namespace {

constexpr int kCodeBytes = 512, kScaleBytes2 = 64, kScaleBytes4 = 32, kZeroBytes = 32;
constexpr int kSecondOrder = 32, kTileChunks = 4, kRows = 16;

// Index vectors, as bytes.
struct alignas(64) IndexBytes {
  uint8_t codes[64];    // byte permutation of a code vector
  uint8_t scales2[64];  // bytes of a row pair's 8 bytes of sub-scales to dwords [hi][unit][pair][.]
  uint8_t scales4[64];  // bytes of a row pair's 4 bytes to dwords [hi][unit][strip][.]
  int32_t shift[16];    // where strip (pair, 0), or strip j, begins in the byte of its unit
  int32_t second_order[16];  // d from [g][hi] to the order of Reduce()
  int32_t rows[16];          // Reduce()'s order to row order
};

constexpr IndexBytes MakeIndexBytes() {
  IndexBytes out{};
  for (int dword = 0; dword < 16; ++dword) {
    const int hi = dword >> 3, unit = (dword >> 2) & 1, pair = (dword >> 1) & 1, t1 = dword & 1;
    for (int byte = 0; byte < 4; ++byte) {
      const int t = 2 * t1 + (byte >> 1), e = byte & 1, at = 4 * dword + byte;
      out.codes[at] = static_cast<uint8_t>(16 * t + 4 * (2 * unit + hi) + 2 * e + pair);
      out.scales2[at] = static_cast<uint8_t>(byte == 0 ? 4 * unit + 2 * hi + pair : 0x80);
      out.scales4[at] = static_cast<uint8_t>(byte == 0 ? 2 * hi + unit : 0x80);
    }
    out.shift[dword] = 4 * pair;
    // Reduce() leaves row g + 8 * hi at 8 * (g >> 2) + 4 * hi + (g & 3).
    const int g = (dword >> 3) * 4 + (dword & 3), half = (dword >> 2) & 1;
    out.second_order[dword] = 2 * g + half;
    out.rows[g + 8 * half] = dword;
  }
  return out;
}

constexpr IndexBytes kIndex = MakeIndexBytes();

struct Constants {
  __m512i codes, scales2, scales4, shift, second_order, rows;
};

inline Constants LoadConstants() {
  return {_mm512_load_si512(kIndex.codes),        _mm512_load_si512(kIndex.scales2),
          _mm512_load_si512(kIndex.scales4),      _mm512_load_si512(kIndex.shift),
          _mm512_load_si512(kIndex.second_order), _mm512_load_si512(kIndex.rows)};
}

// v[k], dwords [hi][8 partial sums] of rows k + 8 * hi, to one sum per row.
inline __m512i Reduce(const __m512i* v) {
  __m512i r[4], s[2];
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]),
                            _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
  }
  for (int i = 0; i < 2; ++i) {
    s[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(r[2 * i], r[2 * i + 1]),
                            _mm512_unpackhi_epi64(r[2 * i], r[2 * i + 1]));
  }
  return _mm512_add_epi32(_mm512_shuffle_i32x4(s[0], s[1], 0x88),
                          _mm512_shuffle_i32x4(s[0], s[1], 0xDD));
}

// Weights are read once, in order; the hardware prefetcher alone leaves half of the bandwidth
// unused because it stops at every page. A prefetch beyond the end of the matrix is harmless.
constexpr uintptr_t kPrefetchAhead = 2048;

inline void PrefetchAhead(const uint8_t* p) {
  _mm_prefetch(reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(p) + kPrefetchAhead),
               _MM_HINT_T0);
}

inline __m512i Broadcast32Bytes(const uint8_t* p) {
  return _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

inline __m512i Load4(const uint8_t* p) {
  int32_t word;
  __builtin_memcpy(&word, p, sizeof(word));
  return _mm512_set1_epi32(word);
}

inline __m512i Load8(const uint8_t* p) {
  int64_t word;
  __builtin_memcpy(&word, p, sizeof(word));
  return _mm512_set1_epi64(word);
}

// The integer sums of a 2-bit chunk, one per row in the order of Reduce(). x: the staged chunk.
template <bool kZeroPoints>
inline __m512i Chunk2(const Constants& c, const uint8_t* codes, const uint8_t* scales,
                      const uint8_t* zeros, const uint8_t* x) {
  const __m512i mask = _mm512_set1_epi8(6), nibble = _mm512_set1_epi32(15);
  const __m512i x00 = Broadcast32Bytes(x), x01 = Broadcast32Bytes(x + 32);
  const __m512i x10 = Broadcast32Bytes(x + 64), x11 = Broadcast32Bytes(x + 96);
  const __m512i sum0 = Broadcast32Bytes(x + kChunk2Codes);
  const __m512i sum1 = Broadcast32Bytes(x + kChunk2Codes + 32);
  const __m512i start0 = kZeroPoints ? _mm512_setzero_si512() : sum0;
  const __m512i start1 = kZeroPoints ? _mm512_setzero_si512() : sum1;
  __m512i total[8];
#pragma GCC unroll 8
  for (int k = 0; k < 8; ++k) {
    PrefetchAhead(codes + 64 * k);
    const __m512i v = _mm512_permutexvar_epi8(c.codes, _mm512_loadu_si512(codes + 64 * k));
    const __m512i q00 = _mm512_and_si512(_mm512_srli_epi32(v, 1), mask);
    const __m512i q01 = _mm512_and_si512(_mm512_add_epi8(v, v), mask);
    const __m512i q10 = _mm512_and_si512(_mm512_srli_epi32(v, 5), mask);
    const __m512i q11 = _mm512_and_si512(_mm512_srli_epi32(v, 3), mask);
    __m512i a0 = _mm512_dpbusd_epi32(start0, q00, x00);
    __m512i a1 = _mm512_dpbusd_epi32(start1, q10, x10);
    a0 = _mm512_dpbusd_epi32(a0, q01, x01);
    a1 = _mm512_dpbusd_epi32(a1, q11, x11);
    const __m512i s = _mm512_shuffle_epi8(Load8(scales + 8 * k), c.scales2);
    const __m512i s0 = _mm512_and_si512(s, nibble), s1 = _mm512_srli_epi32(s, 4);
    total[k] = _mm512_dpwssd_epi32(_mm512_madd_epi16(a0, s0), a1, s1);
    if constexpr (kZeroPoints) {
      const __m512i three = _mm512_set1_epi32(3);
      const __m512i z =
          _mm512_srlv_epi32(_mm512_shuffle_epi8(Load4(zeros + 4 * k), c.scales4), c.shift);
      const __m512i z0 = _mm512_and_si512(z, three);
      const __m512i z1 = _mm512_and_si512(_mm512_srli_epi32(z, 2), three);
      total[k] = _mm512_dpwssd_epi32(total[k], sum0, _mm512_mullo_epi16(s0, z0));
      total[k] = _mm512_dpwssd_epi32(total[k], sum1, _mm512_mullo_epi16(s1, z1));
    }
  }
  return Reduce(total);
}

template <bool kZeroPoints>
inline __m512i Chunk4(const Constants& c, const uint8_t* codes, const uint8_t* scales,
                      const uint8_t* zeros, const uint8_t* x) {
  const __m512i mask = _mm512_set1_epi8(30), nibble = _mm512_set1_epi32(15);
  const __m512i x0 = Broadcast32Bytes(x), x1 = Broadcast32Bytes(x + 32);
  const __m512i sum = Broadcast32Bytes(x + kChunk4Codes);
  const __m512i start = kZeroPoints ? _mm512_setzero_si512() : sum;
  __m512i total[8];
#pragma GCC unroll 8
  for (int k = 0; k < 8; ++k) {
    PrefetchAhead(codes + 64 * k);
    const __m512i v = _mm512_permutexvar_epi8(c.codes, _mm512_loadu_si512(codes + 64 * k));
    const __m512i q0 = _mm512_and_si512(_mm512_add_epi8(v, v), mask);
    const __m512i q1 = _mm512_and_si512(_mm512_srli_epi32(v, 3), mask);
    const __m512i a = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(start, q0, x0), q1, x1);
    const __m512i s = _mm512_and_si512(
        _mm512_srlv_epi32(_mm512_shuffle_epi8(Load4(scales + 4 * k), c.scales4), c.shift), nibble);
    total[k] = _mm512_madd_epi16(a, s);
    if constexpr (kZeroPoints) {
      const __m512i z = _mm512_and_si512(
          _mm512_srlv_epi32(_mm512_shuffle_epi8(Load4(zeros + 4 * k), c.scales4), c.shift), nibble);
      total[k] = _mm512_dpwssd_epi32(total[k], sum, _mm512_mullo_epi16(s, z));
    }
  }
  return Reduce(total);
}

// One width's section of a row block.
template <int kBits, bool kZeroPoints>
inline __m512 Section(const Constants& c, const uint8_t* tile, int chunks, const uint8_t* x,
                      const float* x_scales, __m512 acc) {
  constexpr int kScaleBytes = kBits == 2 ? kScaleBytes2 : kScaleBytes4;
  constexpr int kStride = kBits == 2 ? kChunk2Stride : kChunk4Stride;
  constexpr int kZeros = kZeroPoints ? kZeroBytes : 0;
  for (int begin = 0; begin < chunks; begin += kTileChunks) {
    const int count = chunks - begin < kTileChunks ? chunks - begin : kTileChunks;
    const uint8_t* scales = tile + count * kCodeBytes;
    const uint8_t* zeros = scales + count * kScaleBytes;
    const uint8_t* second = zeros + count * kZeros;
    const __m512 d = _mm512_permutexvar_ps(
        c.second_order,
        _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(second))));
    for (int i = 0; i < count; ++i) {
      __m512i sum;
      if constexpr (kBits == 2) {
        sum = Chunk2<kZeroPoints>(c, tile + i * kCodeBytes, scales + i * kScaleBytes,
                                  zeros + i * kZeros, x);
      } else {
        sum = Chunk4<kZeroPoints>(c, tile + i * kCodeBytes, scales + i * kScaleBytes,
                                  zeros + i * kZeros, x);
      }
      x += kStride;
      const __m512 factor = _mm512_mul_ps(d, _mm512_set1_ps(*x_scales++));
      acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), factor, acc);
    }
    tile = second + kSecondOrder;
  }
  return acc;
}

template <bool kZeroPoints>
void Rows(const PackedView& w, const LinearCall& call) {
  const Constants c = LoadConstants();
  const float* x_scales =
      reinterpret_cast<const float*>(call.activations + call.layout.scale_offset);
  for (int row = call.row_begin; row < call.row_end; row += kRows) {
    const uint8_t* block = w.tiles + static_cast<size_t>(row / kRows) * w.row_block_bytes;
    __m512 acc = _mm512_setzero_ps();
    acc = Section<2, kZeroPoints>(c, block, w.chunks2, call.activations, x_scales, acc);
    acc = Section<4, kZeroPoints>(c, block + w.section2_bytes, w.chunks4,
                                  call.activations + call.layout.chunk4_offset,
                                  x_scales + w.chunks2, acc);
    const int left = call.row_end - row;
    const __mmask16 mask = left >= kRows ? 0xFFFF : static_cast<__mmask16>((1u << left) - 1u);
    _mm512_mask_storeu_ps(call.y + row, mask, _mm512_permutexvar_ps(c.rows, acc));
    if (w.outlier_start != nullptr) AddOutliers(w, call, row);
  }
}

}  // namespace

void PackedDirect(const PackedView& w, const LinearCall& call) {
  if (w.zero_points) {
    Rows<true>(w, call);
  } else {
    Rows<false>(w, call);
  }
}

}  // namespace fewbit::cpu::avx512
