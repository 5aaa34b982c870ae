// fewbit-plan: which GPU a model needs, how many sequences fit beside it, and what a token costs.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "runtime/models/model.h"
#include "server/tools/plan.h"
#include "server/tools/tool.h"

ABSL_FLAG(std::string, model, "", "directory of a checkpoint: its real sizes");
ABSL_FLAG(std::string, shape, "",
          "instead of a directory: chatglm3-6b, llama-2-7b, llama-2-13b, llama-2-70b, llama-3-8b, "
          "mistral-7b or qwen2-7b");
ABSL_FLAG(double, bits, 2.9, "average bits of the linear layers, with --shape; 16: not quantized");
ABSL_FLAG(double, embedding_bits, 16, "bits of embedding and output head, with --shape");
ABSL_FLAG(std::string, kv_type, "f16", "elements of the KV cache: f16, bf16, f32 or i8");
ABSL_FLAG(int64_t, context, 2048, "tokens of a request, prompt and answer");
ABSL_FLAG(int64_t, prompt_tokens, 0,
          "how many of these are the prompt, for rate and costs; 0: generating alone");
ABSL_FLAG(int64_t, concurrency, 16, "requests generated at a time");
ABSL_FLAG(std::string, gpu, "h200", "l4, a10, a100-40, l40s, a100-80, h100 or h200");
ABSL_FLAG(double, gpu_memory, 0, "gigabytes (10^9 bytes) of another GPU; 0: what --gpu has");
ABSL_FLAG(double, gpu_hour_usd, 0, "price of an hour of the GPU in dollars; 0: no costs");
ABSL_FLAG(double, gpu_memory_utilization, 0.9, "share of the GPU's memory that may be used");
ABSL_FLAG(double, buffers, 2, "gigabytes for activations, graphs and the driver");
ABSL_FLAG(std::vector<std::string>, rates, {},
          "measured tokens per second: CSV files that fewbit-bench decode wrote");
ABSL_FLAG(std::string, rates_shape, "", "name of the model in these files; default: --shape");
ABSL_FLAG(bool, json, false, "print one JSON object instead of text");

namespace fewbit {
namespace {

constexpr char kName[] = "fewbit-plan";

struct Plan {
  std::string model, kv;
  plan::Gpu gpu{};
  plan::Budget budget;
  double average_bits = 16, embedding_bits = 16;
  int64_t context = 0, prompt_tokens = 0, concurrency = 0;
  plan::Fit fit;
  std::optional<plan::Gpu> smallest;  // that holds `concurrency` sequences
  int64_t replicas = 0;               // GPUs for `concurrency` sequences; 0: none fits on one
  int64_t batch = 0;                  // sequences on the fullest of these
  double bound = 0;                   // tokens per second of that GPU; 0: bandwidth not known
  std::optional<plan::Estimate> rate;
  std::string no_rate;  // why there is none
  double usd_per_hour = 0;
};

absl::Status CheckFlags() {
  const std::pair<const char*, double> positive[] = {
      {"bits", absl::GetFlag(FLAGS_bits)},
      {"embedding_bits", absl::GetFlag(FLAGS_embedding_bits)},
      {"context", static_cast<double>(absl::GetFlag(FLAGS_context))},
      {"concurrency", static_cast<double>(absl::GetFlag(FLAGS_concurrency))},
      {"gpu_memory_utilization", absl::GetFlag(FLAGS_gpu_memory_utilization)}};
  for (const auto& [name, value] : positive) {
    if (!(value > 0) || value > 1e9) {
      return absl::InvalidArgumentError(
          absl::StrCat("--", name, " is ", value, ", not above 0 and at most 10^9"));
    }
  }
  if (absl::GetFlag(FLAGS_gpu_memory_utilization) > 1) {
    return absl::InvalidArgumentError(absl::StrCat("--gpu_memory_utilization is ",
                                                   absl::GetFlag(FLAGS_gpu_memory_utilization),
                                                   ", more than 1"));
  }
  if (absl::GetFlag(FLAGS_prompt_tokens) < 0 ||
      absl::GetFlag(FLAGS_prompt_tokens) >= absl::GetFlag(FLAGS_context)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--prompt_tokens is ", absl::GetFlag(FLAGS_prompt_tokens),
                     ", not between 0 and --context, ", absl::GetFlag(FLAGS_context)));
  }
  for (const auto& [name, value] : {std::pair{"gpu_memory", absl::GetFlag(FLAGS_gpu_memory)},
                                    std::pair{"gpu_hour_usd", absl::GetFlag(FLAGS_gpu_hour_usd)},
                                    std::pair{"buffers", absl::GetFlag(FLAGS_buffers)}}) {
    if (!(value >= 0) || value > 1e9) {
      return absl::InvalidArgumentError(
          absl::StrCat("--", name, " is ", value, ", not between 0 and 10^9"));
    }
  }
  return absl::OkStatus();
}

