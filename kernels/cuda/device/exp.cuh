// exp as the CPU kernels compute it (kernels/cpu/ops_attention_body.h), bit for bit: 2^n times the
// Taylor polynomial of degree 7 on |r| <= ln(2)/2; below -87 it is 0, above 88 it is exp(88).
#pragma once

namespace fewbit::cuda {

__device__ __forceinline__ float ExpLikeCpu(float x) {
  const float clamped = fminf(88.0f, fmaxf(-87.0f, x));
  const float magic = __fmaf_rn(clamped, 1.44269504f, 12582912.0f);
  const float n = __fsub_rn(magic, 12582912.0f);
  float r = __fmaf_rn(n, -0.693359375f, clamped);
  r = __fmaf_rn(n, 2.12194440e-4f, r);
  float p = 1.0f / 5040.0f;
  p = __fmaf_rn(p, r, 1.0f / 720.0f);
  p = __fmaf_rn(p, r, 1.0f / 120.0f);
  p = __fmaf_rn(p, r, 1.0f / 24.0f);
  p = __fmaf_rn(p, r, 1.0f / 6.0f);
  p = __fmaf_rn(p, r, 0.5f);
  p = __fmaf_rn(p, r, 1.0f);
  p = __fmaf_rn(p, r, 1.0f);
  const float power = __int_as_float((__float_as_int(magic) << 23) + 0x3F800000);
  return x < -87.0f ? 0.0f : __fmul_rn(p, power);
}

}  // namespace fewbit::cuda
