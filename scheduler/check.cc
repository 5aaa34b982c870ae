#include "scheduler/check.h"

#include <cstdio>
#include <cstdlib>
#include <string>

namespace fewbit::internal {

CheckFailure::CheckFailure(const char* file, int line, const char* expression)
    : file_(file), line_(line), expression_(expression) {}

CheckFailure::~CheckFailure() {
  const std::string message = message_.str();
  std::fprintf(stderr, "%s:%d: check failed: %s %s\n", file_, line_, expression_, message.c_str());
  std::fflush(stderr);
  std::abort();
}

}  // namespace fewbit::internal