// The model's sizes, from its files or its name.
absl::StatusOr<ModelSpec> DescribeModel(Plan* plan) {
  const std::string directory = absl::GetFlag(FLAGS_model);
  const std::string shape = absl::GetFlag(FLAGS_shape);
  if (directory.empty() == shape.empty()) {
    return absl::InvalidArgumentError("give either --model or --shape");
  }
  if (!shape.empty()) {
    absl::StatusOr<ModelSpec> spec = plan::SpecOf(shape);
    if (!spec.ok()) return spec.status();
    plan->model = shape;
    plan->average_bits = absl::GetFlag(FLAGS_bits);
    plan->embedding_bits = absl::GetFlag(FLAGS_embedding_bits);
    plan->budget.weights = plan::WeightBytes(*spec, plan->average_bits, plan->embedding_bits);
    return spec;
  }
  absl::StatusOr<std::unique_ptr<Model>> model = LoadModel(directory);
  if (!model.ok()) return model.status();
  plan->model = directory;
  if ((*model)->quantization.quantized) plan->average_bits = (*model)->quantization.average_bits;
  plan->embedding_bits = (*model)->quantization.embedding_bits;
  plan->budget.weights = static_cast<double>((*model)->weight_bytes);
  return (*model)->spec;
}

absl::StatusOr<std::vector<plan::Rate>> ReadRates() {
  std::vector<plan::Rate> all;
  for (const std::string& path : absl::GetFlag(FLAGS_rates)) {
    absl::StatusOr<std::string> text = ReadTextFile(path);
    if (!text.ok()) return text.status();
    absl::StatusOr<std::vector<plan::Rate>> rates = plan::ParseRates(*text);
    if (!rates.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": ", rates.status().message()));
    }
    all.insert(all.end(), rates->begin(), rates->end());
  }
  return all;
}

absl::Status Estimate(Plan* plan) {
  plan->bound = plan::BandwidthBound(plan->gpu.bandwidth, plan->budget, plan->batch, plan->context);
  absl::StatusOr<std::vector<plan::Rate>> rates = ReadRates();
  if (!rates.ok()) return rates.status();
  const std::string named = absl::GetFlag(FLAGS_rates_shape);
  const std::string& shape = named.empty() ? plan->model : named;
  absl::StatusOr<plan::Estimate> rate =
      plan::EstimateRate(*rates, plan->gpu.name, shape, plan->kv, plan->batch, plan->context);
  if (!rate.ok()) {
    plan->no_rate = std::string(rate.status().message());
    return absl::OkStatus();
  }
  if (rate->context < plan->context) {
    absl::StrAppend(&rate->source, ", with shorter sequences than these: too good");
  }
  if (plan->prompt_tokens > 0) {
    absl::StatusOr<double> prompts =
        plan::PromptRate(*rates, plan->gpu.name, shape, plan->kv, plan->prompt_tokens);
    if (!prompts.ok()) {
      plan->no_rate = std::string(prompts.status().message());
      return absl::OkStatus();
    }
    rate->tokens_per_second =
        plan::WithPrompts(rate->tokens_per_second, *prompts, plan->prompt_tokens,
                          plan->context - plan->prompt_tokens);
    absl::StrAppend(&rate->source, ", prompts at ", absl::StrFormat("%.0f", *prompts),
                    " tokens/s in between");
  }
  plan->rate = *std::move(rate);
  return absl::OkStatus();
}

