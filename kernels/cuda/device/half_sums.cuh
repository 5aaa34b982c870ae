// What becomes of the sums of a piece in the kernel for many tokens: from block to block where
// several have pieces of a unit, then to y.
#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/device/half_args.cuh"
#include "kernels/cuda/device/wide_args.cuh"

namespace fewbit::cuda {

inline constexpr int kHalfSlice = 16;  // tokens that are handed on at once
inline constexpr int kHalfSliceSums = kHalfSlice / 2;
inline constexpr int kHalfSliceWords = quant::kBlockRows * kHalfSlice;  // of a warp

// The slices of a piece that its cluster stores: those clusters share them out whose stretch ends
// with their piece. That may not be so of the unit's last piece: it comes first in its stretch.
struct HalfShare {
  int owners, slices;
  int begin, end;

  __device__ __forceinline__ HalfShare(const HalfPiece& piece, int tokens)
      : owners(max(1, piece.pieces - (piece.last_goes_on ? 1 : 0))),
        slices((tokens + kHalfSlice - 1) / kHalfSlice),
        begin(Begin(piece.index)),
        end(Begin(piece.index + 1)) {}
  __device__ __forceinline__ int Begin(int owner) const {
    return (min(owner, owners) * slices + owners - 1) / owners;
  }
  __device__ __forceinline__ bool Has(int slice) const { return begin <= slice && slice < end; }
};

// This lane's words of slice 0 in the place of a cluster's piece.
template <int kForm>
__device__ __forceinline__ uint32_t* HalfPlace(const HalfArgs& a, const HalfPiece& piece,
                                               int index) {
  const int last = index + 1 == piece.pieces ? 0 : 1;
  const size_t place = 2 * (piece.first_cluster + index) + last;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  constexpr HalfForm kF = kHalfForms[kForm];
  return a.exchange + place * HalfPlaceWords(kF) +
         (ClusterRank() * kHalfProductWarps + warp) * (quant::kBlockRows * kF.tokens) + 4 * lane;
}

// To the clusters that store them, the slices that this one does not.
template <int kForm>
__device__ __forceinline__ void SendSums(const HalfArgs& a, const HalfPiece& piece,
                                         const HalfShare& share,
                                         const float (&sums)[kHalfForms[kForm].tokens / 2]) {
  uint32_t* to = HalfPlace<kForm>(a, piece, piece.index);
  const auto word = [](float sum) { return sum == 0.0f ? 0x80000000u : __float_as_uint(sum); };
#pragma unroll
  for (int s = 0; s < kHalfForms[kForm].tokens / kHalfSlice; ++s) {
    if (s >= share.slices || share.Has(s)) continue;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const float* c = sums + kHalfSliceSums * s + 4 * k;
      StoreExchange(to + kHalfSliceWords * s + 128 * k,
                    make_uint4(word(c[0]), word(c[1]), word(c[2]), word(c[3])));
    }
  }
}

inline constexpr int kHalfSlicesAtOnce = 2;

// Two slices of a few other pieces, on their way.
template <int kPieces>
struct HalfWordsAhead {
  static constexpr int kWords = 2 * kHalfSlicesAtOnce;
  uint4 words[kPieces][kWords];

  // `slices`: this lane's words of the first slice; null: no such piece.
  __device__ __forceinline__ void Load(uint32_t* const (&slices)[kPieces],
                                       const bool (&wanted)[kWords]) {
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        words[p][i] = make_uint4(1, 1, 1, 1);
        if (slices[p] != nullptr && wanted[i]) words[p][i] = LoadExchange(At(slices[p], i));
      }
    }
  }
  // All that have not come are asked for again together, until there are none.
  __device__ __forceinline__ void Await(uint32_t* const (&slices)[kPieces]) {
    bool missing;
    do {
      missing = false;
#pragma unroll
      for (int p = 0; p < kPieces; ++p) {
#pragma unroll
        for (int i = 0; i < kWords; ++i) {
          uint4& v = words[p][i];
          if (v.x != 0 && v.y != 0 && v.z != 0 && v.w != 0) continue;
          v = LoadExchange(At(slices[p], i));
          missing = true;
        }
      }
    } while (missing);
  }
  // Adds the words, piece after piece, and clears their places.
  __device__ __forceinline__ void AddTo(float* sums, uint32_t* const (&slices)[kPieces],
                                        const bool (&wanted)[kWords]) {
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        if (slices[p] == nullptr || !wanted[i]) continue;
        StoreExchange(At(slices[p], i), make_uint4(0, 0, 0, 0));
        const uint4& v = words[p][i];
        float* c = sums + 4 * i;
        c[0] += __uint_as_float(v.x);
        c[1] += __uint_as_float(v.y);
        c[2] += __uint_as_float(v.z);
        c[3] += __uint_as_float(v.w);
      }
    }
  }

 private:
  static __device__ __forceinline__ uint32_t* At(uint32_t* slice, int i) {
    return slice + kHalfSliceWords / 2 * i;
  }
};

