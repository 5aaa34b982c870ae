// How a text is cut for scoring: windows that do not overlap, each begun with BOS where the model
// has one.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/eval/evaluate.h"
#include "scheduler/ids.h"

namespace fewbit {

class Windows {
 public:
  // `bos` negative: none. `text` outlives the result. INVALID_ARGUMENT: a context below 2 tokens,
  // an id outside the vocabulary, no token to predict.
  static absl::StatusOr<Windows> Cut(std::span<const TokenId> text, TokenId bos, int vocab_size,
                                     const TextOptions& options);

  size_t size() const { return count_; }
  size_t stride() const { return stride_; }  // tokens of text from one to the next
  // Replaces `tokens` by window `w`: tokens[i] predicts tokens[i + 1].
  void Get(size_t w, std::vector<TokenId>* tokens) const;

 private:
  Windows() = default;

  std::span<const TokenId> text_;
  TokenId bos_{};
  size_t stride_ = 0;
  size_t length_ = 0;  // tokens of text in each
  size_t count_ = 0;
};

}  // namespace fewbit
