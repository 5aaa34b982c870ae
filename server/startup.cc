#include "server/startup.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "runtime/device.h"
#include "runtime/weights/canary.h"
#include "server/server.h"
#include "server/warm_up.h"

namespace fewbit {
namespace {

constexpr int32_t kCpuStepTokens = 512;
constexpr int32_t kGpuStepTokens = 2048;

// Times the phases of the start.
class Stopwatch {
 public:
  // Ends a phase; the next one begins.
  void Lap(const char* phase) {
    const absl::Time now = absl::Now();
    laps_.push_back({phase, absl::ToDoubleSeconds(now - lap_start_)});
    lap_start_ = now;
  }
  const std::vector<StartupPhase>& laps() const { return laps_; }

 private:
  absl::Time lap_start_ = absl::Now();
  std::vector<StartupPhase> laps_;
};

struct DeviceChoice {
  std::string name;  // "cpu" or "cuda:N"
  std::string why;
  bool is_gpu() const { return absl::StartsWith(name, "cuda"); }
};

// What the runtime says of `device`, or why it cannot be had.
absl::StatusOr<std::string> Resolve(const std::string& device) {
  absl::StatusOr<std::string> resolved = ResolveDevice(device);
  if (resolved.ok()) return resolved;
  absl::string_view reason = resolved.status().message();
  absl::ConsumePrefix(&reason, absl::StrCat("device ", device, ": "));
  return absl::Status(resolved.status().code(), reason);
}

absl::StatusOr<DeviceChoice> ChooseDevice(const Config& config) {
  DeviceChoice choice;
  if (config.device == "auto") {
    const absl::StatusOr<std::string> gpu = Resolve("cuda");
    choice.name = gpu.ok() ? *gpu : "cpu";
    choice.why = gpu.ok() ? "--device=auto found a GPU"
                          : absl::StrCat("--device=auto found no GPU: ", gpu.status().message());
  } else {
    const absl::StatusOr<std::string> device = Resolve(config.device);
    if (!device.ok()) {
      return absl::Status(device.status().code(), absl::StrCat("--device=", config.device, ": ",
                                                               device.status().message()));
    }
    choice.name = *device;
    choice.why = absl::StrCat("--device=", config.device);
  }
  if (!choice.is_gpu() && config.lm_head_bits != 0) {
    return absl::InvalidArgumentError(absl::StrCat("--lm_head_bits=", config.lm_head_bits,
                                                   " is for GPUs; this is ", choice.name, " (",
                                                   choice.why, ")"));
  }
  return choice;
}

DeviceOptions DeviceOptionsOf(const Config& config, const DeviceChoice& device) {
  DeviceOptions options;
  options.device = device.name;
  options.max_sequences = config.max_running;
  options.max_step_tokens = config.step_tokens;
  if (config.step_tokens == 0) {
    options.max_step_tokens =
        std::max(device.is_gpu() ? kGpuStepTokens : kCpuStepTokens, config.max_running);
  }
  options.max_context = config.max_context;
  options.kv_bytes = config.kv_memory;
  options.kv_type = config.kv_type;
  options.threads = config.threads;
  options.gpu_memory_utilization = config.gpu_memory_utilization;
  options.lm_head_bits = config.lm_head_bits;
  return options;
}

// What generation_config.json leaves open is as the proto says: temperature 1, nothing cut off.
SamplingParams DefaultSampling(const GenerationDefaults& defaults) {
  SamplingParams sampling;
  sampling.temperature = defaults.temperature.value_or(1.0f);
  if (!defaults.do_sample.value_or(true)) sampling.temperature = 0.0f;
  sampling.top_k = defaults.top_k.value_or(sampling.top_k);
  sampling.top_p = defaults.top_p.value_or(sampling.top_p);
  sampling.repetition_penalty = defaults.repetition_penalty.value_or(sampling.repetition_penalty);
  return sampling;
}

ServedModel Describe(const Config& config, const Model& model, const ExecutorInfo& device) {
  ServedModel served;
  served.name = ServedName(config);
  served.spec = model.spec;
  served.device = device;
  served.default_sampling = DefaultSampling(model.generation);
  served.default_max_new_tokens = config.max_new_tokens;
  served.embedding_bits = model.quantization.embedding_bits;
  if (model.quantization.quantized) {
    served.quantization_method = model.quantization.method;
    served.average_bits = model.quantization.average_bits;
  }
  return served;
}

std::vector<std::string> Facts(const ServedModel& served, const DeviceChoice& device,
                               const std::string& warm_up) {
  const ExecutorInfo& info = served.device;
  return {absl::StrFormat(
              "model %s (%s, %d layers, %.1f MB of weights, %.2f bits in linears) on %s",
              served.name, served.spec.family, served.spec.num_layers,
              static_cast<double>(info.weight_bytes) / 1e6, served.average_bits, info.device),
          absl::StrCat("device ", device.name, ", for ", device.why),
          absl::StrFormat("context %d tokens; KV cache %.1f MB, %d blocks of %d tokens",
                          info.max_context, static_cast<double>(info.kv_bytes) / 1e6,
                          info.num_blocks, info.block_tokens),
          absl::StrCat("warmed up: ", warm_up)};
}

}  // namespace

absl::StatusOr<Loaded> Load(const Config& config) {
  absl::Status status = Server::CheckFiles(config);
  if (!status.ok()) return status;
  const absl::StatusOr<DeviceChoice> device = ChooseDevice(config);
  if (!device.ok()) return device.status();
  Loaded loaded;
  Stopwatch watch;
  absl::StatusOr<std::unique_ptr<Model>> model = LoadModel(config.model);
  if (!model.ok()) return model.status();
  loaded.model = *std::move(model);
  watch.Lap("model");
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer =
      Tokenizer::Load(config.model, loaded.model->spec.vocab_size);
  if (!tokenizer.ok()) return tokenizer.status();
  loaded.tokenizer = *std::move(tokenizer);
  watch.Lap("tokenizer");
  absl::StatusOr<std::unique_ptr<Executor>> executor =
      CreateExecutor(loaded.model.get(), DeviceOptionsOf(config, *device));
  if (!executor.ok()) return executor.status();
  loaded.executor = *std::move(executor);
  watch.Lap("executor");
  status = Server::CheckNumbers(config, loaded.executor->info());
  if (!status.ok()) return status;
  const absl::StatusOr<std::optional<Canary>> canary =
      LoadCanary(config.model, loaded.model->spec.vocab_size);
  if (!canary.ok()) return canary.status();
  const absl::StatusOr<WarmUpResult> warm_up =
      WarmUp(loaded.model->spec, canary->has_value() ? &**canary : nullptr, config.canary_kl_limit,
             loaded.executor.get());
  if (!warm_up.ok()) return warm_up.status();
  watch.Lap("warm_up");
  loaded.served = Describe(config, *loaded.model, loaded.executor->info());
  loaded.served.startup_phases = watch.laps();
  loaded.served.canary = warm_up->canary;
  loaded.facts = Facts(loaded.served, *device, warm_up->about_canary);
  return loaded;
}

}  // namespace fewbit
