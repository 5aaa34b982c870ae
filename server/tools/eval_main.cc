// fewbit-eval: perplexity, logits, greedy continuations and the distance from a reference, for any
// checkpoint that fewbit serves.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "nlohmann/json.hpp"
#include "runtime/device.h"
#include "runtime/eval/evaluate.h"
#include "runtime/eval/npy.h"
#include "runtime/eval/score_as_served.h"
#include "runtime/quantize/held_out.h"
#include "runtime/weights/canary.h"
#include "runtime/weights/checkpoint.h"
#include "server/tokenizer.h"
#include "server/tools/tool.h"

ABSL_FLAG(std::string, model, "", "directory of the checkpoint, quantized by fewbit or not");
ABSL_FLAG(std::string, text, "", "text file to score: perplexity of the next token");
ABSL_FLAG(std::string, text_ids, "",
          "instead of a text: int32 .npy file of token ids, for checkpoints without tokenizer");
ABSL_FLAG(int, context, fewbit::TextOptions().context,
          "tokens per window, BOS included; windows do not overlap");
ABSL_FLAG(int, max_windows, fewbit::TextOptions().max_windows,
          "score this many windows at most, from the start of the text; 0: all");
ABSL_FLAG(std::string, reference, "",
          "directory of a checkpoint to compare with on the text: KL divergence, top-1 agreement");
ABSL_FLAG(std::string, prompt, "", "prompt to continue");
ABSL_FLAG(std::string, prompt_ids, "", "prompt as token ids, e.g. 5,9,12; taken as they are");
ABSL_FLAG(int, greedy, 24, "tokens to continue the prompt with, the most likely one each time");
ABSL_FLAG(std::string, logits, "",
          "write the logits of the prompt's tokens here: .npy, float32 [tokens, vocabulary]");
ABSL_FLAG(std::string, device, "cpu", "cpu, cuda, cuda:N or auto: where a text is scored");
ABSL_FLAG(std::string, kv_type, "",
          "score a text with this KV cache: f16 or f32 on the CPU; f16, bf16 or i8 on a GPU; "
          "default: f32 on the CPU, f16 on a GPU");
ABSL_FLAG(int, lm_head_bits, 0,
          "on a GPU: score a text with the output layer rounded to 16, 8 or 4 bits; 0: as it is");
ABSL_FLAG(
    bool, write_canary, false,
    "with a text: write canary.json into --model, what this machine answers to a few prompts "
    "cut from the text, and what the model of --reference does if there is one; fewbit-server "
    "then asks again before it serves");
ABSL_FLAG(bool, json, false, "print one JSON object instead of text");
ABSL_FLAG(int, threads, 0, "0: one per processor");

