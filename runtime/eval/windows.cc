#include "runtime/eval/windows.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace fewbit {

absl::StatusOr<Windows> Windows::Cut(std::span<const TokenId> text, TokenId bos, int vocab_size,
                                     const TextOptions& options) {
  if (options.context < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("context is ", options.context, ", below 2 tokens"));
  }
  absl::Status status = CheckIds(text, vocab_size, "text");
  if (!status.ok()) return status;
  const bool with_bos = ToInt(bos) >= 0;
  Windows windows;
  windows.text_ = text;
  windows.bos_ = bos;
  windows.stride_ = static_cast<size_t>(options.context) - (with_bos ? 1 : 0);
  windows.count_ = text.size() / windows.stride_;
  windows.length_ = windows.count_ > 0 ? windows.stride_ : text.size();
  if (windows.length_ < (with_bos ? 1 : 2)) {
    return absl::InvalidArgumentError("the text is empty: there is no token to predict");
  }
  windows.count_ = std::max<size_t>(windows.count_, 1);
  if (options.max_windows > 0) {
    windows.count_ = std::min<size_t>(windows.count_, options.max_windows);
  }
  return windows;
}

void Windows::Get(size_t w, std::vector<TokenId>* tokens) const {
  tokens->clear();
  if (ToInt(bos_) >= 0) tokens->push_back(bos_);
  const std::span<const TokenId> part = text_.subspan(w * stride_, length_);
  tokens->insert(tokens->end(), part.begin(), part.end());
}

}  // namespace fewbit