__device__ __forceinline__ uint32_t PackTwo(DType type, float a, float b) {
  if (type == DType::kF16) {
    const __half2 v = __floats2half2_rn(a, b);
    return reinterpret_cast<const uint32_t&>(v);
  }
  const __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
  return reinterpret_cast<const uint32_t&>(v);
}

// Stores four 8 x 8 matrices of 16-bit numbers as fragments hold them (row lane / 4, columns 2
// (lane % 4) and the next), transposed: lane 8 m + i has the address of column i of matrix m.
__device__ __forceinline__ void StoreTransposed(uint32_t shared, const uint32_t (&m)[4]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared),
      "r"(m[0]), "r"(m[1]), "r"(m[2]), "r"(m[3])
      : "memory");
}

// Where a warpgroup's 64 rows of a token group go. They pass through shared memory of the
// warpgroup, so that they are written in whole lines.
class HalfTarget {
 public:
  static constexpr int kRows = kHalfRows / 2;
  static constexpr int kAtOnce = kHalfSlicesAtOnce;

  __device__ __forceinline__ HalfTarget(const HalfArgs& a, const HalfPiece& piece, int group_tokens)
      : type_(a.y_type) {
    const int width = type_ == DType::kF32 ? 4 : 2, token = piece.group * group_tokens;
    const int row = piece.FirstRow() + threadIdx.x / 128 * kRows;
    stride_ = a.y_stride * width;
    y_ = static_cast<uint8_t*>(a.y) + token * stride_ + (piece.part->column + row) * width;
    rows_ = piece.part->w.shape.rows - row;
    tokens_ = min(group_tokens, a.m - token);
    whole_ = rows_ >= kRows && stride_ % 16 == 0 && reinterpret_cast<uintptr_t>(y_) % 16 == 0;
  }

  // Those of slices `first` and the next that the share has.
  __device__ __forceinline__ void Store(const float* sums, int first, const HalfShare& share,
                                        uint8_t* buffer) const {
    if (type_ != DType::kF32) {
      StoreHalves(sums, first, share, buffer);
      return;
    }
#pragma unroll
    for (int s = 0; s < kAtOnce; ++s) {
      if (share.Has(first + s)) {
        StoreFloats(sums + kHalfSliceSums * s, first + s, reinterpret_cast<float*>(buffer));
      }
    }
  }

 private:
  static constexpr int kThreads = 128, kFloatPitch = kRows + 4, kHalfPitch = kRows + 8;
  static_assert(kHalfSlice * kFloatPitch * 4 <= kHalfStoreBytes);
  static_assert(kAtOnce * kHalfSlice * kHalfPitch * 2 <= kHalfStoreBytes);

  static __device__ __forceinline__ void Meet() {
    NamedBarrier(1 + threadIdx.x / kThreads, kThreads);
  }