namespace fewbit {
namespace {

constexpr char kName[] = "fewbit-eval";
constexpr int kMaxThreads = 1024;
// As served:
constexpr int kWindowsAtATime = 8;
constexpr int kStepTokens = 2048;

absl::StatusOr<std::vector<TokenId>> ParseIds(const std::string& list) {
  std::vector<TokenId> ids;
  for (const absl::string_view item : absl::StrSplit(list, ',')) {
    int32_t id = 0;
    if (!absl::SimpleAtoi(item, &id)) {
      return absl::InvalidArgumentError(absl::StrCat("prompt_ids: '", item, "' is not a token id"));
    }
    ids.push_back(TokenId{id});
  }
  return ids;
}

void AddBits(const QuantizationInfo& info, nlohmann::json* out) {
  if (!info.quantized) return;
  (*out)["average_bits"] = info.average_bits;
  (*out)["embedding_bits"] = info.embedding_bits;
  (*out)["method"] = info.method;
}

void PrintScore(const Model& model, const TextScore& score, bool compared) {
  if (absl::GetFlag(FLAGS_json)) {
    nlohmann::json out = {{"perplexity", score.perplexity},
                          {"tokens", score.tokens},
                          {"nll", score.nll},
                          {"windows", score.windows},
                          {"context", absl::GetFlag(FLAGS_context)},
                          {"stride", score.stride}};
    AddBits(model.quantization, &out);
    if (compared) {
      out["reference_perplexity"] = score.reference_perplexity;
      out["kl_divergence"] = score.kl_divergence;
      out["top1_agreement"] = score.top1_agreement;
    }
    std::printf("%s\n", out.dump().c_str());
    return;
  }
  std::printf("perplexity      %.4f over %lld tokens\n", score.perplexity,
              static_cast<long long>(score.tokens));
  std::printf("windows         %d of %d tokens%s, stride %d (no overlap)\n", score.windows,
              absl::GetFlag(FLAGS_context),
              ToInt(model.spec.bos) >= 0 ? ", each begun with BOS" : "", score.stride);
  if (model.quantization.quantized) {
    std::printf("average bits    %.3f per weight of the linear layers, %.2f of the embedding\n",
                model.quantization.average_bits, model.quantization.embedding_bits);
  }
  if (compared) {
    std::printf("reference       perplexity %.4f (ratio %.4f)\n", score.reference_perplexity,
                score.perplexity / score.reference_perplexity);
    std::printf("KL divergence   %.5f nats per token\ntop-1 agreement %.2f %%\n",
                score.kl_divergence, 100.0 * score.top1_agreement);
  }
}

absl::Status WriteCanaryOf(const std::vector<TokenId>& text, ThreadTeam* team,
                           const StopSignal& stop) {
  const std::string model_dir = absl::GetFlag(FLAGS_model);
  const std::string reference_dir = absl::GetFlag(FLAGS_reference);
  const auto model = CheckpointReader::Open(model_dir);
  if (!model.ok()) return model.status();
  std::unique_ptr<CheckpointReader> reference;
  if (!reference_dir.empty()) {
    auto opened = CheckpointReader::Open(reference_dir);
    if (!opened.ok()) return opened.status();
    reference = *std::move(opened);
  }
  const ModelSpec& spec = (*model)->spec();
  const auto windows = CutWindows(text, spec.bos, std::min(Canary::kTokens, spec.max_context),
                                  Canary::kPrompts, /*seed=*/0, spec.vocab_size);
  if (!windows.ok()) return windows.status();
  const auto measured = MeasureHeldOut(**model, reference.get(), *windows, team,
                                       /*step=*/nullptr, stop.flag());
  if (!measured.ok()) return measured.status();
  return WriteCanary(model_dir, measured->canary);
}

// Not on the CPU with an exact KV cache, but as fewbit-server would have it.
bool AsServed() {
  return absl::GetFlag(FLAGS_device) != "cpu" || !absl::GetFlag(FLAGS_kv_type).empty() ||
         absl::GetFlag(FLAGS_lm_head_bits) != 0;
}

absl::StatusOr<TextScore> ScoreServed(const Model& model, const std::vector<TokenId>& text,
                                      const TextOptions& options,
                                      const std::function<void(int, int)>& progress,
                                      const StopSignal& stop) {
  DeviceOptions device;
  device.device = absl::GetFlag(FLAGS_device);
  device.threads = absl::GetFlag(FLAGS_threads);
  device.lm_head_bits = absl::GetFlag(FLAGS_lm_head_bits);
  if (!absl::GetFlag(FLAGS_kv_type).empty()) device.kv_type = absl::GetFlag(FLAGS_kv_type);
  device.max_sequences = kWindowsAtATime;
  device.max_step_tokens = kStepTokens;
  // A window, and the token that every request must ask for.
  device.max_context = std::min(options.context + 1, model.spec.max_context);
  absl::StatusOr<std::unique_ptr<Executor>> executor = CreateExecutor(&model, device);
  if (!executor.ok()) return executor.status();
  return ScoreTextAsServed(executor->get(), model.spec.bos, text, options, progress, stop.flag());
}

absl::Status EvaluateText(const Model& model, ThreadTeam* team, const StopSignal& stop) {
  const std::string text_path = absl::GetFlag(FLAGS_text);
  const std::string reference_dir = absl::GetFlag(FLAGS_reference);
  absl::StatusOr<std::vector<TokenId>> ids =
      text_path.empty()
          ? ReadIds(absl::GetFlag(FLAGS_text_ids))
          : TokenizeFile(text_path, absl::GetFlag(FLAGS_model), model.spec.vocab_size);
  if (!ids.ok()) return ids.status();
  if (absl::GetFlag(FLAGS_write_canary)) return WriteCanaryOf(*ids, team, stop);
  std::unique_ptr<Model> reference;
  if (!reference_dir.empty()) {
    absl::StatusOr<std::unique_ptr<Model>> loaded = LoadModel(reference_dir);
    if (!loaded.ok()) return loaded.status();
    reference = *std::move(loaded);
  }
  ProgressLine line;
  const auto show = [&line](int done, int total) {
    line.Show(done, total, absl::StrCat("window ", done + 1, " of ", total));
  };
  const TextOptions options{.context = absl::GetFlag(FLAGS_context),
                            .max_windows = absl::GetFlag(FLAGS_max_windows)};
  absl::StatusOr<TextScore> score =
      AsServed() ? ScoreServed(model, *ids, options, show, stop)
                 : ScoreText(model, reference.get(), *ids, options, team, show, stop.flag());
  line.End();
  if (!score.ok()) return score.status();
  PrintScore(model, *score, reference != nullptr);
  return absl::OkStatus();
}

absl::Status EvaluatePrompt(const Model& model, ThreadTeam* team) {
  const std::string prompt = absl::GetFlag(FLAGS_prompt);
  std::unique_ptr<Tokenizer> tokenizer;
  absl::StatusOr<std::vector<TokenId>> ids;
  if (prompt.empty()) {
    ids = ParseIds(absl::GetFlag(FLAGS_prompt_ids));
  } else {
    absl::StatusOr<std::unique_ptr<Tokenizer>> loaded =
        Tokenizer::Load(absl::GetFlag(FLAGS_model), model.spec.vocab_size);
    if (!loaded.ok()) return loaded.status();
    tokenizer = *std::move(loaded);
    ids = tokenizer->Encode(prompt, tokenizer->adds_bos());
  }
  if (!ids.ok()) return ids.status();
  const std::string logits_path = absl::GetFlag(FLAGS_logits);
  absl::StatusOr<PromptResult> result =
      RunPrompt(model, *ids, absl::GetFlag(FLAGS_greedy), !logits_path.empty(), team);
  if (!result.ok()) return result.status();
  if (!logits_path.empty()) {
    absl::Status status = WriteNpy(logits_path, result->logits, static_cast<int64_t>(ids->size()),
                                   model.spec.vocab_size);
    if (!status.ok()) return status;
  }
  std::vector<int32_t> greedy;
  for (const TokenId id : result->greedy_ids) greedy.push_back(ToInt(id));
  std::string text;
  if (tokenizer != nullptr) {
    std::vector<TokenId> all = *ids;
    all.insert(all.end(), result->greedy_ids.begin(), result->greedy_ids.end());
    text = tokenizer->Decode(all);
  }
  if (absl::GetFlag(FLAGS_json)) {
    nlohmann::json out = {{"greedy_ids", greedy}, {"prompt_tokens", ids->size()}};
    if (tokenizer != nullptr) out["text"] = text;
    AddBits(model.quantization, &out);
    std::printf("%s\n", out.dump().c_str());
  } else {
    if (tokenizer != nullptr) std::printf("%s\n", text.c_str());
    std::printf("greedy ids: %s\n", absl::StrJoin(greedy, ",").c_str());
  }
  return absl::OkStatus();
}

absl::Status CheckFlags() {
  int inputs = 0;
  for (const std::string& input : {absl::GetFlag(FLAGS_text), absl::GetFlag(FLAGS_text_ids),
                                   absl::GetFlag(FLAGS_prompt), absl::GetFlag(FLAGS_prompt_ids)}) {
    inputs += input.empty() ? 0 : 1;
  }
  const bool text = !absl::GetFlag(FLAGS_text).empty() || !absl::GetFlag(FLAGS_text_ids).empty();
  if (absl::GetFlag(FLAGS_model).empty()) {
    return absl::InvalidArgumentError("model is empty: give the directory of the checkpoint");
  }
  if (inputs != 1) {
    return absl::InvalidArgumentError(
        "give one of --text, --text_ids, --prompt and --prompt_ids; see --help");
  }
  if (text && !absl::GetFlag(FLAGS_logits).empty()) {
    return absl::InvalidArgumentError("--logits goes with --prompt or --prompt_ids");
  }
  if (!text && !absl::GetFlag(FLAGS_reference).empty()) {
    return absl::InvalidArgumentError("--reference goes with --text or --text_ids");
  }
  if (AsServed() &&
      (!text || !absl::GetFlag(FLAGS_reference).empty() || absl::GetFlag(FLAGS_write_canary))) {
    return absl::InvalidArgumentError(
        "--device other than cpu, --kv_type and --lm_head_bits score a text, without --reference "
        "and --write_canary");
  }
  if (absl::Status status = CheckDeviceName(absl::GetFlag(FLAGS_device)); !status.ok()) {
    return status;
  }
  if (!text && absl::GetFlag(FLAGS_write_canary)) {
    return absl::InvalidArgumentError("--write_canary goes with --text or --text_ids");
  }
  const int threads = absl::GetFlag(FLAGS_threads);
  if (threads < 0 || threads > kMaxThreads) {
    return absl::InvalidArgumentError(
        absl::StrCat("threads is ", threads, ", not in 0 (all processors) to ", kMaxThreads));
  }
  if (absl::GetFlag(FLAGS_max_windows) < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_windows is ", absl::GetFlag(FLAGS_max_windows), ", below 0 (all)"));
  }
  return absl::OkStatus();
}

absl::Status Run(int argc, char** argv) {
  absl::Status status = ParseToolFlags(
      argc, argv,
      {.name = kName,
       .summary =
           "fewbit-eval: measures a checkpoint, quantized or not.\n\n"
           "  fewbit-eval --model=DIR --text=FILE [--context=512] [--reference=DIR] [--json]\n"
           "  fewbit-eval --model=DIR --text=FILE --device=cuda [--kv_type=i8] [--json]\n"
           "  fewbit-eval --model=DIR --prompt=TEXT [--greedy=24] [--logits=FILE] [--json]\n"
           "  fewbit-eval --model=DIR --text=FILE --write_canary [--reference=DIR]\n",
       .flags = {"model", "text", "text_ids", "context", "max_windows", "reference", "prompt",
                 "prompt_ids", "greedy", "logits", "device", "kv_type", "lm_head_bits",
                 "write_canary", "json", "threads"}});
  if (status.ok()) status = CheckFlags();
  if (!status.ok()) return status;
  absl::StatusOr<std::unique_ptr<Model>> model = LoadModel(absl::GetFlag(FLAGS_model));
  if (!model.ok()) return model.status();
  if (absl::GetFlag(FLAGS_text).empty() && absl::GetFlag(FLAGS_text_ids).empty()) {
    ThreadTeam team(absl::GetFlag(FLAGS_threads));
    return EvaluatePrompt(**model, &team);
  }
  const StopSignal stop;  // before the team's threads
  ThreadTeam team(absl::GetFlag(FLAGS_threads));
  return EvaluateText(**model, &team, stop);
}

}  // namespace
}  // namespace fewbit

int main(int argc, char** argv) {
  const absl::Status status = fewbit::Run(argc, argv);
  return status.ok() ? 0 : fewbit::FailTool(fewbit::kName, status);
}
