#include "server/sentence_piece.h"

#include <sentencepiece_model.pb.h>
#include <sentencepiece_processor.h>

namespace fewbit {

class SentencePiece::Impl {
 public:
  sentencepiece::SentencePieceProcessor processor;

  const sentencepiece::ModelProto& model() const { return processor.model_proto(); }
};

SentencePiece::SentencePiece() : impl_(std::make_unique<Impl>()) {}
SentencePiece::~SentencePiece() = default;

std::string SentencePiece::Parse(const std::string& serialized) {
  // The library's own parse failure says no more than "INTERNAL", and it takes an empty message for
  // a model.
  auto model = std::make_unique<sentencepiece::ModelProto>();
  if (!model->ParseFromString(serialized)) return "its bytes do not parse";
  if (model->pieces_size() == 0) return "it has no pieces";
  const auto status = impl_->processor.Load(std::move(model));
  return status.ok() ? "" : status.message();
}

int32_t SentencePiece::num_pieces() const { return impl_->model().pieces_size(); }

const std::string& SentencePiece::piece(int32_t id) const {
  return impl_->model().pieces(id).piece();
}

SentencePiece::PieceType SentencePiece::type(int32_t id) const {
  using Piece = sentencepiece::ModelProto::SentencePiece;
  switch (impl_->model().pieces(id).type()) {
    case Piece::BYTE:
      return PieceType::kByte;
    case Piece::UNKNOWN:
      return PieceType::kUnknown;
    case Piece::CONTROL:
      return PieceType::kControl;
    default:
      return PieceType::kText;
  }
}

int32_t SentencePiece::id_of(std::string_view piece) const {
  return impl_->processor.PieceToId(piece);
}

int32_t SentencePiece::bos_id() const { return impl_->processor.bos_id(); }

const std::string& SentencePiece::unknown_surface() const {
  return impl_->model().trainer_spec().unk_surface();
}

bool SentencePiece::adds_leading_space() const {
  return impl_->model().normalizer_spec().add_dummy_prefix();
}

bool SentencePiece::removes_extra_spaces() const {
  return impl_->model().normalizer_spec().remove_extra_whitespaces();
}

bool SentencePiece::has_denormalizer() const {
  return !impl_->model().denormalizer_spec().precompiled_charsmap().empty();
}

std::string SentencePiece::Encode(std::string_view text, std::vector<int32_t>* ids) const {
  const auto status = impl_->processor.Encode(text, ids);
  return status.ok() ? "" : status.message();
}

}  // namespace fewbit
