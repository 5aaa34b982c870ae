#include "tests/server/sentence_piece_oracle.h"

#include <sentencepiece_model.pb.h>
#include <sentencepiece_processor.h>

#include <cstdlib>

namespace fewbit::testing {

class SentencePieceOracle::Impl {
 public:
  sentencepiece::SentencePieceProcessor processor;
};

SentencePieceOracle::SentencePieceOracle(const std::string& model_file)
    : impl_(std::make_unique<Impl>()) {
  if (!impl_->processor.Load(model_file).ok()) std::abort();
}
SentencePieceOracle::~SentencePieceOracle() = default;

std::string SentencePieceOracle::Decode(const std::vector<int32_t>& ids) const {
  std::string text;
  if (!impl_->processor.Decode(ids, &text).ok()) std::abort();
  return text;
}

std::string ToyModel::Serialize() const {
  using Proto = sentencepiece::ModelProto;
  Proto model;
  model.mutable_trainer_spec()->set_unk_surface(unknown_surface);
  model.mutable_trainer_spec()->set_model_type(sentencepiece::TrainerSpec::UNIGRAM);
  if (!has_bos) model.mutable_trainer_spec()->set_bos_piece("<none>");
  model.mutable_normalizer_spec()->set_add_dummy_prefix(add_dummy_prefix);
  model.mutable_normalizer_spec()->set_remove_extra_whitespaces(remove_extra_whitespaces);
  const auto add = [&model](const std::string& text, Proto::SentencePiece::Type type) {
    auto* piece = model.add_pieces();
    piece->set_piece(text);
    piece->set_type(type);
    piece->set_score(-static_cast<float>(model.pieces_size()));
  };
  add("<unk>", Proto::SentencePiece::UNKNOWN);
  add("<s>", Proto::SentencePiece::CONTROL);
  add("</s>", Proto::SentencePiece::CONTROL);
  for (const Piece& piece : pieces) {
    add(piece.text, piece.type == Piece::kByte      ? Proto::SentencePiece::BYTE
                    : piece.type == Piece::kControl ? Proto::SentencePiece::CONTROL
                                                    : Proto::SentencePiece::NORMAL);
  }
  return model.SerializeAsString();
}

}  // namespace fewbit::testing
