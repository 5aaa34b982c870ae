// canary.json of a checkpoint: a few prompts, and which tokens are the most likely to follow each,
// by the original (bf16) model and by this checkpoint as computed where it was made. A server that
// computes something else has broken weights or a device that computes wrongly, and says so before
// it serves.
//   {"version": 2, "prompts": [{"token_ids": [1, 306, ...],
//                               "original": {"ids": [263, ...], "logprobs": [-1.25, ...]},
//                               "expected": {"ids": [338, ...], "logprobs": [-1.5, ...]}}, ...]}
// Logits come as natural logarithms of probabilities, best first. "original" is absent when the
// checkpoint was not made from another one.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "scheduler/ids.h"
#include "scheduler/request.h"

namespace fewbit {

// The most likely tokens of one distribution, best first.
struct TopTokens {
  std::vector<TokenId> ids;
  std::vector<float> logprobs;  // natural, of the whole vocabulary's distribution
};

// The `count` largest logits of a row, equal ones by id.
TopTokens TopOf(std::span<const float> logits, int count);

// The least KL(p || q) in nats of two distributions that begin with these lists: exact for the
// tokens that both have, and no list hides a model that answers otherwise. 0 for equal lists, never
// negative.
double TopDivergence(const TopTokens& p, const TopTokens& q);

struct CanaryPrompt {
  std::vector<TokenId> token_ids;  // 1 to kMaxTokens
  std::optional<TopTokens> original;
  TopTokens expected;
};

struct Canary {
  static constexpr int kPrompts = 8;  // as written; up to 64 are read
  static constexpr int kTokens = 16;  // per prompt, BOS included; likewise, up to 1024
  static constexpr int kTop = kMaxTopLogprobs;

  std::vector<CanaryPrompt> prompts;
};

// Means over the prompts, by TopDivergence, in nats.
struct CanaryDistances {
  std::optional<double> original_expected;  // what quantizing did, where the checkpoint was made
  std::optional<double> original_served;    // what it does here
  double expected_served = 0.0;             // what computing here instead of there does
};

// `served`: one list per prompt, as long as the machine that serves likes.
CanaryDistances MeasureCanary(const Canary& canary, std::span<const TopTokens> served);

// Empty: the directory has no canary.json. INVALID_ARGUMENT names the file and what is wrong in it.
absl::StatusOr<std::optional<Canary>> LoadCanary(const std::string& model_dir, int32_t vocab_size);

// Errors name the file and the reason.
absl::Status WriteCanary(const std::string& model_dir, const Canary& canary);

}  // namespace fewbit