  __device__ __forceinline__ void StoreFloats(const float* sums, int slice, float* buffer) const {
    const int thread = threadIdx.x % kThreads, g = thread % 32 / 4, t = thread % 4;
    Meet();  // what was there before has been read
#pragma unroll
    for (int i = 0; i < kHalfSliceSums; ++i) {
      const int token = i / 4 * 8 + 2 * t + i % 2;
      const int row = thread / 32 * quant::kBlockRows + g + i / 2 % 2 * 8;
      buffer[token * kFloatPitch + row] = sums[i];
    }
    Meet();
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int in_slice = thread / 16 + 8 * k, token = kHalfSlice * slice + in_slice;
      const int row = thread % 16 * 4;
      const float4 v = *reinterpret_cast<const float4*>(buffer + in_slice * kFloatPitch + row);
      if (token >= tokens_) continue;
      float* to = reinterpret_cast<float*>(y_ + token * stride_) + row;
      if (whole_) {
        *reinterpret_cast<float4*>(to) = v;
        continue;
      }
      const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (row + i < rows_) to[i] = values[i];
      }
    }
  }

  __device__ __forceinline__ void StoreHalves(const float* sums, int first, const HalfShare& share,
                                              uint8_t* buffer) const {
    const int thread = threadIdx.x % kThreads, lane = thread % 32;
    Meet();  // what was there before has been read
#pragma unroll
    for (int s = 0; s < kAtOnce; ++s) {
      const float* c = sums + kHalfSliceSums * s;
      const uint32_t m[4] = {PackTwo(type_, c[0], c[1]), PackTwo(type_, c[2], c[3]),
                             PackTwo(type_, c[4], c[5]), PackTwo(type_, c[6], c[7])};
      const int token = kHalfSlice * s + lane / 16 * 8 + lane % 8;
      const int row = thread / 32 * quant::kBlockRows + lane / 8 % 2 * 8;
      StoreTransposed(SharedAddress(buffer) + 2 * (token * kHalfPitch + row), m);
    }
    Meet();
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int at = thread / 8 + 16 * k, token = kHalfSlice * first + at, row = thread % 8 * 8;
      if (!share.Has(first + at / kHalfSlice) || token >= tokens_) continue;
      const uint4 v = *reinterpret_cast<const uint4*>(buffer + 2 * (at * kHalfPitch + row));
      uint16_t* to = reinterpret_cast<uint16_t*>(y_ + token * stride_) + row;
      if (whole_) {
        *reinterpret_cast<uint4*>(to) = v;
        continue;
      }
      const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (row + i < rows_) to[i] = static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2)));
      }
    }
  }

  uint8_t* y_;      // of the first row and the group's first token
  int64_t stride_;  // bytes
  DType type_;
  int rows_, tokens_;  // that exist
  bool whole_;         // rows can be written 16 bytes at once
};

// Adds what other clusters have of the slices that this one stores, piece by piece in their order,
// and stores them, two slices after the other.
template <int kForm>
class HalfCollector {
 public:
  __device__ __forceinline__ HalfCollector(const HalfArgs& a, const HalfPiece& piece,
                                           const HalfShare& share)
      : a_(a), piece_(piece), share_(share) {}

  __device__ __forceinline__ void Run(const float (&sums)[kHalfForms[kForm].tokens / 2],
                                      uint8_t* buffer) {
    const HalfTarget to(a_, piece_, kHalfForms[kForm].tokens);
#pragma unroll 1
    for (int first = share_.begin / kAtOnce * kAtOnce; first < share_.end; first += kAtOnce) {
      float own[kAtOnce * kHalfSliceSums];
      Take(sums, first, own);
      for (int index = NextOther(-1); index < piece_.pieces;) AddSome(first, index, own);
      to.Store(own, first, share_, buffer);
    }
  }

 private:
  static constexpr int kSlices = kHalfForms[kForm].tokens / kHalfSlice;
  static constexpr int kAtOnce = kHalfSlicesAtOnce, kPieces = 3;

  __device__ __forceinline__ int NextOther(int index) const {
    return index + 1 == piece_.index ? index + 2 : index + 1;
  }
  // The next pieces from `index` on, as many as are under way at once.
  __device__ __forceinline__ void AddSome(int first, int& index, float* own) const {
    uint32_t* slices[kPieces];
    bool wanted[2 * kAtOnce];
#pragma unroll
    for (int i = 0; i < 2 * kAtOnce; ++i) wanted[i] = share_.Has(first + i / 2);
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      slices[p] = nullptr;
      if (index >= piece_.pieces) continue;
      slices[p] = HalfPlace<kForm>(a_, piece_, index) + kHalfSliceWords * first;
      index = NextOther(index);
    }
    HalfWordsAhead<kPieces> words;
    words.Load(slices, wanted);
    words.Await(slices);
    words.AddTo(own, slices, wanted);
  }
  // The sums of slices `first` and the next.
  static __device__ __forceinline__ void Take(const float* sums, int first, float* own) {
#pragma unroll
    for (int s = 0; s < kSlices; s += kAtOnce) {
      if (s != first) continue;
#pragma unroll
      for (int i = 0; i < kAtOnce * kHalfSliceSums; ++i) own[i] = sums[kHalfSliceSums * s + i];
    }
  }

  const HalfArgs& a_;
  const HalfPiece& piece_;
  const HalfShare& share_;
};

}  // namespace fewbit::cuda