absl::StatusOr<Plan> MakePlan() {
  Plan plan;
  plan.context = absl::GetFlag(FLAGS_context);
  plan.prompt_tokens = absl::GetFlag(FLAGS_prompt_tokens);
  plan.concurrency = absl::GetFlag(FLAGS_concurrency);
  plan.usd_per_hour = absl::GetFlag(FLAGS_gpu_hour_usd);
  absl::StatusOr<plan::KvType> kv = plan::ParseKvType(absl::GetFlag(FLAGS_kv_type));
  if (!kv.ok()) return kv.status();
  plan.kv = plan::KvTypeName(*kv);
  absl::StatusOr<ModelSpec> spec = DescribeModel(&plan);
  if (!spec.ok()) return spec.status();
  absl::StatusOr<plan::Gpu> gpu = plan::FindGpu(absl::GetFlag(FLAGS_gpu));
  if (!gpu.ok()) return gpu.status();
  plan.gpu = *gpu;
  if (absl::GetFlag(FLAGS_gpu_memory) > 0) {
    plan.gpu = {.name = "other", .memory = absl::GetFlag(FLAGS_gpu_memory) * 1e9, .bandwidth = 0};
  }
  plan.budget.memory = plan.gpu.memory;
  plan.budget.utilization = absl::GetFlag(FLAGS_gpu_memory_utilization);
  plan.budget.buffers = absl::GetFlag(FLAGS_buffers) * 1e9;
  plan.budget.kv_bytes_per_token = plan::KvBytesPerToken(*spec, *kv);
  plan.fit = plan::FitOn(plan.budget, plan.context);
  const double wanted = plan::MemoryFor(plan.budget, plan.context, plan.concurrency);
  for (const plan::Gpu& candidate : plan::Gpus()) {
    if (!plan.smallest && candidate.memory >= wanted) plan.smallest = candidate;
  }
  if (plan.fit.sequences == 0) return plan;
  plan.replicas = (plan.concurrency + plan.fit.sequences - 1) / plan.fit.sequences;
  plan.batch = (plan.concurrency + plan.replicas - 1) / plan.replicas;
  const absl::Status status = Estimate(&plan);
  if (!status.ok()) return status;
  return plan;
}

void PrintText(const Plan& plan) {
  const auto line = [](const char* name, const std::string& value) {
    std::printf("%-16s %s\n", name, value.c_str());
  };
  line("model", absl::StrFormat("%s: %.2f GB of weights (linear layers %.2f bits, embeddings %g)",
                                plan.model, plan.budget.weights / 1e9, plan.average_bits,
                                plan.embedding_bits));
  line("KV cache",
       absl::StrFormat("%s: %d bytes per token, %.1f MB per request of %d tokens", plan.kv,
                       plan.budget.kv_bytes_per_token,
                       plan.budget.kv_bytes_per_token * plan.context / 1e6, plan.context));
  line("GPU", absl::StrFormat("%s: %.1f GB, of these %.1f for the KV cache", plan.gpu.name,
                              plan.gpu.memory / 1e9, std::max(0.0, plan.fit.kv_bytes) / 1e9));
  line("fits", absl::StrFormat("%d tokens in flight, %d requests of %d tokens", plan.fit.tokens,
                               plan.fit.sequences, plan.context));
  line("smallest GPU",
       plan.smallest
           ? absl::StrFormat("%s holds %d of them", plan.smallest->name, plan.concurrency)
           : absl::StrFormat("none of the known ones holds %d of them alone", plan.concurrency));
  if (plan.replicas == 0) {
    line("replicas", "not even one request fits");
    return;
  }
  line("replicas", absl::StrFormat("%d, each with %d requests (--max_running=%d)", plan.replicas,
                                   plan.batch, plan.batch));
  if (plan.bound > 0) {
    line("upper bound",
         absl::StrFormat("%.0f tokens/s per replica at full length: its memory reads %.0f GB/s",
                         plan.bound, plan.gpu.bandwidth / 1e9));
  }
  if (!plan.rate) {
    line("rate", plan.no_rate + "; no costs without a measurement (--rates)");
    return;
  }
  line("rate", absl::StrFormat("%.0f tokens/s per replica, %.1f per request (%s, context %d)",
                               plan.rate->tokens_per_second,
                               plan.rate->tokens_per_second / static_cast<double>(plan.rate->batch),
                               plan.rate->source, plan.rate->context));
  if (plan.usd_per_hour <= 0) return;
  line("cost",
       absl::StrFormat("$%.3f per million generated tokens, always busy; $%.2f an hour",
                       plan::DollarsPerMillion(plan.usd_per_hour, plan.rate->tokens_per_second),
                       plan.usd_per_hour * static_cast<double>(plan.replicas)));
}

