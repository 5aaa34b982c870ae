#include "runtime/row_sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>

#include "runtime/philox.h"

namespace fewbit {
namespace {

constexpr int kBlock = 64;
// Adjusted logits stay within this, and masked ones lie below it: large penalties and biases must
// not make infinities, and a row whose every token is masked must still have a best one.
constexpr float kLargestLogit = 1e30f;
constexpr float kMaskedLogit = -1e31f;

float Clamp(float x) { return std::clamp(x, -kLargestLogit, kLargestLogit); }

// In lanes, so that it is fast; the order is fixed.
double Sum(const float* x, int n) {
  double lanes[8] = {};
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int j = 0; j < 8; ++j) lanes[j] += x[i + j];
  }
  for (; i < n; ++i) lanes[i % 8] += x[i];
  double sum = 0.0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

// Index of the first weight at which the running sum passes `target`; the last positive weight if
// rounding kept it below.
int32_t Pick(const float* weights, int n, double target) {
  double sum = 0.0;
  int32_t last = 0;
  for (int32_t i = 0; i < n; ++i) {
    if (weights[i] <= 0.0f) continue;
    last = i;
    sum += weights[i];
    if (sum > target) break;
  }
  return last;
}

bool HasPenalties(const SamplingParams& p) {
  return p.repetition_penalty != 1.0f || p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f;
}

}  // namespace

RowSampler::RowSampler(int32_t vocab_size, cpu::Isa isa)
    : vocab_size_(vocab_size),
      isa_(isa),
      num_blocks_((vocab_size + kBlock - 1) / kBlock),
      adjusted_(vocab_size),
      weights_(vocab_size),
      block_max_(2 * static_cast<size_t>(num_blocks_)),
      block_sums_(num_blocks_),
      counts_(vocab_size),
      candidates_(vocab_size) {}

bool RowSampler::Sample(const SampleRow& row, const float* logits, SampledToken* token) {
  const cpu::RowStats stats = cpu::ScanRow(isa_, logits, vocab_size_);
  if (!stats.finite) return false;
  *token = SampledToken();
  if (row.kind == SampleRow::Kind::kScorePrompt) {
    token->token = row.context[row.position];
    Describe(row, logits, stats, token);
    return true;
  }
  const Request& request = *row.request;
  const float* adjusted = Adjust(row, logits);
  const cpu::RowStats best = adjusted == logits ? stats : cpu::ScanRow(isa_, adjusted, vocab_size_);
  if (request.sampling.temperature == 0.0f) {
    token->token = TokenId(best.argmax);
  } else {
    const double uniform = PhiloxUniform(request.sampling.seed, row.position);
    token->token = TokenId(Draw(request.sampling, uniform, adjusted, best.max));
  }
  if (request.want_logprobs || request.num_top_logprobs > 0) Describe(row, logits, stats, token);
  return true;
}

// The logits after bias, penalties and mask: the row itself when there is nothing to do.
const float* RowSampler::Adjust(const SampleRow& row, const float* logits) {
  const Request& request = *row.request;
  const bool masked = row.forbid_stop && !request.stop_token_ids.empty();
  const bool penalties = HasPenalties(request.sampling);
  if (request.sampling.logit_bias.empty() && !penalties && !masked) return logits;
  float* out = adjusted_.data();
  std::memcpy(out, logits, sizeof(float) * vocab_size_);
  const auto known = [&](TokenId id) { return ToInt(id) >= 0 && ToInt(id) < vocab_size_; };
  for (const auto& [id, bias] : request.sampling.logit_bias) {
    if (known(id)) out[ToInt(id)] = Clamp(out[ToInt(id)] + bias);
  }
  if (penalties) Penalize(row, out);
  if (masked) {
    for (const TokenId id : request.stop_token_ids) {
      if (known(id)) out[ToInt(id)] = kMaskedLogit;
    }
  }
  return out;
}

