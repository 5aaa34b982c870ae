#include "server/detokenizer.h"

#include <algorithm>
#include <utility>

#include "server/utf8.h"

namespace fewbit {
namespace {

std::vector<uint16_t> FallbackOf(std::string_view pattern) {
  std::vector<uint16_t> fallback(pattern.size() + 1, 0);
  uint16_t length = 0;
  for (size_t i = 1; i < pattern.size(); ++i) {
    while (length > 0 && pattern[i] != pattern[length]) length = fallback[length];
    if (pattern[i] == pattern[length]) ++length;
    fallback[i + 1] = length;
  }
  return fallback;
}

}  // namespace

Detokenizer::Detokenizer(const Tokenizer* tokenizer, std::span<const TokenId> prompt,
                         DetokenizerOptions options)
    : tokenizer_(tokenizer), options_(std::move(options)) {
  matchers_.reserve(options_.stop_strings.size());
  for (const std::string& stop : options_.stop_strings) {
    matchers_.push_back({FallbackOf(stop), 0});
  }
  NotePrompt(prompt);
}

Detokenizer::Detokenizer(const Tokenizer* tokenizer, std::span<const TokenId> prompt)
    : Detokenizer(tokenizer, prompt, DetokenizerOptions()) {}

void Detokenizer::NotePrompt(std::span<const TokenId> prompt) {
  for (size_t i = 0; i < prompt.size() && at_start_; ++i) WithoutLeadingSpace(prompt[i]);
  // A character that the prompt leaves open: its lead byte is among the last three.
  std::string bytes;
  for (size_t i = prompt.size(); i > 0 && bytes.size() < 3; --i) {
    if (tokenizer_->Kind(prompt[i - 1]) != TokenKind::kByte) break;
    bytes.insert(0, tokenizer_->Bytes(prompt[i - 1]));
    if (FirstUtf8Char(bytes).kind == Utf8Kind::kIncomplete) partial_ = bytes;
  }
  partial_of_prompt_ = partial_.size();
}

std::string_view Detokenizer::WithoutLeadingSpace(TokenId id) {
  std::string_view bytes = tokenizer_->Bytes(id);
  if (!at_start_ || bytes.empty()) return bytes;
  const bool is_space = tokenizer_->Kind(id) == TokenKind::kText && bytes.front() == ' ';
  if (!is_space || tokenizer_->leading_space() == Tokenizer::LeadingSpace::kKeep) {
    at_start_ = false;
    return bytes;
  }
  bytes.remove_prefix(1);
  at_start_ = tokenizer_->leading_space() == Tokenizer::LeadingSpace::kDropAll && bytes.empty();
  return bytes;
}

bool Detokenizer::Push(TokenId id, std::string* text) {
  if (stopped()) return true;
  ++tokens_;
  std::string_view bytes = WithoutLeadingSpace(id);
  if (tokenizer_->Kind(id) == TokenKind::kByte) {
    partial_.append(bytes);
    TakePartial(/*more_may_come=*/true, text);
    return stopped();
  }
  TakePartial(/*more_may_come=*/false, text);
  if (matchers_.empty()) {
    text->append(bytes);
    return false;
  }
  while (!bytes.empty() && !stopped()) {
    const size_t length = FirstUtf8Char(bytes).length;
    AddCharacter(bytes.substr(0, length), text);
    bytes.remove_prefix(length);
  }
  return stopped();
}

void Detokenizer::Finish(std::string* text) {
  if (stopped()) return;
  TakePartial(/*more_may_come=*/false, text);
  if (stopped()) return;
  text->append(held_);
  held_.clear();
}

std::string_view Detokenizer::matched_stop_string() const {
  return stopped() ? std::string_view(options_.stop_strings[matched_]) : std::string_view();
}

// Moves whole characters out of partial_; with nothing more to come, all of it.
void Detokenizer::TakePartial(bool more_may_come, std::string* text) {
  while (!partial_.empty() && !stopped()) {
    const auto [kind, length] = FirstUtf8Char(partial_);
    if (kind == Utf8Kind::kIncomplete && more_may_come) return;
    if (kind == Utf8Kind::kValid) {
      AddCharacter(std::string_view(partial_).substr(0, length), text);
      partial_.erase(0, length);
      partial_of_prompt_ -= std::min(partial_of_prompt_, length);
      continue;
    }
    if (partial_of_prompt_ > 0) {
      --partial_of_prompt_;
    } else {
      AddCharacter(kReplacementCharacter, text);
    }
    partial_.erase(0, 1);
  }
}

// Every stop string is whole characters, so a match begins and ends between them.
void Detokenizer::AddCharacter(std::string_view character, std::string* text) {
  if (matchers_.empty()) {
    text->append(character);
    return;
  }
  held_.append(character);
  matched_ = LongestMatch(character);
  size_t keep = 0;
  if (!stopped()) {
    for (const Matcher& matcher : matchers_) keep = std::max<size_t>(keep, matcher.matched);
  } else if (!options_.include_stop_string) {
    keep = matched_stop_string().size();
  }
  text->append(held_, 0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
}

// The longest stop string that ends with `character`, or -1. Advances every matcher.
int32_t Detokenizer::LongestMatch(std::string_view character) {
  int32_t longest = -1;
  for (size_t i = 0; i < matchers_.size(); ++i) {
    const std::string& stop = options_.stop_strings[i];
    Matcher& matcher = matchers_[i];
    for (const char byte : character) {
      while (matcher.matched > 0 && stop[matcher.matched] != byte) {
        matcher.matched = matcher.fallback[matcher.matched];
      }
      if (stop[matcher.matched] == byte) ++matcher.matched;
      if (matcher.matched < stop.size()) continue;
      matcher.matched = matcher.fallback[stop.size()];
      if (tokens_ < options_.min_tokens) continue;
      if (longest < 0 || stop.size() > options_.stop_strings[longest].size()) {
        longest = static_cast<int32_t>(i);
      }
    }
  }
  return longest;
}

}  // namespace fewbit
