// Requests for the tests of this folder.
#pragma once

#include <cstdint>
#include <memory>

#include "scheduler/request.h"

namespace fewbit {

// Prompt tokens are 0, 1, 2, ... so that limits on their values do not matter to a vocabulary of at
// least prompt_tokens.
inline std::unique_ptr<Request> MakeRequest(uint64_t id, int32_t prompt_tokens,
                                            int32_t max_new_tokens) {
  auto request = std::make_unique<Request>();
  request->id = RequestId{id};
  for (int32_t i = 0; i < prompt_tokens; ++i) request->prompt.push_back(TokenId{i});
  request->max_new_tokens = max_new_tokens;
  request->arrival = absl::UnixEpoch();
  return request;
}

}  // namespace fewbit
