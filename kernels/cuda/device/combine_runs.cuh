// A decoded head's runs of keys become one, added in their order by whoever does it.
//
//   out = sum over runs 2^(m_i - m) partial_i / sum over runs 2^(m_i - m) sum_i,   m = max m_i
#pragma once

#include "kernels/cuda/attention_kernels.h"

namespace fewbit::cuda {

__device__ __forceinline__ void AddScaled(float4* sum, const float4& x, float factor) {
  sum->x = __fmaf_rn(x.x, factor, sum->x);
  sum->y = __fmaf_rn(x.y, factor, sum->y);
  sum->z = __fmaf_rn(x.z, factor, sum->z);
  sum->w = __fmaf_rn(x.w, factor, sum->w);
}

// Dimensions d .. d + 3 of `head`, counted through all sequences. Loads go past the first-level
// cache: other blocks may have written the runs just now. Runs are loaded 8 at a time, all before
// the first is used.
__device__ inline float4 CombineRuns(const RunResults& r, int64_t head, int splits, int d) {
  constexpr int kAtOnce = 8;
  constexpr float kNoRun = -1e30f;  // the maximum of a run that is not there
  const int64_t row = head * r.max_splits;
  const float2* sums = r.sums + row;
  const float* partials = r.partials + row * r.padded_dim + d;
  float2 s[kAtOnce];
  float4 x[kAtOnce];
  const auto load = [&](int first) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      s[i] = make_float2(kNoRun, 0);
      x[i] = make_float4(0, 0, 0, 0);
      if (first + i >= splits) continue;
      s[i] = __ldcg(sums + first + i);
      x[i] = __ldcg(reinterpret_cast<const float4*>(partials + (first + i) * r.padded_dim));
    }
  };
  load(0);
  float top = s[0].x;
#pragma unroll
  for (int i = 1; i < kAtOnce; ++i) top = fmaxf(top, s[i].x);
#pragma unroll 8
  for (int i = kAtOnce; i < splits; ++i) top = fmaxf(top, __ldcg(sums + i).x);
  float4 value = make_float4(0, 0, 0, 0);
  float sum = 0;
  for (int first = 0; first < splits; first += kAtOnce) {
    if (first > 0) load(first);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const float factor = exp2f(s[i].x - top);
      AddScaled(&value, x[i], factor);
      sum = __fmaf_rn(s[i].y, factor, sum);
    }
  }
  const float scale = __fdiv_rn(1.0f, sum);
  return make_float4(value.x * scale, value.y * scale, value.z * scale, value.w * scale);
}

}  // namespace fewbit::cuda
