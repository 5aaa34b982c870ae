#include "runtime/cuda/fatal.h"

#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_cat.h"

namespace fewbit {

std::string StepPlace::Describe(const char* op, const std::string& error) const {
  return absl::StrCat("CUDA failed in ", op, layer >= 0 ? absl::StrCat(", layer ", layer) : "",
                      " of step ", step, " (", view.tokens, " tokens, ", view.sequences,
                      " sequences, ", view.rows, " rows, longest query ", view.max_query,
                      "): ", error);
}

void StepPlace::Check(cudaError_t error, const char* op) const {
  Check(error == cudaSuccess ? std::string() : cudaGetErrorString(error), op);
}

void StepPlace::Check(const std::string& error, const char* op) const {
  if (error.empty()) {
    if (clock != nullptr) clock->Mark(op);
    return;
  }
  std::fprintf(stderr, "%s\n", Describe(op, error).c_str());
  std::abort();
}

}  // namespace fewbit
