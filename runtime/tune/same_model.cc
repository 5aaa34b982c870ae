#include "runtime/tune/same_model.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/linear.h"

namespace fewbit::tune {
namespace {

constexpr int kRowsCompared = 64;
// Of the squared norm: 8-bit rounding costs about 1e-4 of it, another model all of it.
constexpr double kMostDifference = 0.01;

absl::Status CheckShapes(const CheckpointReader& original, const CheckpointReader& quantized) {
  const ModelSpec& a = original.spec();
  const ModelSpec& b = quantized.spec();
  const struct {
    const char* what;
    double original, quantized;
  } numbers[] = {{"layers", double(a.num_layers), double(b.num_layers)},
                 {"hidden size", double(a.hidden_size), double(b.hidden_size)},
                 {"intermediate size", double(a.ffn_size), double(b.ffn_size)},
                 {"attention heads", double(a.num_heads), double(b.num_heads)},
                 {"KV heads", double(a.num_kv_heads), double(b.num_kv_heads)},
                 {"head dimensions", double(a.head_dim), double(b.head_dim)},
                 {"vocabulary", double(a.vocab_size), double(b.vocab_size)},
                 {"sliding window", double(a.sliding_window), double(b.sliding_window)},
                 {"rope dimensions", double(a.rope.rotary_dim), double(b.rope.rotary_dim)},
                 {"rope theta", a.rope.theta, b.rope.theta},
                 {"rope factor", a.rope.factor, b.rope.factor},
                 {"norm epsilon", double(a.rms_eps), double(b.rms_eps)},
                 {"biases", double(a.qkv_bias), double(b.qkv_bias)},
                 {"norms of q and k", double(a.qk_norm), double(b.qk_norm)},
                 {"tied output head", double(a.tied_head), double(b.tied_head)},
                 {"begin-of-text token", double(ToInt(a.bos)), double(ToInt(b.bos))}};
  if (a.family != b.family) {
    return absl::InvalidArgumentError(absl::StrCat(quantized.directory(), " is a ", b.family, ", ",
                                                   original.directory(), " a ", a.family));
  }
  for (const auto& number : numbers) {
    if (number.original == number.quantized) continue;
    return absl::InvalidArgumentError(absl::StrCat(quantized.directory(), " was not made from ",
                                                   original.directory(), ": ", number.what, ": ",
                                                   number.quantized, " and ", number.original));
  }
  return absl::OkStatus();
}

absl::Status CheckEmbeddings(const CheckpointReader& original, const CheckpointReader& quantized) {
  const absl::StatusOr<Matrix> theirs = original.Embedding();
  if (!theirs.ok()) return theirs.status();
  const absl::StatusOr<Matrix> ours = quantized.Embedding();
  if (!ours.ok()) return ours.status();
  const int rows = MatrixRows(*theirs);
  std::vector<float> a(static_cast<size_t>(MatrixCols(*theirs))), b(a.size());
  double difference = 0.0, norm = 0.0;
  for (int i = 0; i < std::min(rows, kRowsCompared); ++i) {
    const int row = static_cast<int>(int64_t{rows} * i / std::min(rows, kRowsCompared));
    cpu::DequantizeRow(*theirs, row, a.data());
    cpu::DequantizeRow(*ours, row, b.data());
    for (size_t k = 0; k < a.size(); ++k) {
      difference += double{a[k] - b[k]} * (a[k] - b[k]);
      norm += double{a[k]} * a[k];
    }
  }
  if (difference <= kMostDifference * norm) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(quantized.directory(), " was not made from ",
                                                 original.directory(),
                                                 ": their embeddings differ"));
}

}  // namespace

absl::Status CheckSameModel(const CheckpointReader& original, const CheckpointReader& quantized) {
  if (original.quantization().quantized) {
    return absl::FailedPreconditionError(
        absl::StrCat(original.directory(), " is quantized; model must be the original that ",
                     quantized.directory(), " was made from"));
  }
  if (!quantized.quantization().quantized) {
    return absl::FailedPreconditionError(
        absl::StrCat(quantized.directory(), " is not quantized; there are no scales to tune"));
  }
  if (absl::Status status = CheckShapes(original, quantized); !status.ok()) return status;
  return CheckEmbeddings(original, quantized);
}

}  // namespace fewbit::tune