void PrintJson(const Plan& plan) {
  nlohmann::json out = {{"model", plan.model},
                        {"weight_bytes", plan.budget.weights},
                        {"average_bits", plan.average_bits},
                        {"kv", plan.kv},
                        {"kv_bytes_per_token", plan.budget.kv_bytes_per_token},
                        {"context", plan.context},
                        {"prompt_tokens", plan.prompt_tokens},
                        {"concurrency", plan.concurrency},
                        {"gpu", std::string(plan.gpu.name)},
                        {"gpu_memory", plan.gpu.memory},
                        {"kv_bytes", plan.fit.kv_bytes},
                        {"tokens_in_flight", plan.fit.tokens},
                        {"sequences", plan.fit.sequences},
                        {"replicas", plan.replicas},
                        {"batch", plan.batch}};
  if (plan.smallest) out["smallest_gpu"] = std::string(plan.smallest->name);
  if (plan.bound > 0) out["tokens_per_second_bound"] = plan.bound;
  if (plan.rate) {
    out["tokens_per_second"] = plan.rate->tokens_per_second;
    out["rate_source"] = plan.rate->source;
    if (plan.usd_per_hour > 0) {
      out["usd_per_million_tokens"] =
          plan::DollarsPerMillion(plan.usd_per_hour, plan.rate->tokens_per_second);
    }
  }
  std::printf("%s\n", out.dump(2).c_str());
}

absl::Status Run(int argc, char** argv) {
  absl::Status status = ParseToolFlags(
      argc, argv,
      {.name = kName,
       .summary = "fewbit-plan: says what fits on a GPU and what a token costs there.\n\n"
                  "  fewbit-plan --shape=llama-2-7b --context=2048 --concurrency=64 --gpu=h200\n"
                  "  fewbit-plan --model=DIR --gpu=l4 --gpu_hour_usd=0.8 --rates=FILE\n",
       .flags = {"model", "shape", "bits", "embedding_bits", "kv_type", "context", "prompt_tokens",
                 "concurrency", "gpu", "gpu_memory", "gpu_memory_utilization", "buffers", "rates",
                 "rates_shape", "gpu_hour_usd", "json"}});
  if (status.ok()) status = CheckFlags();
  if (!status.ok()) return status;
  absl::StatusOr<Plan> plan = MakePlan();
  if (!plan.ok()) return plan.status();
  if (absl::GetFlag(FLAGS_json)) {
    PrintJson(*plan);
  } else {
    PrintText(*plan);
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  const absl::Status status = Run(argc, argv);
  return status.ok() ? 0 : FailTool(kName, status);
}

}  // namespace
}  // namespace fewbit

int main(int argc, char** argv) { return fewbit::Main(argc, argv); }
