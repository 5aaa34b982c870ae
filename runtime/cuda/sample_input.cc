#include "runtime/cuda/sample_input.h"

#include <algorithm>
#include <bit>

#include "scheduler/check.h"

namespace fewbit {

bool HasPenalties(const SamplingParams& p) {
  return p.repetition_penalty != 1.0f || p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f;
}

int32_t FillSampleParams(std::span<const SampleRow> samples, cuda::SampleParams* params,
                         std::span<int32_t> lists) {
  int32_t used = 0;
  for (const SampleRow& row : samples) {
    cuda::SampleParams& p = *params++;
    p = cuda::SampleParams();
    p.position = row.position;
    if (row.kind == SampleRow::Kind::kScorePrompt) {
      p.kind = cuda::SampleKind::kScorePrompt;
      p.target = ToInt(row.context[row.position]);
      p.num_top = row.request->num_top_logprobs;
      continue;
    }
    const Request& request = *row.request;
    const SamplingParams& s = request.sampling;
    p.kind = cuda::SampleKind::kSample;
    p.seed = s.seed;
    p.temperature = s.temperature;
    p.top_k = s.top_k;
    p.top_p = s.top_p;
    p.min_p = s.min_p;
    p.repetition_penalty = s.repetition_penalty;
    p.presence_penalty = s.presence_penalty;
    p.frequency_penalty = s.frequency_penalty;
    p.describe = request.want_logprobs || request.num_top_logprobs > 0;
    p.num_top = std::min(request.num_top_logprobs, cuda::kMaxTopTokens);
    const size_t masked = row.forbid_stop ? request.stop_token_ids.size() : 0;
    const size_t words = 2 * s.logit_bias.size() + masked;
    FEWBIT_CHECK(words <= kMaxRowListWords && used + words <= lists.size())
        << s.logit_bias.size() << " biases and " << masked << " masked ids of one row";
    p.lists = used;
    p.num_bias = static_cast<uint16_t>(s.logit_bias.size());
    p.num_masked = static_cast<uint16_t>(masked);
    for (const auto& [id, bias] : s.logit_bias) lists[used++] = ToInt(id);
    for (const auto& [id, bias] : s.logit_bias) lists[used++] = std::bit_cast<int32_t>(bias);
    for (size_t i = 0; i < masked; ++i) lists[used++] = ToInt(request.stop_token_ids[i]);
  }
  return used;
}

}  // namespace fewbit