// counts_: how often a token is in the output, -1 once it has been dealt with.
void RowSampler::Penalize(const SampleRow& row, float* logits) {
  const SamplingParams& p = row.request->sampling;
  const auto prompt = row.context.first(row.num_prompt_tokens);
  const auto output = row.context.subspan(row.num_prompt_tokens);
  const auto repeat = [&](float x) {
    return x > 0.0f ? x / p.repetition_penalty : x * p.repetition_penalty;
  };
  int32_t* counts = counts_.data();
  for (const TokenId id : output) ++counts[ToInt(id)];
  for (const TokenId id : output) {
    int32_t& count = counts[ToInt(id)];
    if (count < 0) continue;
    const float penalty = p.presence_penalty + p.frequency_penalty * static_cast<float>(count);
    logits[ToInt(id)] = Clamp(repeat(logits[ToInt(id)]) - penalty);
    count = -1;
  }
  for (const TokenId id : prompt) {
    int32_t& count = counts[ToInt(id)];
    if (count < 0) continue;
    logits[ToInt(id)] = Clamp(repeat(logits[ToInt(id)]));
    count = -1;
  }
  for (const TokenId id : row.context) counts[ToInt(id)] = 0;
}

int32_t RowSampler::Draw(const SamplingParams& params, double uniform, const float* logits,
                         float max) {
  // A factor that is finite also for the smallest temperatures.
  const float factor = std::min(1.0f / params.temperature, 1e30f);
  const bool cut_k = params.top_k > 0 && params.top_k < vocab_size_;
  if (!cut_k && params.top_p >= 1.0f) {
    return DrawFromAll(uniform, logits, max, factor, params.min_p);
  }
  return DrawFromTop(params, uniform, logits, max, factor);
}

int32_t RowSampler::DrawFromAll(double uniform, const float* logits, float max, float factor,
                                float min_p) {
  float* weights = weights_.data();
  cpu::ExpSum(isa_, logits, vocab_size_, max, factor, weights);
  // The best token weighs 1.
  if (min_p > 0.0f) {
    for (int32_t i = 0; i < vocab_size_; ++i) weights[i] = weights[i] < min_p ? 0.0f : weights[i];
  }
  double total = 0.0;
  for (int b = 0; b < num_blocks_; ++b) {
    block_sums_[b] = Sum(weights + b * kBlock, std::min(kBlock, vocab_size_ - b * kBlock));
    total += block_sums_[b];
  }
  const double target = uniform * total;
  double before = 0.0;
  int last = 0;
  for (int b = 0; b < num_blocks_; ++b) {
    if (block_sums_[b] <= 0.0) continue;
    last = b;
    if (before + block_sums_[b] > target) break;
    before += block_sums_[b];
  }
  const int begin = last * kBlock;
  return begin + Pick(weights + begin, std::min(kBlock, vocab_size_ - begin), target - before);
}

int32_t RowSampler::DrawFromTop(const SamplingParams& params, double uniform, const float* logits,
                                float max, float factor) {
  int kept = 0;
  if (params.top_k > 0) {
    kept = std::min(params.top_k, vocab_size_);
    SelectTop(logits, kept);
    if (params.top_p < 1.0f) {
      kept = NarrowToMass(kept, params.top_p * WeighCandidates(0, kept, max, factor), max, factor);
    }
  } else {
    const double needed =
        params.top_p * cpu::ExpSum(isa_, logits, vocab_size_, max, factor, nullptr);
    // Nobody knows how many tokens hold the share: take more until they do.
    for (kept = std::min(kBlock, vocab_size_);; kept = std::min(8 * kept, vocab_size_)) {
      SelectTop(logits, kept);
      if (kept == vocab_size_ || WeighCandidates(0, kept, max, factor) >= needed) break;
    }
    kept = NarrowToMass(kept, needed, max, factor);
  }
  const Candidate* first = candidates_.data();
  const int n = CollectNoWorse(logits, *std::max_element(first, first + kept, Better));
  WeighCandidates(0, n, max, factor);
  double mass = 0.0;
  for (int i = 0; i < n; ++i) {
    if (weights_[i] < params.min_p) weights_[i] = 0.0f;  // the best token weighs 1
    mass += weights_[i];
  }
  return candidates_[Pick(weights_.data(), n, uniform * mass)].id;
}

