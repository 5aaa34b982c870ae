// Requests for the engine's tests, and what the fake executor tells them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/time/clock.h"
#include "scheduler/request.h"
#include "tests/runtime/fake_executor.h"

namespace fewbit {

inline std::unique_ptr<Request> MakeRequest(uint64_t id, int32_t prompt_tokens,
                                            int32_t max_new_tokens) {
  auto request = std::make_unique<Request>();
  request->id = RequestId{id};
  for (int32_t i = 0; i < prompt_tokens; ++i) {
    request->prompt.push_back(TokenId{static_cast<int32_t>((id * 31 + i * 7) % 1000)});
  }
  request->max_new_tokens = max_new_tokens;
  request->sampling.seed = id;
  request->arrival = absl::Now();
  return request;
}

// What a request of MakeRequest is told when nothing stops it early.
inline std::vector<TokenId> Expected(const FakeExecutor& executor, const Request& request) {
  std::vector<TokenId> tokens;
  const int32_t prompt = static_cast<int32_t>(request.prompt.size());
  for (int32_t i = 0; i < request.max_new_tokens; ++i) {
    tokens.push_back(executor.TokenAt(request.sampling.seed, prompt + i));
  }
  return tokens;
}

}  // namespace fewbit
