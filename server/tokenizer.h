// Text to token ids and back, by a checkpoint's tokenizer.model (SentencePiece, BPE or unigram,
// with or without byte fallback). It owns the vocabulary and nothing of a request. It refuses
// tokenizer.json: a checkpoint without tokenizer.model does not load.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "scheduler/ids.h"

namespace fewbit {

class SentencePiece;

// What a token adds to the text.
enum class TokenKind : uint8_t {
  kText,     // its surface, always valid UTF-8
  kByte,     // one byte, perhaps of a longer character
  kUnknown,  // the tokenizer's mark for text that it cannot express
  kControl,  // nothing: <s>, </s>, and ids that the model has beyond the tokenizer's vocabulary
};

// Immutable after Load, so thread-safe.
class Tokenizer {
 public:
  // Reads DIRECTORY/tokenizer.model and, if there, tokenizer_config.json. `model_vocab_size` is the
  // number of rows of the embedding: a larger tokenizer is FAILED_PRECONDITION with both numbers, a
  // smaller one is fine (padded embeddings). NOT_FOUND: no tokenizer.model; PERMISSION_DENIED: not
  // readable; INVALID_ARGUMENT: a file that is not what its name says.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& directory,
                                                         int32_t model_vocab_size);
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // The most likely segmentation, never a sampled one. Names of control tokens in `text` ("</s>")
  // are ordinary text. With `add_bos` the BOS comes first; a tokenizer without BOS ignores it.
  // INVALID_ARGUMENT: `text` is not valid UTF-8.
  absl::StatusOr<std::vector<TokenId>> Encode(std::string_view text, bool add_bos) const;

  // Whether a prompt begins with BOS unless told otherwise: add_bos_token of tokenizer_config.json;
  // without the key, true for Llama-type tokenizers that have a BOS.
  bool adds_bos() const { return adds_bos_; }

  // The tokenizer's own entries; ids from here to the model's vocabulary are valid, too, but have
  // no text.
  int32_t vocab_size() const { return static_cast<int32_t>(entries_.size()); }

  // The vocabulary entry, valid UTF-8: a word begins with U+2581, bytes read <0xE2>. Ids without an
  // entry read <id 32001>.
  std::string Piece(TokenId id) const;

  // The text of a whole sequence: always valid UTF-8, each byte that belongs to no character as
  // U+FFFD; the space that the tokenizer put before the first word is dropped again. The same as
  // feeding a Detokenizer token by token.
  std::string Decode(std::span<const TokenId> ids) const;

  // The bytes that `id` adds in the middle of a text: a surface with real spaces, or one byte.
  // Empty for kControl. The view lives as long as the tokenizer.
  std::string_view Bytes(TokenId id) const;
  TokenKind Kind(TokenId id) const;

  // How a text's first word sheds the space before it: not at all, only the first token, or every
  // token until there is text.
  enum class LeadingSpace : uint8_t { kKeep, kDropOne, kDropAll };
  LeadingSpace leading_space() const { return leading_space_; }

 private:
  struct Entry {
    uint32_t offset = 0;  // into surfaces_
    uint32_t length = 0;
    TokenKind kind = TokenKind::kControl;
  };

  Tokenizer();
  const Entry* Find(TokenId id) const;
  absl::Status ReadModel(const std::string& path, int32_t model_vocab_size);
  absl::Status AddEntry(int32_t id);
  absl::Status ReadConfig(const std::string& path);

  std::unique_ptr<SentencePiece> sentence_piece_;
  std::vector<Entry> entries_;
  std::string surfaces_;
  LeadingSpace leading_space_ = LeadingSpace::kKeep;
  int32_t bos_id_ = -1;
  bool adds_bos_ = false;
};

}  // namespace fewbit
