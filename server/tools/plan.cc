#include "server/tools/plan.h"

#include <algorithm>
#include <array>
#include <cstdlib>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "runtime/models/model.h"

namespace fewbit::plan {
namespace {

constexpr int64_t kBlockTokens = 16;

struct KvRow {
  KvType type;
  const char* name;
  int64_t element_bytes, scale_bytes;  // per element; per head, key or value
};
constexpr KvRow kKvRows[] = {{KvType::kF16, "f16", 2, 0},
                             {KvType::kBf16, "bf16", 2, 0},
                             {KvType::kF32, "f32", 4, 0},
                             {KvType::kI8, "i8", 1, 2}};

const KvRow& RowOf(KvType type) { return kKvRows[static_cast<int>(type)]; }

constexpr Shape kShapes[] = {
    {"chatglm3-6b", 28, 4096, 13696, 32, 2, 128, 65024, 8192},
    {"llama-2-7b", 32, 4096, 11008, 32, 32, 128, 32000, 4096},
    {"llama-2-13b", 40, 5120, 13824, 40, 40, 128, 32000, 4096},
    {"llama-2-70b", 80, 8192, 28672, 64, 8, 128, 32000, 4096},
    {"llama-3-8b", 32, 4096, 14336, 32, 8, 128, 128256, 8192},
    {"mistral-7b", 32, 4096, 14336, 32, 8, 128, 32000, 32768},
    {"qwen2-7b", 28, 3584, 18944, 28, 4, 128, 152064, 32768},
};

// Memory as the driver reports it; bandwidth of the data sheets.
constexpr Gpu kGpus[] = {
    {"l4", 24e9, 300e9},     {"a10", 24e9, 600e9},      {"a100-40", 42.5e9, 1555e9},
    {"l40s", 48e9, 864e9},   {"a100-80", 85e9, 2039e9}, {"h100", 85e9, 3350e9},
    {"h200", 150e9, 4800e9},
};

template <typename Rows>
std::string Names(const Rows& rows) {
  return absl::StrJoin(rows, ", ",
                       [](std::string* out, const auto& row) { absl::StrAppend(out, row.name); });
}

int64_t BlocksFor(int64_t context) { return (context + kBlockTokens - 1) / kBlockTokens; }

// Where in a CSV line the columns are that ParseRates wants.
struct Columns {
  static constexpr std::array<absl::string_view, 6> kNames = {"gpu",     "shape", "batch",
                                                              "context", "kv",    "tokens_per_s"};
  std::array<size_t, 6> at{};
};

absl::StatusOr<Columns> ParseHeader(absl::string_view line) {
  const std::vector<absl::string_view> names = absl::StrSplit(line, ',');
  Columns columns;
  for (size_t i = 0; i < Columns::kNames.size(); ++i) {
    const auto found = std::find(names.begin(), names.end(), Columns::kNames[i]);
    if (found == names.end()) {
      return absl::InvalidArgumentError(absl::StrCat("line 1 has no column ", Columns::kNames[i]));
    }
    columns.at[i] = static_cast<size_t>(found - names.begin());
  }
  return columns;
}

absl::StatusOr<Rate> ParseRow(absl::string_view line, size_t number, const Columns& columns) {
  const std::vector<std::string> cells = absl::StrSplit(line, ',');
  const auto cell = [&](int column) -> std::string {
    const size_t at = columns.at[static_cast<size_t>(column)];
    return at < cells.size() ? cells[at] : "";
  };
  const auto wrong = [&](int column) {
    return absl::InvalidArgumentError(
        absl::StrCat("line ", number, ": ", Columns::kNames[column], " is '", cell(column), "'"));
  };
  Rate rate;
  rate.gpu = cell(0);
  rate.shape = cell(1);
  rate.kv = cell(4);
  if (!absl::SimpleAtoi(cell(2), &rate.batch) || rate.batch < 0) return wrong(2);
  if (!absl::SimpleAtoi(cell(3), &rate.context) || rate.context < 1) return wrong(3);
  if (!absl::SimpleAtod(cell(5), &rate.tokens_per_second) || !(rate.tokens_per_second > 0)) {
    return wrong(5);
  }
  return rate;
}

std::vector<Rate> RatesOf(std::span<const Rate> rates, absl::string_view gpu,
                          absl::string_view shape, absl::string_view kv) {
  std::vector<Rate> usable;
  for (const Rate& rate : rates) {
    const bool same_gpu =
        absl::StrContains(absl::AsciiStrToLower(rate.gpu), absl::AsciiStrToLower(gpu));
    if (same_gpu && rate.shape == shape && rate.kv == kv) usable.push_back(rate);
  }
  return usable;
}

absl::Status NothingMeasured(absl::string_view gpu, absl::string_view shape, absl::string_view kv,
                             const char* what) {
  return absl::NotFoundError(absl::StrCat("nothing measured for ", what, " with ", shape,
                                          " and a KV cache in ", kv, " on ", gpu));
}

}  // namespace

absl::StatusOr<KvType> ParseKvType(absl::string_view name) {
  for (const KvRow& row : kKvRows) {
    if (row.name == name) return row.type;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("'", name, "' is no type of KV cache; there are ", Names(kKvRows)));
}

const char* KvTypeName(KvType type) { return RowOf(type).name; }

std::span<const Shape> Shapes() { return kShapes; }

absl::StatusOr<ModelSpec> SpecOf(absl::string_view shape) {
  for (const Shape& row : kShapes) {
    if (row.name != shape) continue;
    ModelSpec spec;
    spec.family = std::string(row.name);
    spec.num_layers = row.layers;
    spec.hidden_size = row.hidden;
    spec.ffn_size = row.ffn;
    spec.num_heads = row.heads;
    spec.num_kv_heads = row.kv_heads;
    spec.head_dim = row.head_dim;
    spec.vocab_size = row.vocab;
    spec.max_context = row.context;
    return spec;
  }
  return absl::NotFoundError(
      absl::StrCat("there is no shape '", shape, "'; there are ", Names(kShapes)));
}

std::span<const Gpu> Gpus() { return kGpus; }

absl::StatusOr<Gpu> FindGpu(absl::string_view name) {
  for (const Gpu& gpu : kGpus) {
    if (absl::EqualsIgnoreCase(gpu.name, name)) {
      return gpu;
    }
  }
  return absl::NotFoundError(absl::StrCat("there is no GPU '", name, "'; there are ", Names(kGpus),
                                          "; for others give --gpu_memory"));
}

int64_t KvBytesPerToken(const ModelSpec& spec, KvType type) {
  const KvRow& row = RowOf(type);
  return 2 * static_cast<int64_t>(spec.num_layers) * spec.num_kv_heads *
         (spec.head_dim * row.element_bytes + row.scale_bytes);
}

int64_t LinearParameters(const ModelSpec& spec) {
  int64_t count = 0;
  for (int role = 0; role < kNumLinearRoles; ++role) {
    const LinearShape shape = ShapeOf(spec, static_cast<LinearRole>(role));
    count += static_cast<int64_t>(shape.rows) * shape.cols;
  }
  return count * spec.num_layers;
}

int64_t EmbeddingParameters(const ModelSpec& spec) {
  return static_cast<int64_t>(spec.vocab_size) * spec.hidden_size * (spec.tied_head ? 1 : 2);
}

double WeightBytes(const ModelSpec& spec, double bits, double embedding_bits) {
  return (static_cast<double>(LinearParameters(spec)) * bits +
          static_cast<double>(EmbeddingParameters(spec)) * embedding_bits) /
         8;
}

Fit FitOn(const Budget& budget, int64_t context) {
  Fit fit;
  fit.kv_bytes = budget.memory * budget.utilization - budget.weights - budget.buffers;
  if (fit.kv_bytes <= 0) return fit;
  const auto block_bytes = static_cast<double>(budget.kv_bytes_per_token * kBlockTokens);
  const auto blocks = static_cast<int64_t>(fit.kv_bytes / block_bytes);
  fit.tokens = blocks * kBlockTokens;
  fit.sequences = blocks / BlocksFor(context);
  return fit;
}

double MemoryFor(const Budget& budget, int64_t context, int64_t sequences) {
  const auto kv = static_cast<double>(sequences * BlocksFor(context) * kBlockTokens *
                                      budget.kv_bytes_per_token);
  return (kv + budget.weights + budget.buffers) / budget.utilization;
}

absl::StatusOr<std::vector<Rate>> ParseRates(absl::string_view csv) {
  std::vector<Rate> rates;
  std::optional<Columns> columns;
  size_t number = 0;
  for (absl::string_view text : absl::StrSplit(csv, '\n')) {
    ++number;
    text = absl::StripAsciiWhitespace(text);
    if (text.empty()) continue;
    if (!columns) {
      absl::StatusOr<Columns> header = ParseHeader(text);
      if (!header.ok()) return header.status();
      columns = *header;
      continue;
    }
    absl::StatusOr<Rate> rate = ParseRow(text, number, *columns);
    if (!rate.ok()) return rate.status();
    rates.push_back(*std::move(rate));
  }
  if (rates.empty()) return absl::InvalidArgumentError("no rates in it");
  return rates;
}

absl::StatusOr<Estimate> EstimateRate(std::span<const Rate> rates, absl::string_view gpu,
                                      absl::string_view shape, absl::string_view kv, int64_t batch,
                                      int64_t context) {
  std::vector<Rate> usable = RatesOf(rates, gpu, shape, kv);
  std::erase_if(usable, [](const Rate& rate) { return rate.batch == 0; });
  if (usable.empty()) return NothingMeasured(gpu, shape, kv, "generating");
  // Of the contexts: the next one up, else the largest.
  int64_t chosen = 0;
  for (const Rate& rate : usable) {
    const bool reaches = rate.context >= context;
    const bool chosen_reaches = chosen >= context;
    if (reaches ? (!chosen_reaches || rate.context < chosen)
                : (!chosen_reaches && rate.context > chosen)) {
      chosen = rate.context;
    }
  }
  std::erase_if(usable, [chosen](const Rate& rate) { return rate.context != chosen; });
  std::sort(usable.begin(), usable.end(),
            [](const Rate& a, const Rate& b) { return a.batch < b.batch; });

  Estimate estimate;
  estimate.context = chosen;
  const auto upper = std::find_if(usable.begin(), usable.end(),
                                  [batch](const Rate& rate) { return rate.batch >= batch; });
  if (upper == usable.end() || upper == usable.begin() || upper->batch == batch) {
    // A measured batch; or fewer or more than were measured, which is counted as the nearest one.
    const Rate& rate = upper == usable.end() ? usable.back() : *upper;
    estimate.batch = std::min(rate.batch, batch);
    // A smaller batch than the smallest measured one: a step takes as long, with fewer tokens.
    estimate.tokens_per_second = rate.tokens_per_second * static_cast<double>(estimate.batch) /
                                 static_cast<double>(rate.batch);
    estimate.source = absl::StrCat("measured with batch ", rate.batch);
    return estimate;
  }
  const Rate& above = *upper;
  const Rate& below = *(upper - 1);
  const double below_seconds = static_cast<double>(below.batch) / below.tokens_per_second;
  const double above_seconds = static_cast<double>(above.batch) / above.tokens_per_second;
  const double share =
      static_cast<double>(batch - below.batch) / static_cast<double>(above.batch - below.batch);
  estimate.batch = batch;
  estimate.tokens_per_second =
      static_cast<double>(batch) / (below_seconds + share * (above_seconds - below_seconds));
  estimate.source =
      absl::StrCat("between the measured batches ", below.batch, " and ", above.batch);
  return estimate;
}

absl::StatusOr<double> PromptRate(std::span<const Rate> rates, absl::string_view gpu,
                                  absl::string_view shape, absl::string_view kv,
                                  int64_t prompt_tokens) {
  const Rate* nearest = nullptr;
  const std::vector<Rate> usable = RatesOf(rates, gpu, shape, kv);
  const auto distance = [prompt_tokens](const Rate& rate) {
    return std::abs(rate.context - prompt_tokens);
  };
  for (const Rate& rate : usable) {
    if (rate.batch != 0) continue;
    if (nearest == nullptr || distance(rate) < distance(*nearest)) nearest = &rate;
  }
  if (nearest == nullptr) return NothingMeasured(gpu, shape, kv, "prompts");
  return nearest->tokens_per_second;
}

double WithPrompts(double tokens_per_second, double prompt_tokens_per_second, int64_t prompt_tokens,
                   int64_t new_tokens) {
  const auto generated = static_cast<double>(new_tokens);
  return generated / (generated / tokens_per_second +
                      static_cast<double>(prompt_tokens) / prompt_tokens_per_second);
}

double BandwidthBound(double bandwidth, const Budget& budget, int64_t batch, int64_t context) {
  const double bytes =
      budget.weights + static_cast<double>(batch * context * budget.kv_bytes_per_token);
  return bandwidth * static_cast<double>(batch) / bytes;
}

double DollarsPerMillion(double dollars_per_hour, double tokens_per_second) {
  return dollars_per_hour / 3600 / tokens_per_second * 1e6;
}

}  // namespace fewbit::plan
