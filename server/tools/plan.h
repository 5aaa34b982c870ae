// The arithmetic of fewbit-plan: what a model takes on a GPU, how many sequences fit beside it, and
// what a token costs at a measured rate. Sizes are bytes, 1 GB = 10^9.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/models/model_spec.h"

namespace fewbit::plan {

enum class KvType : uint8_t { kF16, kBf16, kF32, kI8 };
// INVALID_ARGUMENT lists the names: f16, bf16, f32, i8.
absl::StatusOr<KvType> ParseKvType(absl::string_view name);
const char* KvTypeName(KvType type);

// A published model, for plans without its files.
struct Shape {
  absl::string_view name;
  int32_t layers, hidden, ffn, heads, kv_heads, head_dim, vocab, context;
};
std::span<const Shape> Shapes();
// NOT_FOUND lists the names.
absl::StatusOr<ModelSpec> SpecOf(absl::string_view shape);

struct Gpu {
  absl::string_view name;
  double memory;     // bytes
  double bandwidth;  // bytes per second, of the data sheet; 0: unknown
};
std::span<const Gpu> Gpus();  // by memory, ascending
absl::StatusOr<Gpu> FindGpu(absl::string_view name);

// 2 (key and value) x layers x KV heads x (head size x bytes of an element, and for i8 2 more for
// the scale).
int64_t KvBytesPerToken(const ModelSpec& spec, KvType type);

// Weights of the linear layers, and of embedding and output head (once if they are tied).
int64_t LinearParameters(const ModelSpec& spec);
int64_t EmbeddingParameters(const ModelSpec& spec);
double WeightBytes(const ModelSpec& spec, double bits, double embedding_bits);

// One GPU's memory.
struct Budget {
  double memory = 0;         // of the GPU
  double utilization = 0.9;  // share of it that may be used
  double buffers = 2e9;      // activations, graphs, the driver
  double weights = 0;
  int64_t kv_bytes_per_token = 0;
};
struct Fit {
  double kv_bytes = 0;    // what is left for the KV cache; negative: the weights do not fit
  int64_t tokens = 0;     // in flight
  int64_t sequences = 0;  // of `context` tokens, in whole blocks of 16
};
Fit FitOn(const Budget& budget, int64_t context);
// Bytes of GPU memory for `sequences` of them: the inverse of FitOn.
double MemoryFor(const Budget& budget, int64_t context, int64_t sequences);

// A row of tests/bench/results/decode-*.csv: all `batch` sequences generate at `context` tokens.
// Batch 0: prompts of `context` tokens, one after the other.
struct Rate {
  std::string gpu, shape, kv;
  int64_t batch = 0, context = 0;
  double tokens_per_second = 0;
};
// Columns by their names in the first line: gpu, shape, batch, context, kv, tokens_per_s; others
// are not looked at. INVALID_ARGUMENT names line and column.
absl::StatusOr<std::vector<Rate>> ParseRates(absl::string_view csv);

struct Estimate {
  double tokens_per_second = 0;
  int64_t batch = 0, context = 0;  // what the number holds for
  std::string source;              // in words
};
// Tokens per second of `batch` sequences with `context` tokens, from rates of the same shape and KV
// type whose GPU's name contains `gpu`. Between two measured batches the time of a step is
// interpolated; the context is the next larger one that was measured, else the largest. Nothing is
// extrapolated: a larger batch counts as the largest one measured. NOT_FOUND: no such rates.
absl::StatusOr<Estimate> EstimateRate(std::span<const Rate> rates, absl::string_view gpu,
                                      absl::string_view shape, absl::string_view kv, int64_t batch,
                                      int64_t context);

// Prompt tokens per second, from the row of batch 0 whose prompts are nearest to `prompt_tokens`.
// NOT_FOUND: there is none.
absl::StatusOr<double> PromptRate(std::span<const Rate> rates, absl::string_view gpu,
                                  absl::string_view shape, absl::string_view kv,
                                  int64_t prompt_tokens);

// Generated tokens per second of a GPU that also has to read a prompt of `prompt_tokens` for every
// `new_tokens`: the times add up.
double WithPrompts(double tokens_per_second, double prompt_tokens_per_second, int64_t prompt_tokens,
                   int64_t new_tokens);

// No step is faster than reading the weights once and every sequence's keys and values.
double BandwidthBound(double bandwidth, const Budget& budget, int64_t batch, int64_t context);

double DollarsPerMillion(double dollars_per_hour, double tokens_per_second);

}  // namespace fewbit::plan
