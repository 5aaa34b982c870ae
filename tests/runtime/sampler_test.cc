// The sampler: published vectors of its generator, each cut against a plain reference,
// distributions by chi-square, and independence from the batch, the threads and the instruction
// set.
#include "runtime/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/philox.h"

namespace fewbit {
namespace {

TEST(Philox, KnownAnswers) {
  // From the authors' Random123 distribution, kat_vectors, philox4x32 with 10 rounds.
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}),
            (PhiloxBlock{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (PhiloxBlock{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (PhiloxBlock{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, UniformUsesSeedAndPosition) {
  std::set<double> seen;
  for (uint64_t seed : {0ull, 1ull, 1ull << 32, ~0ull}) {
    for (uint64_t position : {0ull, 1ull, 2ull, 1ull << 20}) {
      const double u = PhiloxUniform(seed, position);
      EXPECT_GE(u, 0.0);
      EXPECT_LT(u, 1.0);
      seen.insert(u);
    }
  }
  EXPECT_EQ(seen.size(), 16u);
}

// A sampler for one row at a time.
class One {
 public:
  explicit One(int vocab, int threads = 1, cpu::Isa isa = cpu::BestIsa())
      : team_(threads), sampler_(vocab, &team_, isa) {}

  SampledToken Draw(const Request& request, const std::vector<float>& logits, int position,
                    const std::vector<TokenId>& context = {}, int prompt = 0, bool forbid = false) {
    SampleRow row;
    row.request = &request;
    row.position = position;
    row.context = context;
    row.num_prompt_tokens = prompt;
    row.forbid_stop = forbid;
    SampledToken token;
    token.token = kNoToken;
    sampler_.Sample({&row, 1}, logits.data(), {&token, 1});
    EXPECT_NE(token.token, kNoToken);
    return token;
  }
  Sampler& sampler() { return sampler_; }

 private:
  ThreadTeam team_;
  Sampler sampler_;
};

std::vector<float> RandomLogits(int n, uint32_t seed, float scale = 2.0f) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> out(n);
  for (float& x : out) x = normal(engine);
  return out;
}

// The distribution that the documented order of operations leaves, computed plainly in double.
std::vector<double> Reference(const std::vector<float>& logits, const SamplingParams& p) {
  const int n = static_cast<int>(logits.size());
  std::vector<int> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  int kept = p.top_k > 0 ? std::min(p.top_k, n) : n;
  std::vector<double> weight(n);
  for (int i = 0; i < n; ++i) {
    weight[i] =
        std::exp((static_cast<double>(logits[order[i]]) - logits[order[0]]) / p.temperature);
  }
  if (p.top_p < 1.0f) {
    const double total = std::accumulate(weight.begin(), weight.begin() + kept, 0.0);
    double mass = 0.0;
    int i = 0;
    while (i < kept && (i == 0 || mass < p.top_p * total)) mass += weight[i++];
    kept = i;
  }
  while (kept > 1 && weight[kept - 1] < p.min_p) --kept;
  const double total = std::accumulate(weight.begin(), weight.begin() + kept, 0.0);
  std::vector<double> out(n, 0.0);
  for (int i = 0; i < kept; ++i) out[order[i]] = weight[i] / total;
  return out;
}

// Draws often and compares the counts with the reference; tokens outside the reference's support
// must never come.
void ExpectDistribution(const std::vector<float>& logits, const SamplingParams& params) {
  const int draws = 20000;
  One one(static_cast<int>(logits.size()));
  Request request;
  request.sampling = params;
  std::vector<int> counts(logits.size(), 0);
  for (int i = 0; i < draws; ++i) ++counts[ToInt(one.Draw(request, logits, i).token)];
  const std::vector<double> want = Reference(logits, params);
  double chi2 = 0.0, rest_want = 0.0, rest_got = 0.0;
  int cells = 0;
  for (size_t t = 0; t < logits.size(); ++t) {
    if (want[t] == 0.0) {
      EXPECT_EQ(counts[t], 0) << "token " << t << " was cut off";
      continue;
    }
    const double expected = want[t] * draws;
    if (expected < 5.0) {
      rest_want += expected;
      rest_got += counts[t];
      continue;
    }
    chi2 += (counts[t] - expected) * (counts[t] - expected) / expected;
    ++cells;
  }
  if (rest_want >= 5.0) {
    chi2 += (rest_got - rest_want) * (rest_got - rest_want) / rest_want;
    ++cells;
  }
  // Mean cells - 1 and variance 2 (cells - 1): five standard deviations, and the seeds are fixed.
  const double freedom = std::max(cells - 1, 1);
  EXPECT_LT(chi2, freedom + 5.0 * std::sqrt(2.0 * freedom)) << cells << " cells";
}

SamplingParams Params(float temperature, int top_k = 0, float top_p = 1.0f, float min_p = 0.0f) {
  SamplingParams p;
  p.temperature = temperature;
  p.top_k = top_k;
  p.top_p = top_p;
  p.min_p = min_p;
  p.seed = 1234;
  return p;
}

TEST(SamplerDistribution, Temperature) {
  for (const float t : {0.5f, 1.0f, 2.0f}) ExpectDistribution(RandomLogits(50, 1), Params(t));
}
TEST(SamplerDistribution, SeveralBlocks) {
  ExpectDistribution(RandomLogits(1000, 2), Params(1.3f));
}
TEST(SamplerDistribution, TopK) {
  for (const int k : {1, 2, 7, 49, 50, 1000}) {
    ExpectDistribution(RandomLogits(50, 3), Params(1.5f, k));
  }
  ExpectDistribution(RandomLogits(5000, 4), Params(2.0f, 40));
}
TEST(SamplerDistribution, TopP) {
  for (const float p : {0.01f, 0.5f, 0.9f, 0.999f}) {
    ExpectDistribution(RandomLogits(300, 5), Params(1.0f, 0, p));
  }
  // So flat that the share needs more candidates than are first taken.
  ExpectDistribution(RandomLogits(3000, 6, 0.05f), Params(1.0f, 0, 0.5f));
}
TEST(SamplerDistribution, MinP) {
  for (const float p : {0.01f, 0.3f, 0.99f}) {
    ExpectDistribution(RandomLogits(300, 7), Params(1.0f, 0, 1.0f, p));
  }
}
TEST(SamplerDistribution, AllTogether) {
  ExpectDistribution(RandomLogits(500, 8), Params(0.8f, 60, 0.95f, 0.05f));
  ExpectDistribution(RandomLogits(500, 9), Params(1.7f, 0, 0.8f, 0.1f));
}

TEST(Sampler, GreedyTakesTheLowestIdOfATie) {
  One one(200);
  std::vector<float> logits(200, 1.0f);
  logits[70] = logits[90] = logits[150] = 2.0f;
  EXPECT_EQ(ToInt(one.Draw(Request(), logits, 0).token), 70);
}

TEST(Sampler, TopKOfATieKeepsTheLowestIds) {
  Request request;
  request.sampling = Params(1.0f, 3);
  One one(300);
  const std::vector<float> logits(300, 0.25f);
  std::set<int> seen;
  for (int i = 0; i < 200; ++i) seen.insert(ToInt(one.Draw(request, logits, i).token));
  EXPECT_EQ(seen, (std::set<int>{0, 1, 2}));
}

TEST(Sampler, TinyTemperatureIsGreedy) {
  const std::vector<float> logits = RandomLogits(100, 10);
  Request request;
  One one(100);
  const TokenId best = one.Draw(request, logits, 0).token;
  for (const float t : {1e-3f, 1e-20f, 1e-42f}) {
    for (const float top_p : {1.0f, 0.9f}) {
      request.sampling = Params(t, 0, top_p);
      EXPECT_EQ(one.Draw(request, logits, 5).token, best) << t;
    }
  }
}

std::vector<TokenId> Ids(std::initializer_list<int> ids) {
  std::vector<TokenId> out;
  for (const int id : ids) out.push_back(TokenId(id));
  return out;
}

TEST(Sampler, RepetitionPenaltyCoversPromptAndOutputOnce) {
  One one(6);
  Request request;
  request.sampling.repetition_penalty = 2.0f;
  // 3.0 / 2 loses to 2.9 / 2 only if a repeated token were divided twice; against token 2 at 1.6
  // both lose.
  const std::vector<float> logits = {3.0f, 2.9f, 1.6f, -1.0f, -1.5f, -9.0f};
  EXPECT_EQ(ToInt(one.Draw(request, logits, 9, Ids({0, 0, 1}), 1).token), 2);
  EXPECT_EQ(ToInt(one.Draw(request, logits, 9, Ids({0, 0}), 1).token), 1);
  const std::vector<float> negative = {-1.0f, -1.5f, -5.0f, -5.0f, -5.0f, -5.0f};
  EXPECT_EQ(ToInt(one.Draw(request, negative, 9, Ids({0}), 1).token), 1);
  const std::vector<float> close = {3.0f, 1.4f, 0.0f, 0.0f, 0.0f, 0.0f};
  EXPECT_EQ(ToInt(one.Draw(request, close, 9, Ids({0, 0, 0}), 1).token), 0);
}

TEST(Sampler, PresenceAndFrequencyCoverOutputOnly) {
  One one(4);
  Request request;
  const std::vector<float> logits = {2.0f, 1.0f, 0.1f, 0.0f};
  request.sampling.presence_penalty = 1.5f;
  EXPECT_EQ(ToInt(one.Draw(request, logits, 9, Ids({0, 0, 0}), 3).token), 0);  // all prompt
  EXPECT_EQ(ToInt(one.Draw(request, logits, 9, Ids({0, 0, 0}), 2).token),
            1);  // once or often alike
  request.sampling.presence_penalty = 0.0f;
  request.sampling.frequency_penalty = 0.6f;
  EXPECT_EQ(ToInt(one.Draw(request, logits, 9, Ids({0, 0}), 1).token), 0);
  EXPECT_EQ(ToInt(one.Draw(request, logits, 9, Ids({0, 0, 0}), 1).token), 1);
  EXPECT_EQ(ToInt(one.Draw(request, logits, 9, Ids({0, 0, 0}), 3).token), 0);
  // Nothing of the last row's counts is left over.
  EXPECT_EQ(ToInt(one.Draw(request, logits, 9, Ids({1}), 0).token), 0);
}

TEST(Sampler, BiasAndForbiddenStops) {
  One one(4);
  Request request;
  const std::vector<float> logits = {2.0f, 1.0f, 0.5f, 0.0f};
  request.sampling.logit_bias = {{TokenId(3), 5.0f}};
  EXPECT_EQ(ToInt(one.Draw(request, logits, 0).token), 3);
  request.stop_token_ids = Ids({3, 0});
  EXPECT_EQ(ToInt(one.Draw(request, logits, 0, {}, 0, false).token), 3);
  EXPECT_EQ(ToInt(one.Draw(request, logits, 0, {}, 0, true).token), 1);
  for (int i = 0; i < 100; ++i) {
    request.sampling.temperature = 5.0f;
    const int token = ToInt(one.Draw(request, logits, i, {}, 0, true).token);
    EXPECT_TRUE(token == 1 || token == 2) << token;
  }
  // A client may forbid everything: that must not hurt the rows beside it.
  request.stop_token_ids = Ids({0, 1, 2, 3});
  one.Draw(request, logits, 0, {}, 0, true);
}

TEST(Sampler, ExtremePenaltiesStayFinite) {
  One one(4);
  Request request;
  request.sampling.repetition_penalty = 1e-38f;
  request.sampling.logit_bias = {{TokenId(1), 3e38f}};
  const std::vector<float> logits = {2.0f, 3e38f, -3e38f, 0.0f};
  one.Draw(request, logits, 0, Ids({0, 1, 2, 3}), 1);
  request.sampling.temperature = 1.0f;
  one.Draw(request, logits, 0, Ids({0, 1, 2, 3}), 1);
}

TEST(Sampler, LogprobsRankAndTopComeFromTheRawLogits) {
  const int vocab = 700;
  std::vector<float> logits = RandomLogits(vocab, 11);
  logits[5] = logits[600] = logits[300];  // ties
  double sum = 0.0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x));
  std::vector<int> order(vocab);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  One one(vocab);
  Request request;
  request.num_top_logprobs = 20;
  request.sampling = Params(3.0f, 0, 0.99f);
  request.sampling.logit_bias = {{TokenId(order[2]), -50.0f}};
  std::set<int> seen;
  for (int i = 0; i < 300; ++i) {
    const SampledToken token = one.Draw(request, logits, i);
    const int id = ToInt(token.token);
    seen.insert(id);
    EXPECT_NE(id, order[2]);
    EXPECT_NEAR(token.logprob, logits[id] - std::log(sum), 1e-5);
    EXPECT_EQ(order[token.rank - 1], id);
    ASSERT_EQ(token.num_top, 20);
    for (int k = 0; k < 20; ++k) {
      EXPECT_EQ(ToInt(token.top[k].token), order[k]);
      EXPECT_NEAR(token.top[k].logprob, logits[order[k]] - std::log(sum), 1e-5);
    }
  }
  EXPECT_GT(seen.size(), 30u);
  request.num_top_logprobs = 0;
  EXPECT_EQ(one.Draw(request, logits, 0).rank, 0);
  request.want_logprobs = true;
  EXPECT_GT(one.Draw(request, logits, 0).rank, 0);
}

TEST(Sampler, ScoredPromptRowsReturnTheirTarget) {
  const std::vector<float> logits = {0.0f, 1.0f, 3.0f, 2.0f};
  ThreadTeam team(1);
  Sampler sampler(4, &team, cpu::BestIsa());
  Request request;
  request.want_prompt_logprobs = true;
  request.sampling.temperature = 1.0f;
  request.sampling.logit_bias = {{TokenId(0), 100.0f}};
  const std::vector<TokenId> context = Ids({2, 1, 3});
  SampleRow row;
  row.kind = SampleRow::Kind::kScorePrompt;
  row.request = &request;
  row.context = context;
  row.num_prompt_tokens = 3;
  row.position = 2;
  SampledToken token;
  sampler.Sample({&row, 1}, logits.data(), {&token, 1});
  EXPECT_EQ(ToInt(token.token), 3);
  EXPECT_EQ(token.rank, 2);
  const double sum = 1.0 + std::exp(1.0) + std::exp(2.0) + std::exp(3.0);
  EXPECT_NEAR(token.logprob, 2.0 - std::log(sum), 1e-6);
}

TEST(Sampler, BatchThreadsAndInstructionSetDoNotMatter) {
  const int vocab = 900, count = 37;
  std::vector<Request> requests(count);
  std::vector<float> logits;
  const std::vector<TokenId> context = Ids({1, 2, 3, 4, 5, 6, 2, 4});
  std::vector<SampleRow> rows(count);
  for (int r = 0; r < count; ++r) {
    const std::vector<float> row = RandomLogits(vocab, r);
    logits.insert(logits.end(), row.begin(), row.end());
    requests[r].sampling =
        Params(r % 5 * 0.5f, r % 3 * 20, r % 2 ? 0.9f : 1.0f, r % 7 ? 0.0f : 0.1f);
    requests[r].sampling.seed = r;
    requests[r].sampling.repetition_penalty = r % 4 ? 1.0f : 1.2f;
    requests[r].num_top_logprobs = r % 3;
    rows[r].request = &requests[r];
    rows[r].position = 100 + r;
    rows[r].context = context;
    rows[r].num_prompt_tokens = 4;
  }
  const auto same = [](const SampledToken& a, const SampledToken& b) {
    bool equal =
        a.token == b.token && a.logprob == b.logprob && a.rank == b.rank && a.num_top == b.num_top;
    for (int i = 0; i < a.num_top; ++i) {
      equal = equal && a.top[i].token == b.top[i].token && a.top[i].logprob == b.top[i].logprob;
    }
    return equal;
  };
  std::vector<SampledToken> alone(count);
  One one(vocab);
  for (int r = 0; r < count; ++r) {
    one.sampler().Sample({&rows[r], 1}, &logits[r * vocab], {&alone[r], 1});
  }
  for (const cpu::Isa isa : {cpu::Isa::kPortable, cpu::Isa::kAvx2, cpu::Isa::kAvx512}) {
    if (!cpu::IsaSupported(isa)) continue;
    for (const int threads : {1, 2, 5}) {
      ThreadTeam team(threads);
      Sampler sampler(vocab, &team, isa);
      std::vector<SampledToken> tokens(count);
      sampler.Sample(rows, logits.data(), tokens);
      for (int r = 0; r < count; ++r) {
        EXPECT_TRUE(same(tokens[r], alone[r]))
            << cpu::IsaName(isa) << " " << threads << " row " << r;
      }
    }
  }
}

TEST(Sampler, RowsThatAreNotFiniteFailAlone) {
  ThreadTeam team(2);
  Sampler sampler(40, &team, cpu::BestIsa());
  std::vector<Request> requests(3);
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> logits = RandomLogits(3 * 40, 1);
    logits[40 + 39] = logits[80] = bad;
    std::vector<SampleRow> rows(3);
    for (int r = 0; r < 3; ++r) {
      rows[r].request = &requests[r];
      rows[r].position = 12 + r;
    }
    std::vector<SampledToken> tokens(3);
    sampler.Sample(rows, logits.data(), tokens);
    const auto best = std::max_element(logits.begin(), logits.begin() + 40);
    EXPECT_EQ(ToInt(tokens[0].token), best - logits.begin());
    EXPECT_EQ(tokens[1].token, kNoToken);
    EXPECT_EQ(tokens[2].token, kNoToken);
  }
}

}  // namespace
}  // namespace fewbit
