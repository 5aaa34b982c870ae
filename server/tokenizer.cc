#include "server/tokenizer.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "nlohmann/json.hpp"
#include "server/detokenizer.h"
#include "server/sentence_piece.h"
#include "server/utf8.h"

namespace fewbit {
namespace {

constexpr std::string_view kModelFile = "tokenizer.model";
constexpr std::string_view kConfigFile = "tokenizer_config.json";
// The largest known vocabularies take 5 MB.
constexpr uint64_t kMaxFileBytes = uint64_t{64} << 20;
constexpr char kWordStart[] = "\xE2\x96\x81";  // U+2581, SentencePiece's space

// NOT_FOUND, PERMISSION_DENIED and the size limit name `path`.
absl::StatusOr<std::string> ReadFile(const std::string& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  std::error_code error;
  const uint64_t size = std::filesystem::file_size(path, error);
  if (error) return absl::ErrnoToStatus(error.value(), absl::StrCat("cannot read ", path));
  if (size > kMaxFileBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " has ", size, " bytes; the limit is ", kMaxFileBytes));
  }
  std::string content(size, '\0');
  if (!file.read(content.data(), static_cast<std::streamsize>(size))) {
    return absl::DataLossError(absl::StrCat(path, " ended while it was read"));
  }
  return content;
}

TokenKind KindOf(SentencePiece::PieceType type) {
  switch (type) {
    case SentencePiece::PieceType::kText:
      return TokenKind::kText;
    case SentencePiece::PieceType::kByte:
      return TokenKind::kByte;
    case SentencePiece::PieceType::kUnknown:
      return TokenKind::kUnknown;
    case SentencePiece::PieceType::kControl:
      break;
  }
  return TokenKind::kControl;
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// "<0xE2>" -> 0xE2.
std::optional<char> ByteOf(std::string_view piece) {
  if (piece.size() != 6 || piece.substr(0, 3) != "<0x" || piece[5] != '>') return std::nullopt;
  const int high = HexDigit(piece[3]);
  const int low = HexDigit(piece[4]);
  if (high < 0 || low < 0) return std::nullopt;
  return static_cast<char>(high * 16 + low);
}

// bos_token is a piece, or an object whose content is one. Empty: neither.
std::string BosName(const nlohmann::json& config) {
  const auto bos = config.find("bos_token");
  if (bos == config.end()) return "";
  if (bos->is_string()) return bos->get<std::string>();
  if (!bos->is_object()) return "";
  const auto content = bos->find("content");
  return content != bos->end() && content->is_string() ? content->get<std::string>() : "";
}

}  // namespace

Tokenizer::Tokenizer() : sentence_piece_(std::make_unique<SentencePiece>()) {}
Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& directory,
                                                           int32_t model_vocab_size) {
  namespace fs = std::filesystem;
  const fs::path root(directory);
  std::error_code ignored;  // what cannot be looked at fails to open below, with the reason
  if (!fs::exists(root / kModelFile, ignored) && fs::exists(root / "tokenizer.json", ignored)) {
    return absl::NotFoundError(
        absl::StrCat(directory,
                     " has tokenizer.json but no tokenizer.model: only SentencePiece "
                     "tokenizers are read; get the checkpoint's tokenizer.model"));
  }
  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer());
  absl::Status status = tokenizer->ReadModel((root / kModelFile).string(), model_vocab_size);
  if (!status.ok()) return status;
  status = tokenizer->ReadConfig((root / kConfigFile).string());
  if (!status.ok()) return status;
  return tokenizer;
}

absl::Status Tokenizer::ReadModel(const std::string& path, int32_t model_vocab_size) {
  const absl::StatusOr<std::string> content = ReadFile(path);
  if (!content.ok()) return content.status();
  const std::string error = sentence_piece_->Parse(*content);
  if (!error.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a SentencePiece model: ", error));
  }
  const int32_t num_pieces = sentence_piece_->num_pieces();
  if (num_pieces > model_vocab_size) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, " has ", num_pieces, " entries, more than the model's vocabulary of ",
                     model_vocab_size));
  }
  if (sentence_piece_->has_denormalizer()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " has a denormalizer, which streamed text cannot follow"));
  }
  entries_.reserve(num_pieces);
  for (int32_t id = 0; id < num_pieces; ++id) {
    const absl::Status status = AddEntry(id);
    if (!status.ok()) return absl::InvalidArgumentError(absl::StrCat(path, ": ", status.message()));
  }
  if (sentence_piece_->removes_extra_spaces()) {
    leading_space_ = LeadingSpace::kDropAll;
  } else if (sentence_piece_->adds_leading_space()) {
    leading_space_ = LeadingSpace::kDropOne;
  }
  bos_id_ = sentence_piece_->bos_id();
  return absl::OkStatus();
}

