// Sampling on a real device against the CPU's RowSampler: the same token for the same logits, row
// after row, for every parameter; and the same bits however many rows a launch has.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cuda/sample.h"
#include "runtime/row_sampler.h"
#include "tests/gpu/gpu_values.h"

namespace fewbit::testing {
namespace {

static_assert(sizeof(cuda::SampleResult) == sizeof(SampledToken));
static_assert(cuda::kMaxTopTokens == kMaxTopLogprobs);

// A row as the CPU takes it; the context's storage belongs to it.
struct TestRow {
  Request request;
  std::vector<TokenId> context;
  int num_prompt = 0;
  int position = 0;
  bool forbid_stop = false;
  bool score = false;
  bool padding = false;

  SampleRow View() const {
    SampleRow row;
    row.kind = score ? SampleRow::Kind::kScorePrompt : SampleRow::Kind::kSample;
    row.position = position;
    row.request = &request;
    row.context = context;
    row.num_prompt_tokens = num_prompt;
    row.forbid_stop = forbid_stop;
    return row;
  }
};

struct Results {
  std::vector<cuda::SampleResult> rows;
  std::vector<int32_t> last_ids;
  std::vector<uint32_t> counts;
};

bool HasPenalties(const SamplingParams& p) {
  return p.repetition_penalty != 1.0f || p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f;
}

cuda::SampleParams ParamsOf(const TestRow& row, std::vector<int32_t>* lists) {
  cuda::SampleParams p;
  if (row.padding) return p;
  const SamplingParams& s = row.request.sampling;
  p.kind = row.score ? cuda::SampleKind::kScorePrompt : cuda::SampleKind::kSample;
  p.seed = s.seed;
  p.position = row.position;
  p.target = row.score ? ToInt(row.context[row.position]) : 0;
  p.temperature = s.temperature;
  p.top_p = s.top_p;
  p.min_p = s.min_p;
  p.top_k = s.top_k;
  p.repetition_penalty = s.repetition_penalty;
  p.presence_penalty = s.presence_penalty;
  p.frequency_penalty = s.frequency_penalty;
  p.describe = row.request.want_logprobs;
  p.num_top = row.request.num_top_logprobs;
  p.lists = static_cast<int32_t>(lists->size());
  p.num_bias = static_cast<uint16_t>(s.logit_bias.size());
  for (const auto& bias : s.logit_bias) lists->push_back(ToInt(bias.first));
  for (const auto& bias : s.logit_bias) {
    int32_t bits;
    std::memcpy(&bits, &bias.second, sizeof(bits));
    lists->push_back(bits);
  }
  if (row.forbid_stop) {
    p.num_masked = static_cast<uint16_t>(row.request.stop_token_ids.size());
    for (TokenId id : row.request.stop_token_ids) lists->push_back(ToInt(id));
  }
  return p;
}

// Row r has slot r. Logits [rows, stride].
Results RunGpu(const std::vector<TestRow>& rows, const std::vector<float>& logits, int vocab,
               int64_t stride) {
  const int count = static_cast<int>(rows.size());
  std::vector<int32_t> lists(1), slots(count);
  std::vector<cuda::SampleParams> params;
  auto counts = Poisoned<uint32_t>(static_cast<size_t>(count) * vocab);
  for (int r = 0; r < count; ++r) {
    params.push_back(ParamsOf(rows[r], &lists));
    slots[r] = r;
    if (rows[r].padding || !HasPenalties(rows[r].request.sampling)) continue;
    const auto* ids = reinterpret_cast<const int32_t*>(rows[r].context.data());
    const cuda::DeviceBuffer<int32_t> context(
        std::vector<int32_t>(ids, ids + rows[r].context.size()));
    cuda::CheckCuda(cuda::ResetCounts(counts.get(), vocab, r, context.get(), rows[r].num_prompt,
                                      static_cast<int>(rows[r].context.size()), nullptr),
                    "ResetCounts");
    cuda::CheckCuda(cudaDeviceSynchronize(), "ResetCounts");
  }
  const cuda::DeviceBuffer<float> d_logits(logits);
  const cuda::DeviceBuffer<cuda::SampleParams> d_params(params);
  const cuda::DeviceBuffer<int32_t> d_lists(lists), d_slots(slots);
  auto last_ids = Poisoned<int32_t>(count);
  auto adjusted = Poisoned<float>(static_cast<size_t>(count) * vocab);
  auto results = Poisoned<cuda::SampleResult>(count);
  cuda::SampleCall call;
  call.rows = count;
  call.vocab = vocab;
  call.logits = d_logits.get();
  call.logits_stride = stride;
  call.params = d_params.get();
  call.lists = d_lists.get();
  call.row_slots = d_slots.get();
  call.last_ids = last_ids.get();
  call.counts = counts.get();
  call.adjusted = adjusted.get();
  call.results = results.get();
  cuda::CheckCuda(cuda::LaunchSample(call, ThisDevice(), nullptr), "LaunchSample");
  cuda::CheckCuda(cudaDeviceSynchronize(), "LaunchSample");
  return {results.Download(), last_ids.Download(), counts.Download()};
}

template <typename T>
T Pick(std::mt19937* rng, std::initializer_list<T> from) {
  return from.begin()[(*rng)() % from.size()];
}

TestRow RandomRow(int vocab, std::mt19937* rng) {
  TestRow row;
  SamplingParams& s = row.request.sampling;
  const auto some_id = [&] { return TokenId(static_cast<int>((*rng)() % vocab)); };
  s.temperature = Pick(rng, {0.0f, 0.05f, 0.6f, 0.8f, 1.0f, 1.7f, 40.0f});
  s.top_k = Pick(rng, {0, 0, 0, 1, 5, 50, 700, vocab, vocab + 9});
  s.top_p = Pick(rng, {1.0f, 1.0f, 0.95f, 0.9f, 0.3f, 0.999f, 1e-6f});
  s.min_p = Pick(rng, {0.0f, 0.0f, 0.0f, 0.05f, 0.7f});
  s.seed = uint64_t{(*rng)()} << 32 | (*rng)();
  if ((*rng)() % 3 == 0) {
    s.repetition_penalty = Pick(rng, {1.0f, 1.3f, 0.7f, 100.0f});
    s.presence_penalty = Pick(rng, {0.0f, 0.5f, -1.25f});
    s.frequency_penalty = Pick(rng, {0.0f, 0.3f, 2.0f});
  }
  if ((*rng)() % 4 == 0) {
    const int spread = 40;  // ids of one list differ; the last is not in the vocabulary
    for (int i = 0, id = (*rng)() % spread; id < vocab + spread; id += 1 + (*rng)() % vocab, ++i) {
      s.logit_bias.emplace_back(TokenId(id), Pick(rng, {-100.0f, 3.0f, 100.0f, 0.5f}));
    }
  }
  row.num_prompt = 1 + (*rng)() % 60;
  const int length = row.num_prompt + (*rng)() % 40;
  for (int i = 0; i < length; ++i) row.context.push_back(TokenId(ToInt(some_id()) % 97));
  row.position = length;
  for (int i = 0; i < 3; ++i) row.request.stop_token_ids.push_back(some_id());
  row.request.stop_token_ids.push_back(TokenId(vocab + 5));
  row.forbid_stop = (*rng)() % 4 == 0;
  row.request.want_logprobs = (*rng)() % 4 == 0;
  row.request.num_top_logprobs = (*rng)() % 5 == 0 ? 1 + (*rng)() % 20 : 0;
  if ((*rng)() % 10 == 0) {
    row.score = true;
    row.position = (*rng)() % length;
  }
  return row;
}

// Shapes of rows: peaked, flat, few distinct values, all equal, huge, with -inf.
void FillRow(float* x, int n, std::mt19937* rng) {
  const int kind = (*rng)() % 8;
  std::normal_distribution<float> normal(0.0f, kind == 0 ? 0.1f : kind == 1 ? 12.0f : 2.5f);
  for (int i = 0; i < n; ++i) x[i] = normal(*rng);
  if (kind == 2) std::for_each(x, x + n, [](float& v) { v = std::round(4.0f * v) / 4.0f; });
  if (kind == 3) std::fill(x, x + n, -3.25f);
  if (kind == 4) std::for_each(x, x + n, [](float& v) { v *= 1e37f; });
  if (kind == 5) {
    for (int i = 0; i < n; ++i) {
      if (i % 3 != 1) x[i] = -std::numeric_limits<float>::infinity();
    }
  }
  if (kind == 6) x[(*rng)() % n] = 30.0f;
}

void ExpectLikeCpu(const SampledToken& want, const cuda::SampleResult& got) {
  EXPECT_EQ(got.token, ToInt(want.token));
  EXPECT_EQ(got.rank, want.rank);
  EXPECT_EQ(got.num_top, want.num_top);
  const auto near = [](float a, float b) {
    return a == b || std::fabs(a - b) <= 2e-6f * (std::fabs(b) + 1.0f);
  };
  EXPECT_TRUE(near(got.logprob, want.logprob)) << got.logprob << " for " << want.logprob;
  for (int i = 0; i < kMaxTopLogprobs; ++i) {
    EXPECT_EQ(got.top[i].token, ToInt(want.top[i].token)) << "alternative " << i;
    EXPECT_TRUE(near(got.top[i].logprob, want.top[i].logprob)) << "alternative " << i;
  }
}

void ExpectCounted(const TestRow& row, int r, int token, int vocab, const Results& got) {
  if (row.score || row.padding) {
    EXPECT_EQ(got.last_ids[r], -1) << "untouched";
    return;
  }
  EXPECT_EQ(got.last_ids[r], std::max(token, 0));
  if (!HasPenalties(row.request.sampling)) return;
  std::vector<uint32_t> want(vocab);
  for (size_t i = 0; i < row.context.size(); ++i) {
    uint32_t& count = want[ToInt(row.context[i])];
    if (i < static_cast<size_t>(row.num_prompt)) {
      count |= 0x80000000u;
    } else {
      ++count;
    }
  }
  if (token >= 0) ++want[token];
  EXPECT_EQ(std::memcmp(want.data(), got.counts.data() + size_t{1} * r * vocab, 4 * want.size()), 0)
      << "counts";
}

void CompareWithCpu(int vocab, int64_t stride, int count, std::mt19937* rng) {
  std::vector<TestRow> rows;
  std::vector<float> logits(count * stride, std::numeric_limits<float>::quiet_NaN());
  for (int r = 0; r < count; ++r) {
    rows.push_back(RandomRow(vocab, rng));
    FillRow(logits.data() + r * stride, vocab, rng);
  }
  rows[count / 2].padding = true;
  const Results got = RunGpu(rows, logits, vocab, stride);
  RowSampler cpu(vocab, cpu::BestIsa());
  for (int r = 0; r < count; ++r) {
    const SamplingParams& s = rows[r].request.sampling;
    SCOPED_TRACE("row " + std::to_string(r) + " of " + std::to_string(vocab) + ": temperature " +
                 std::to_string(s.temperature) + " top_k " + std::to_string(s.top_k) + " top_p " +
                 std::to_string(s.top_p) + " min_p " + std::to_string(s.min_p) + " penalties " +
                 std::to_string(HasPenalties(s)) + " bias " + std::to_string(s.logit_bias.size()));
    if (!rows[r].padding) {
      SampledToken want;
      // Of a vocabulary of one, the only logit may be -inf.
      if (!cpu.Sample(rows[r].View(), logits.data() + r * stride, &want)) want.token = kNoToken;
      ExpectLikeCpu(want, got.rows[r]);
    }
    ExpectCounted(rows[r], r, got.rows[r].token, vocab, got);
  }
}

TEST(SampleGpu, MatchesTheCpuSampler) {
  std::mt19937 rng(51);
  const struct {
    int vocab;
    int64_t stride;
    int rows;
  } cases[] = {{320, 320, 500},     {1, 1, 9},         {77, 80, 300},      {32000, 32000, 200},
               {32000, 32000, 64},  {32000, 32000, 3}, {65025, 65025, 40}, {151936, 151936, 64},
               {151936, 151936, 8}, {5000, 5004, 300}, {16385, 16388, 30}};
  for (const auto& c : cases) CompareWithCpu(c.vocab, c.stride, c.rows, &rng);
}

TEST(SampleGpu, ReducedSet) {
  std::mt19937 rng(52);
  CompareWithCpu(320, 320, 20, &rng);
  CompareWithCpu(5003, 5003, 12, &rng);
}

// A row's result has the same bits whether one block works on it or eight.
TEST(SampleGpu, DoesNotDependOnTheBatch) {
  std::mt19937 rng(53);
  constexpr int kVocab = 32000, kRows = 300;
  std::vector<TestRow> rows;
  std::vector<float> logits(size_t{kRows} * kVocab);
  for (int r = 0; r < kRows; ++r) {
    rows.push_back(RandomRow(kVocab, &rng));
    FillRow(logits.data() + size_t{1} * r * kVocab, kVocab, &rng);
  }
  const Results all = RunGpu(rows, logits, kVocab, kVocab);
  for (int first : {0, 100}) {
    for (int count : {1, 20, 50, 100}) {
      const std::vector<TestRow> some(rows.begin() + first, rows.begin() + first + count);
      const auto begin = logits.begin() + size_t{1} * first * kVocab;
      const Results part = RunGpu(
          some, std::vector<float>(begin, begin + size_t{1} * count * kVocab), kVocab, kVocab);
      EXPECT_EQ(std::memcmp(part.rows.data(), all.rows.data() + first,
                            count * sizeof(cuda::SampleResult)),
                0)
          << "rows " << first << " to " << first + count;
    }
  }
}

TEST(SampleGpu, RowsWithoutUsableLogitsGiveNoToken) {
  std::mt19937 rng(54);
  constexpr int kVocab = 33000, kRows = 5;
  const float infinity = std::numeric_limits<float>::infinity();
  std::vector<TestRow> rows(kRows);
  std::vector<float> logits(size_t{kRows} * kVocab);
  for (int r = 0; r < kRows; ++r) {
    FillRow(logits.data() + size_t{1} * r * kVocab, kVocab, &rng);
    rows[r].request.sampling.temperature = r % 2;
    rows[r].request.sampling.presence_penalty = 1.0f;
    rows[r].request.num_top_logprobs = 3;
  }
  logits[17] = std::numeric_limits<float>::quiet_NaN();
  logits[kVocab + 32999] = infinity;
  std::fill_n(logits.begin() + 2 * kVocab, kVocab, -infinity);
  logits[3 * kVocab + 1] = -infinity;  // the rest of this row is fine
  logits[4 * kVocab + 20000] = -std::numeric_limits<float>::quiet_NaN();
  const Results got = RunGpu(rows, logits, kVocab, kVocab);
  for (int r = 0; r < kRows; ++r) {
    EXPECT_EQ(got.rows[r].token == cuda::kNoTokenId, r != 3) << r;
    EXPECT_EQ(got.last_ids[r], std::max(got.rows[r].token, 0));
    EXPECT_EQ(got.rows[r].num_top, r == 3 ? 3 : 0);
    const auto begin = got.counts.begin() + size_t{1} * r * kVocab;
    EXPECT_EQ(std::count(begin, begin + kVocab, 0u), r == 3 ? kVocab - 1 : kVocab) << r;
  }
}

// What was drawn on the device counts at the next step without the host's help.
TEST(SampleGpu, PenaltiesSeeWhatWasDrawnBefore) {
  constexpr int kVocab = 64, kSteps = 40;
  const cuda::DeviceBuffer<float> logits(std::vector<float>(kVocab, 1.0f));
  cuda::SampleParams p;
  p.kind = cuda::SampleKind::kSample;
  p.presence_penalty = 2.0f;
  const cuda::DeviceBuffer<cuda::SampleParams> params(std::vector<cuda::SampleParams>{p});
  const cuda::DeviceBuffer<int32_t> slot(std::vector<int32_t>{0}), last(std::vector<int32_t>{9});
  const cuda::DeviceBuffer<uint32_t> counts(kVocab);
  const cuda::DeviceBuffer<float> adjusted(kVocab);
  const cuda::DeviceBuffer<cuda::SampleResult> results(kSteps);
  cuda::CheckCuda(cuda::ResetCounts(counts.get(), kVocab, 0, nullptr, 0, 0, nullptr), "reset");
  for (int step = 0; step < kSteps; ++step) {
    cuda::SampleCall call;
    call.rows = 1;
    call.vocab = kVocab;
    call.logits = logits.get();
    call.logits_stride = kVocab;
    call.params = params.get();
    call.row_slots = slot.get();
    call.last_ids = last.get();
    call.counts = counts.get();
    call.adjusted = adjusted.get();
    call.results = results.get() + step;
    cuda::CheckCuda(cuda::LaunchSample(call, ThisDevice(), nullptr), "LaunchSample");
  }
  const auto got = results.Download();
  for (int step = 0; step < kSteps; ++step) EXPECT_EQ(got[step].token, step);
  EXPECT_EQ(last.Download()[0], kSteps - 1);
}

}  // namespace
}  // namespace fewbit::testing
