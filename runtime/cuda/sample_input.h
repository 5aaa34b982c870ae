// The rows of a step as the device's sampler takes them.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cuda/sample.h"
#include "runtime/batch.h"
#include "runtime/cuda/step_layout.h"

namespace fewbit {

static_assert(sizeof(cuda::SampleParams) == kRowParamBytes);
static_assert(sizeof(cuda::SampleResult) == sizeof(SampledToken));

// Words of SampleCall::lists that one row may take: a request's logit_bias twice and its stop ids.
inline constexpr int32_t kMaxRowListWords = 1024;

bool HasPenalties(const SamplingParams& params);

// Fills params [samples] and appends to `lists` from word 0; returns the words used. REQUIRES: no
// row needs more than kMaxRowListWords, `lists` has room for all.
int32_t FillSampleParams(std::span<const SampleRow> samples, cuda::SampleParams* params,
                         std::span<int32_t> lists);

}  // namespace fewbit
