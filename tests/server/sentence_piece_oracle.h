// SentencePiece's own answers, and small models made on the spot, for the tests of our tokenizer.
// In files of its own because the library's header cannot stand beside Abseil's
// (server/sentence_piece.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace fewbit::testing {

// Thread-safe after construction.
class SentencePieceOracle {
 public:
  explicit SentencePieceOracle(const std::string& model_file);
  ~SentencePieceOracle();

  std::string Decode(const std::vector<int32_t>& ids) const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// A unigram model: <unk>, <s> and </s>, then the pieces.
struct ToyModel {
  struct Piece {
    std::string text;
    enum Type { kNormal, kByte, kControl } type = kNormal;
  };
  std::vector<Piece> pieces;
  bool has_bos = true;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = false;
  std::string unknown_surface = " ? ";

  std::string Serialize() const;
};

}  // namespace fewbit::testing
