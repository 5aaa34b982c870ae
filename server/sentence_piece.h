// SentencePiece behind a plain interface: the only files that see its headers are sentence_piece.cc
// and tests. Its header puts a string_view of its own into namespace absl, so no Abseil may stand
// beside it; hence error texts instead of Status here. It reads a serialized model and knows
// nothing of files, directories or the checkpoint.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace fewbit {

// Immutable after Parse, so thread-safe.
class SentencePiece {
 public:
  enum class PieceType : uint8_t { kText, kByte, kUnknown, kControl };

  SentencePiece();
  ~SentencePiece();
  SentencePiece(const SentencePiece&) = delete;
  SentencePiece& operator=(const SentencePiece&) = delete;

  // Returns what is wrong with `serialized`, empty if nothing is.
  std::string Parse(const std::string& serialized);

  int32_t num_pieces() const;
  const std::string& piece(int32_t id) const;  // as in the file
  PieceType type(int32_t id) const;
  int32_t id_of(std::string_view piece) const;  // the unknown id if there is no such piece
  int32_t bos_id() const;                       // -1: none
  const std::string& unknown_surface() const;   // what an unknown token reads as
  bool adds_leading_space() const;              // puts a space before the first word
  bool removes_extra_spaces() const;
  bool has_denormalizer() const;

  // The most likely segmentation of valid UTF-8. Returns what went wrong, empty if nothing did.
  std::string Encode(std::string_view text, std::vector<int32_t>* ids) const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fewbit
