// Turns one request's tokens into text as they come: bytes of an unfinished character wait for the
// rest, text that may be the beginning of a stop string waits until that is decided, and everything
// handed out is valid UTF-8. It depends only on the token sequence, never on how it was cut into
// steps or messages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "scheduler/ids.h"
#include "server/tokenizer.h"

namespace fewbit {

struct DetokenizerOptions {
  // The first of these to be complete in the generated text ends it; of several complete at the
  // same character the longest. Each is non-empty valid UTF-8. They are looked for in generated
  // text only, not in the prompt.
  std::vector<std::string> stop_strings;
  // The matched string stays in the text.
  bool include_stop_string = false;
  // A stop string counts only if its last character comes with this token or a later one (the first
  // generated token is 1).
  int32_t min_tokens = 0;
};

// Owned by one stream, used by one thread at a time. `tokenizer` outlives it.
class Detokenizer {
 public:
  // `prompt`: what the generated tokens continue. After a prompt with text the first word keeps its
  // space, and a character whose first bytes end the prompt is handed out whole with the output.
  // Empty: the tokens are a text of their own, as for Tokenizer::Decode.
  Detokenizer(const Tokenizer* tokenizer, std::span<const TokenId> prompt,
              DetokenizerOptions options);
  // No stop strings.
  Detokenizer(const Tokenizer* tokenizer, std::span<const TokenId> prompt);

  // Appends to `text` what `id` made certain, often nothing. Returns true if a stop string ends the
  // text here: matched_stop_string() is set, the text is complete, and later calls add nothing and
  // return true.
  bool Push(TokenId id, std::string* text);

  // Appends what was waiting: there will be no more tokens. Unfinished bytes read U+FFFD. Adds
  // nothing after a stop.
  void Finish(std::string* text);

  bool stopped() const { return matched_ >= 0; }
  // The entry of stop_strings that ended the text; empty if none did.
  std::string_view matched_stop_string() const;

 private:
  // Knuth, Morris and Pratt's matcher ("Fast pattern matching in strings", 1977), one per stop
  // string: how many of its bytes the text so far ends with.
  struct Matcher {
    std::vector<uint16_t> fallback;  // [length + 1]: of a matched prefix, the longest shorter one
                                     // that is also its suffix
    uint16_t matched = 0;
  };

  void NotePrompt(std::span<const TokenId> prompt);
  std::string_view WithoutLeadingSpace(TokenId id);
  void TakePartial(bool more_may_come, std::string* text);
  void AddCharacter(std::string_view character, std::string* text);
  int32_t LongestMatch(std::string_view character);

  const Tokenizer* tokenizer_;
  DetokenizerOptions options_;
  std::vector<Matcher> matchers_;  // one per stop string
  std::string partial_;  // bytes of a character that is not complete; at most 3 between calls
  size_t partial_of_prompt_ =
      0;                  // how many of them came with the prompt: those never read U+FFFD here
  std::string held_;      // whole characters that may begin a stop string
  int32_t tokens_ = 0;    // pushed
  int32_t matched_ = -1;  // index into stop_strings
  bool at_start_ = true;  // no text yet: a leading space is the tokenizer's
};

}  // namespace fewbit
