// fewbit-bench: speed of the GPU kernels on random weights of a known model's shape.
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>

#include "tests/bench/cuda/linears.h"

namespace {

constexpr char kUsage[] =
    "usage: fewbit-bench linears [--shape=NAME] [--m=1,8,16] [--csv] [--layers] [--only-default]\n"
    "         [--share4=0.25] [--outliers=0.002] [--zero-points] [--repeats=N]\n"
    "         [--warps=N] [--stages=N] [--blocks=N] [--cp-async]   (0: choose)\n";

// The value of --name=value, or null.
const char* Value(const std::string& argument, const std::string& name) {
  const std::string prefix = "--" + name + "=";
  return argument.rfind(prefix, 0) == 0 ? argument.c_str() + prefix.size() : nullptr;
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

bool Parse(const std::string& argument, fewbit::bench::LinearsOptions* o) {
  if (const char* v = Value(argument, "shape")) return o->shape = v, true;
  if (const char* v = Value(argument, "m")) {
    o->m.clear();
    std::stringstream list(v);
    for (std::string item; std::getline(list, item, ',');) o->m.push_back(std::atoi(item.c_str()));
    for (int m : o->m) {
      if (m <= 0) return false;
    }
    return !o->m.empty();
  }
  if (const char* v = Value(argument, "share4")) return o->mix.share4 = std::atof(v), true;
  if (const char* v = Value(argument, "outliers")) return o->mix.outlier_share = std::atof(v), true;
  if (const char* v = Value(argument, "repeats")) return (o->repeats = std::atoi(v)) > 0;
  if (argument == "--zero-points") return o->mix.zero_points = true;
  if (argument == "--csv") return o->csv = true;
  if (argument == "--layers") return o->per_layer = true;
  if (argument == "--only-default") return o->only_default = true;
  return ParseTuning(argument, &o->tuning);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || std::string(argv[1]) != "linears") {
    std::fputs(kUsage, stderr);
    return 2;
  }
  fewbit::bench::LinearsOptions options;
  for (int i = 2; i < argc; ++i) {
    if (!Parse(argv[i], &options)) {
      std::fprintf(stderr, "cannot read argument %s\n%s", argv[i], kUsage);
      return 2;
    }
  }
  return fewbit::bench::RunLinears(options);
}