absl::Status Tokenizer::AddEntry(int32_t id) {
  const std::string& piece = sentence_piece_->piece(id);
  const TokenKind kind = KindOf(sentence_piece_->type(id));
  if (!IsValidUtf8(piece)) {
    return absl::InvalidArgumentError(absl::StrCat("entry ", id, " is not valid UTF-8"));
  }
  std::string surface;
  if (kind == TokenKind::kText) {
    surface = absl::StrReplaceAll(piece, {{kWordStart, " "}});
  } else if (kind == TokenKind::kUnknown) {
    surface = sentence_piece_->unknown_surface();
    if (!IsValidUtf8(surface)) {
      return absl::InvalidArgumentError("the surface of unknown text is not valid UTF-8");
    }
  } else if (kind == TokenKind::kByte) {
    const std::optional<char> byte = ByteOf(piece);
    if (!byte.has_value()) {
      return absl::InvalidArgumentError(
          absl::StrCat("entry ", id, " '", piece, "' is a byte but not written like <0xE2>"));
    }
    surface = *byte;
  }
  entries_.push_back(
      {static_cast<uint32_t>(surfaces_.size()), static_cast<uint32_t>(surface.size()), kind});
  surfaces_ += surface;
  return absl::OkStatus();
}

absl::Status Tokenizer::ReadConfig(const std::string& path) {
  nlohmann::json config = nlohmann::json::object();
  const absl::StatusOr<std::string> content = ReadFile(path);
  if (content.ok()) {
    config = nlohmann::json::parse(*content, nullptr, /*allow_exceptions=*/false);
    if (!config.is_object()) {
      return absl::InvalidArgumentError(absl::StrCat(path, " is not a JSON object"));
    }
  } else if (!absl::IsNotFound(content.status())) {
    return content.status();
  }
  if (bos_id_ < 0) {
    const int32_t id = sentence_piece_->id_of(BosName(config));
    if (Find(TokenId{id}) != nullptr && Kind(TokenId{id}) == TokenKind::kControl) bos_id_ = id;
  }
  const auto add_bos = config.find("add_bos_token");
  if (add_bos != config.end() && !add_bos->is_null()) {
    if (!add_bos->is_boolean()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": add_bos_token is ", add_bos->dump(), ", not true or false"));
    }
    adds_bos_ = bos_id_ >= 0 && add_bos->get<bool>();
    return absl::OkStatus();
  }
  // Without the key the class decides: Llama's own (also the default) adds a BOS, others bring
  // rules of their own.
  const auto name = config.find("tokenizer_class");
  const bool is_llama = name == config.end() || !name->is_string() ||
                        name->get_ref<const std::string&>().find("Llama") != std::string::npos;
  adds_bos_ = bos_id_ >= 0 && is_llama;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<TokenId>> Tokenizer::Encode(std::string_view text, bool add_bos) const {
  if (!IsValidUtf8(text)) return absl::InvalidArgumentError("the text is not valid UTF-8");
  std::vector<int32_t> ids;
  const std::string error = sentence_piece_->Encode(text, &ids);
  if (!error.empty()) return absl::InternalError(absl::StrCat("SentencePiece: ", error));
  std::vector<TokenId> tokens;
  tokens.reserve(ids.size() + 1);
  if (add_bos && bos_id_ >= 0) tokens.push_back(TokenId{bos_id_});
  for (const int32_t id : ids) tokens.push_back(TokenId{id});
  return tokens;
}

const Tokenizer::Entry* Tokenizer::Find(TokenId id) const {
  const auto index = static_cast<uint32_t>(ToInt(id));  // negative ids become large
  return index < entries_.size() ? &entries_[index] : nullptr;
}

std::string Tokenizer::Piece(TokenId id) const {
  if (Find(id) == nullptr) return absl::StrCat("<id ", ToInt(id), ">");
  return sentence_piece_->piece(ToInt(id));
}

std::string_view Tokenizer::Bytes(TokenId id) const {
  const Entry* entry = Find(id);
  if (entry == nullptr) return {};
  return std::string_view(surfaces_).substr(entry->offset, entry->length);
}

TokenKind Tokenizer::Kind(TokenId id) const {
  const Entry* entry = Find(id);
  return entry == nullptr ? TokenKind::kControl : entry->kind;
}

std::string Tokenizer::Decode(std::span<const TokenId> ids) const {
  std::string text;
  Detokenizer detokenizer(this, {});
  for (const TokenId id : ids) detokenizer.Push(id, &text);
  detokenizer.Finish(&text);
  return text;
}

}  // namespace fewbit
