// fewbit-bench: speed of the GPU kernels on random weights of a known model's shape.
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>

#include "tests/bench/cuda/attention.h"
#include "tests/bench/cuda/decode.h"
#include "tests/bench/cuda/linears.h"
#include "tests/bench/cuda/ops.h"
#include "tests/bench/cuda/tune.h"

namespace {

constexpr char kUsage[] =
    "usage: fewbit-bench linears [--shape=NAME] [--m=1,8,16] [--csv] [--layers] [--only-default]\n"
    "         [--share4=0.25] [--outliers=0.002] [--zero-points] [--repeats=N]\n"
    "         [--warps=N] [--stages=N] [--blocks=N] [--cp-async]   (0: choose)\n"
    "       fewbit-bench decode [--shape=NAME] [--batch=1,16,64] [--context=512] [--kv=f16,i8]\n"
    "         [--csv] [--lm_head_bits=8] [--steps=128] [--prefill=2048] [--layers=N] "
    "[--no-graphs] [--profile] [--greedy]\n"
    "         [--first_token=128,512]   (times to the first token instead of rates)\n"
    "         [--share4=0.25] [--outliers=0.002] [--zero-points]\n"
    "       fewbit-bench ops [--shape=NAME] [--m=1,16,64,2048] [--vocab=32000] [--repeats=N]\n";

// The value of --name=value, or null.
const char* Value(const std::string& argument, const std::string& name) {
  const std::string prefix = "--" + name + "=";
  return argument.rfind(prefix, 0) == 0 ? argument.c_str() + prefix.size() : nullptr;
}

bool ParseMix(const std::string& argument, fewbit::bench::WeightMix* mix) {
  if (const char* v = Value(argument, "share4")) return mix->share4 = std::atof(v), true;
  if (const char* v = Value(argument, "outliers")) return mix->outlier_share = std::atof(v), true;
  if (argument == "--zero-points") return mix->zero_points = true;
  return false;
}

bool ParseTuning(const std::string& argument, fewbit::cuda::Tuning* t) {
  if (const char* v = Value(argument, "warps")) return t->warps = std::atoi(v), true;
  if (const char* v = Value(argument, "stages")) return t->stages = std::atoi(v), true;
  if (const char* v = Value(argument, "blocks")) {
    return t->blocks_per_multiprocessor = std::atoi(v), true;
  }
  if (argument == "--cp-async") return t->use_cp_async = 1, true;
  return false;
}

// Positive numbers, separated by commas.
bool ParseList(const char* text, std::vector<int>* out) {
  out->clear();
  std::stringstream list(text);
  for (std::string item; std::getline(list, item, ',');) out->push_back(std::atoi(item.c_str()));
  for (int n : *out) {
    if (n <= 0) return false;
  }
  return !out->empty();
}

bool Parse(const std::string& argument, fewbit::bench::AttentionOptions* o) {
  return fewbit::bench::ParseAttention(argument, o);
}

bool Parse(const std::string& argument, fewbit::bench::TuneBenchOptions* o) {
  if (const char* v = Value(argument, "windows")) return ParseList(v, &o->windows);
  return fewbit::bench::ParseTune(argument, o) || ParseMix(argument, &o->mix);
}

bool Parse(const std::string& argument, fewbit::bench::OpsOptions* o) {
  if (const char* v = Value(argument, "shape")) return o->shape = v, true;
  if (const char* v = Value(argument, "m")) return ParseList(v, &o->m);
  if (const char* v = Value(argument, "vocab")) return (o->vocab = std::atoi(v)) > 0;
  if (const char* v = Value(argument, "repeats")) return (o->repeats = std::atoi(v)) > 0;
  return false;
}

bool Parse(const std::string& argument, fewbit::bench::LinearsOptions* o) {
  if (const char* v = Value(argument, "shape")) return o->shape = v, true;
  if (const char* v = Value(argument, "m")) return ParseList(v, &o->m);
  if (const char* v = Value(argument, "repeats")) return (o->repeats = std::atoi(v)) > 0;
  if (argument == "--csv") return o->csv = true;
  if (argument == "--layers") return o->per_layer = true;
  if (argument == "--only-default") return o->only_default = true;
  return ParseMix(argument, &o->mix) || ParseTuning(argument, &o->tuning);
}

bool ParseKv(const char* text, std::vector<std::string>* out) {
  out->clear();
  std::stringstream list(text);
  for (std::string item; std::getline(list, item, ',');) {
    if (item != "f16" && item != "bf16" && item != "i8") return false;
    out->push_back(item);
  }
  return !out->empty();
}

bool Parse(const std::string& argument, fewbit::bench::DecodeOptions* o) {
  if (const char* v = Value(argument, "shape")) return o->shape = v, true;
  if (const char* v = Value(argument, "batch")) return ParseList(v, &o->batches);
  if (const char* v = Value(argument, "kv")) return ParseKv(v, &o->kv);
  if (const char* v = Value(argument, "context")) return (o->context = std::atoi(v)) > 0;
  if (const char* v = Value(argument, "steps")) return (o->steps = std::atoi(v)) > 0;
  if (const char* v = Value(argument, "prefill")) return (o->prefill = std::atoi(v)) >= 0;
  if (const char* v = Value(argument, "first_token")) return ParseList(v, &o->first_token);
  if (const char* v = Value(argument, "layers")) return (o->layers = std::atoi(v)) > 0;
  if (const char* v = Value(argument, "lm_head_bits")) {
    o->lm_head_bits = std::atoi(v);
    return o->lm_head_bits == 16 || o->lm_head_bits == 8 || o->lm_head_bits == 4;
  }
  if (argument == "--csv") return o->csv = true;
  if (argument == "--no-graphs") return o->graphs = false, true;
  if (argument == "--profile") return o->profile = true;
  if (argument == "--greedy") return o->greedy = true;
  return ParseMix(argument, &o->mix);
}

// Parses what follows the command, --name=value or --name value, and runs it.
template <typename Options>
int RunWith(int argc, char** argv, int (*run)(const Options&)) {
  Options options;
  for (int i = 2; i < argc; ++i) {
    if (Parse(argv[i], &options)) continue;
    if (i + 1 == argc || !Parse(std::string(argv[i]) + "=" + argv[i + 1], &options)) {
      std::fprintf(stderr, "cannot read argument %s\n%s", argv[i], kUsage);
      return 2;
    }
    ++i;
  }
  return run(options);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string command = argc < 2 ? "" : argv[1];
  if (command == "linears") return RunWith(argc, argv, fewbit::bench::RunLinears);
  if (command == "decode") return RunWith(argc, argv, fewbit::bench::RunDecode);
  if (command == "attention") return RunWith(argc, argv, fewbit::bench::RunAttention);
  if (command == "ops") return RunWith(argc, argv, fewbit::bench::RunOps);
  if (command == "tune") return RunWith(argc, argv, fewbit::bench::RunTune);
  std::fputs(kUsage, stderr);
  std::fputs(fewbit::bench::kAttentionUsage, stderr);
  std::fputs(fewbit::bench::kTuneUsage, stderr);
  return 2;
}
