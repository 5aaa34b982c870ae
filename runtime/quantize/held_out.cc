#include "runtime/quantize/held_out.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/eval/score_rows.h"
#include "runtime/models/decoder.h"

namespace fewbit {
namespace {

constexpr int kLogitRows = 64;  // of one product with the head

// One model and where the text stands in it. Thread rule: one caller at a time.
class Stream {
 public:
  static absl::StatusOr<std::unique_ptr<Stream>> Begin(const CheckpointReader& reader,
                                                       const CalibrationWindows& windows,
                                                       ThreadTeam* team) {
    const absl::StatusOr<Matrix> embedding = reader.Embedding();
    if (!embedding.ok()) return embedding.status();
    std::unique_ptr<Stream> stream(new Stream(reader, windows.context, team));
    stream->hidden_.resize(windows.tokens.size() * reader.spec().hidden_size);
    EmbedTokens(*embedding, windows.tokens, stream->hidden_.data());
    reader.ReleaseEnds();
    return stream;
  }

  absl::Status Advance(int layer, const std::atomic<bool>* stop) {
    const absl::StatusOr<LayerWeights> weights = reader_.Layer(layer);
    if (!weights.ok()) return weights.status();
    LayerByLayer runner(reader_.spec(), team_, isa_);
    const bool done =
        RunWindows(reader_.spec(), *weights, context_, hidden_, &runner, nullptr, stop);
    reader_.ReleaseLayer(layer);
    return done ? absl::OkStatus() : absl::CancelledError("stopped");
  }

  absl::Status End() {
    absl::StatusOr<std::vector<float>> norm = reader_.FinalNorm();
    if (!norm.ok()) return norm.status();
    final_norm_ = *std::move(norm);
    absl::StatusOr<Matrix> head = reader_.Head();
    if (!head.ok()) return head.status();
    head_ = *head;
    return absl::OkStatus();
  }

  // Logits of the tokens [begin, begin + rows), valid until the next call. After End.
  absl::StatusOr<std::span<const float>> Logits(int begin, int rows) {
    const ModelSpec& spec = reader_.spec();
    logits_.resize(static_cast<size_t>(rows) * spec.vocab_size);
    ComputeLogits(spec, final_norm_, head_,
                  hidden_.data() + static_cast<size_t>(begin) * spec.hidden_size, rows, team_, isa_,
                  logits_.data());
    for (const float logit : logits_) {
      if (std::isfinite(logit)) continue;
      return absl::DataLossError(
          absl::StrCat(reader_.directory(), ": its logits are not finite on the held-out text"));
    }
    return logits_;
  }

 private:
  Stream(const CheckpointReader& reader, int context, ThreadTeam* team)
      : reader_(reader), context_(context), team_(team) {}

  const CheckpointReader& reader_;
  const int context_;
  ThreadTeam* const team_;
  const cpu::Isa isa_ = cpu::BestIsa();
  std::vector<float> hidden_;  // [windows * context, E]
  std::vector<float> final_norm_;
  Matrix head_;
  std::vector<float> logits_;
};

absl::Status CheckPair(const ModelSpec& model, const CheckpointReader* original) {
  if (original == nullptr) return absl::OkStatus();
  const ModelSpec& other = original->spec();
  const struct {
    const char* what;
    int of_model, of_original;
  } sizes[] = {{"layers", model.num_layers, other.num_layers},
               {"hidden_size", model.hidden_size, other.hidden_size},
               {"vocab_size", model.vocab_size, other.vocab_size}};
  for (const auto& size : sizes) {
    if (size.of_model == size.of_original) continue;
    return absl::InvalidArgumentError(absl::StrCat("the model has ", size.what, " ", size.of_model,
                                                   ", ", original->directory(), " has ",
                                                   size.of_original));
  }
  return absl::OkStatus();
}

// Takes the rows of logits of one window, a few at a time, in order.
class WindowScorer {
 public:
  WindowScorer(const CalibrationWindows& windows, ThreadTeam* team, HeldOut* result)
      : windows_(windows), team_(team), result_(*result) {}

  void Add(int window, int begin, int rows, std::span<const float> logits,
           std::span<const float> original) {
    const std::span<const TokenId> tokens =
        std::span(windows_.tokens)
            .subspan(static_cast<size_t>(window) * windows_.context, windows_.context);
    const size_t vocab = logits.size() / rows;
    const auto first = [&](std::span<const float> rows_of, int count) {
      return rows_of.empty() ? rows_of : rows_of.first(count * vocab);
    };
    // The last token of a window predicts nothing.
    const int scored = std::min(rows, windows_.context - 1 - begin);
    scores_.Add(first(logits, scored), first(original, scored), tokens.subspan(begin + 1, scored),
                team_);
    const int prompt = std::min(Canary::kTokens, windows_.context);
    const int last = prompt - 1 - begin;
    if (window >= Canary::kPrompts || last < 0 || last >= rows) return;
    CanaryPrompt entry;
    entry.token_ids.assign(tokens.begin(), tokens.begin() + prompt);
    entry.expected = TopOf(logits.subspan(last * vocab, vocab), Canary::kTop);
    if (!original.empty()) {
      entry.original = TopOf(original.subspan(last * vocab, vocab), Canary::kTop);
    }
    result_.canary.prompts.push_back(std::move(entry));
  }

  void Finish() {
    result_.score = scores_.Score();
    result_.score.windows = windows_.count();
  }

 private:
  const CalibrationWindows& windows_;
  ThreadTeam* const team_;
  HeldOut& result_;
  RowScores scores_;
};

}  // namespace

absl::StatusOr<HeldOut> MeasureHeldOut(const CheckpointReader& model,
                                       const CheckpointReader* original,
                                       const CalibrationWindows& windows, ThreadTeam* team,
                                       const std::function<absl::Status(int layer)>& step,
                                       const std::atomic<bool>* stop) {
  if (absl::Status status = CheckPair(model.spec(), original); !status.ok()) return status;
  if (windows.count() == 0 || windows.context < 2) {
    return absl::InvalidArgumentError("no held-out text: there is no token to predict");
  }
  std::vector<std::unique_ptr<Stream>> streams;
  for (const CheckpointReader* reader : {&model, original}) {
    if (reader == nullptr) continue;
    auto stream = Stream::Begin(*reader, windows, team);
    if (!stream.ok()) return stream.status();
    streams.push_back(*std::move(stream));
  }
  for (int layer = 0; layer < model.spec().num_layers; ++layer) {
    if (step) {
      if (absl::Status status = step(layer); !status.ok()) return status;
    }
    for (const auto& stream : streams) {
      if (absl::Status status = stream->Advance(layer, stop); !status.ok()) return status;
    }
  }
  for (const auto& stream : streams) {
    if (absl::Status status = stream->End(); !status.ok()) return status;
  }
  HeldOut result;
  WindowScorer scorer(windows, team, &result);
  for (int window = 0; window < windows.count(); ++window) {
    for (int begin = 0; begin < windows.context; begin += kLogitRows) {
      const int rows = std::min(kLogitRows, windows.context - begin);
      std::span<const float> logits[2];
      for (size_t s = 0; s < streams.size(); ++s) {
        const auto made = streams[s]->Logits(window * windows.context + begin, rows);
        if (!made.ok()) return made.status();
        logits[s] = *made;
      }
      scorer.Add(window, begin, rows, logits[0], logits[1]);
    }
  }
  scorer.Finish();
  return result;
}

}  // namespace fewbit