double RowSampler::WeighCandidates(int begin, int end, float max, float factor) {
  for (int i = begin; i < end; ++i) weights_[i] = candidates_[i].logit;
  float* weights = weights_.data() + begin;
  return cpu::ExpSum(isa_, weights, end - begin, max, factor, weights);
}

// Halves the range in which the last kept token lies, as quickselect does, but by mass.
int RowSampler::NarrowToMass(int n, double needed, float max, float factor) {
  Candidate* first = candidates_.data();
  int begin = 0;
  int end = n;
  double mass = 0.0;  // of the candidates before `begin`; less than needed
  while (end - begin > 1) {
    const int middle = begin + (end - begin) / 2;
    std::nth_element(first + begin, first + middle, first + end, Better);
    const double half = WeighCandidates(begin, middle, max, factor);
    if (mass + half >= needed) {
      end = middle;
    } else {
      mass += half;
      begin = middle;
    }
  }
  return end;
}

int RowSampler::CollectNoWorse(const float* logits, const Candidate& last) {
  int n = 0;
  for (int b = 0; b < num_blocks_; ++b) {
    if (block_max_[b] < last.logit) continue;
    const int end = std::min((b + 1) * kBlock, vocab_size_);
    for (int i = b * kBlock; i < end; ++i) {
      const Candidate candidate = {logits[i], i};
      if (!Better(last, candidate)) candidates_[n++] = candidate;
    }
  }
  return n;
}

void RowSampler::SelectTop(const float* logits, int k) {
  for (int b = 0; b < num_blocks_; ++b) {
    const int end = std::min((b + 1) * kBlock, vocab_size_);
    float max = logits[b * kBlock];
    for (int i = b * kBlock; i < end; ++i) max = max < logits[i] ? logits[i] : max;
    block_max_[b] = max;
  }
  // The k-th largest of the blocks' maxima is a lower bound for the k-th largest logit, and a close
  // one.
  float bound = -INFINITY;
  if (k < num_blocks_) {
    float* maxima = block_max_.data() + num_blocks_;
    std::memcpy(maxima, block_max_.data(), sizeof(float) * num_blocks_);
    std::nth_element(maxima, maxima + k - 1, maxima + num_blocks_, std::greater<float>());
    bound = maxima[k - 1];
  }
  const int count = CollectNoWorse(logits, {bound, vocab_size_});
  Candidate* first = candidates_.data();
  if (k < count) std::nth_element(first, first + k - 1, first + count, Better);
}

// Logprob, rank and alternatives of the token chosen, from the raw logits.
void RowSampler::Describe(const SampleRow& row, const float* logits, const cpu::RowStats& stats,
                          SampledToken* token) {
  const double sum = cpu::ExpSum(isa_, logits, vocab_size_, stats.max, 1.0f, nullptr);
  const float log_sum = static_cast<float>(std::log(sum));
  const auto logprob = [&](int32_t id) { return (logits[id] - stats.max) - log_sum; };
  const int32_t chosen = ToInt(token->token);
  token->logprob = logprob(chosen);
  int32_t better = 0;
  for (int32_t i = 0; i < vocab_size_; ++i) better += logits[i] > logits[chosen];
  for (int32_t i = 0; i < chosen; ++i) better += logits[i] == logits[chosen];
  token->rank = better + 1;
  const int top = std::min({row.request->num_top_logprobs, kMaxTopLogprobs, vocab_size_});
  if (top <= 0) return;
  SelectTop(logits, top);
  std::sort(candidates_.data(), candidates_.data() + top, Better);
  token->num_top = top;
  for (int i = 0; i < top; ++i) {
    token->top[i] = {TokenId(candidates_[i].id), logprob(candidates_[i].id)};
  }
}

}  // namespace fewbit
