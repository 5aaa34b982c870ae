// bench_decode --model DIR [--compare DIR] : what the CPU executor does with a checkpoint, as
// tokens per second.
//
// Rows: decode with 1, 4 and 16 sequences (--batches) at a context of about --context tokens (all
// sequences' tokens counted), and the prefill of --prefill tokens with one sampled row. Each round
// measures every row once on every model, so that a change of the machine's speed hits all alike;
// the table shows medians over the rounds and ratios made inside a round before the median is
// taken.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "runtime/cpu_executor.h"
#include "runtime/models/model.h"

ABSL_FLAG(std::string, model, "", "checkpoint directory, quantized or not");
ABSL_FLAG(std::string, compare, "", "second checkpoint; ratios are model / compare");
ABSL_FLAG(int, threads, 0, "threads; 0: one per processor");
ABSL_FLAG(int, rounds, 9, "rounds");
ABSL_FLAG(int, steps, 48, "decode steps per measurement");
ABSL_FLAG(int, context, 128, "tokens in the cache when decoding begins");
ABSL_FLAG(std::vector<std::string>, batches, (std::vector<std::string>{"1", "4", "16"}),
          "sequences of the decode rows");
ABSL_FLAG(int, prefill, 512, "tokens of the prefill row");

namespace fewbit {
namespace {

// The --batches of the decode rows; the first is what others are compared with.
std::vector<int> Batches() {
  std::vector<int> out;
  for (const std::string& text : absl::GetFlag(FLAGS_batches))
    out.push_back(std::atoi(text.c_str()));
  return out;
}

// A model, its executor and one batch that is filled again for every step.
class Subject {
 public:
  static std::unique_ptr<Subject> Open(const std::string& directory, int max_context,
                                       int sequences) {
    auto model = LoadModel(directory);
    if (!model.ok()) return Fail(directory, model.status());
    CpuExecutorOptions options;
    options.threads = absl::GetFlag(FLAGS_threads);
    options.max_sequences = sequences;
    options.max_step_tokens = std::max({512, 16 * sequences, absl::GetFlag(FLAGS_prefill)});
    options.max_context = std::min(max_context, (*model)->spec.max_context);
    auto executor = CpuExecutor::Create(model->get(), options);
    if (!executor.ok()) return Fail(directory, executor.status());
    return std::unique_ptr<Subject>(new Subject(*std::move(model), *std::move(executor)));
  }

  const Model& model() const { return *model_; }
  const ExecutorInfo& info() const { return executor_->info(); }

  // Seconds for one step of `tokens` tokens at `position` of each of the first `sequences`
  // sequences.
  double Step(int sequences, int position, int tokens) {
    batch_.token_ids.clear();
    batch_.positions.clear();
    batch_.kv_len.clear();
    batch_.slots.clear();
    batch_.samples.clear();
    batch_.q_start.assign(1, 0);
    for (int s = 0; s < sequences; ++s) {
      for (int t = position; t < position + tokens; ++t) {
        batch_.token_ids.push_back(TokenId((s * 7919 + t * 104729) % model_->spec.vocab_size));
        batch_.positions.push_back(t);
      }
      batch_.q_start.push_back(static_cast<int32_t>(batch_.token_ids.size()));
      batch_.kv_len.push_back(position + tokens);
      batch_.slots.push_back(s);
      SampleRow row;
      row.token_row = batch_.q_start.back() - 1;
      row.position = position + tokens;
      row.request = &request_;
      batch_.samples.push_back(row);
    }
    const auto begin = std::chrono::steady_clock::now();
    const StepHandle handle = executor_->Launch(batch_);
    if (const absl::Status status = executor_->Collect(handle, &result_); !status.ok()) {
      std::fprintf(stderr, "%s\n", status.ToString().c_str());
      std::exit(1);
    }
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

  double DecodeRate(int sequences) {
    const int context = absl::GetFlag(FLAGS_context);
    const int steps = absl::GetFlag(FLAGS_steps);
    double seconds = 0.0;
    for (int i = 0; i < steps; ++i) seconds += Step(sequences, context + i, 1);
    return sequences * steps / seconds;
  }

  double PrefillRate() {
    const int tokens = absl::GetFlag(FLAGS_prefill);
    return tokens / Step(1, 0, tokens);
  }

  // Real keys and values in every cache, and a first pass over everything.
  void WarmUp() {
    for (int t = 0; t < absl::GetFlag(FLAGS_context); t += 16) {
      Step(info().max_sequences, t, 16);
    }
    Step(1, 0, absl::GetFlag(FLAGS_prefill));
  }

 private:
  Subject(std::unique_ptr<Model> model, std::unique_ptr<CpuExecutor> executor)
      : model_(std::move(model)), executor_(std::move(executor)) {
    const ExecutorInfo& info = executor_->info();
    const int per_sequence = (info.max_context + info.block_tokens - 1) / info.block_tokens;
    batch_.block_table_stride = per_sequence;
    for (int b = 0; b < info.max_sequences * per_sequence; ++b)
      batch_.block_table.push_back(BlockId(b));
  }

  static std::unique_ptr<Subject> Fail(const std::string& directory, const absl::Status& status) {
    std::fprintf(stderr, "%s: %s\n", directory.c_str(), status.ToString().c_str());
    return nullptr;
  }

  std::unique_ptr<Model> model_;
  std::unique_ptr<CpuExecutor> executor_;
  Request request_;
  ForwardBatch batch_;
  StepResult result_;
};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

std::vector<double> Ratios(const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> out;
  for (size_t i = 0; i < a.size(); ++i) out.push_back(a[i] / b[i]);
  return out;
}

// One line of the table: rates of every subject by round.
struct Row {
  std::string name;
  std::vector<std::vector<double>> rates;  // [subjects][rounds]
};

void Print(const std::vector<std::unique_ptr<Subject>>& subjects, const std::vector<Row>& rows) {
  for (const auto& subject : subjects) {
    std::printf(
        "%s, %s, linear layers %.2f bits, weights %.1f MB\n", subject->model().spec.family.c_str(),
        subject->info().device.c_str(),
        subject->model().quantization.quantized ? subject->model().quantization.average_bits : 16.0,
        subject->info().weight_bytes / 1e6);
  }
  const bool two = subjects.size() == 2;
  std::printf("\n| %-18s | %12s | %9s |", "row", "tokens/s", "x first");
  if (two) std::printf(" %12s | %9s | %9s |", "compare", "x first", "ratio");
  std::printf("\n|%s|%s|%s|", std::string(20, '-').c_str(), std::string(14, '-').c_str(),
              std::string(11, '-').c_str());
  if (two) {
    std::printf("%s|%s|%s|", std::string(14, '-').c_str(), std::string(11, '-').c_str(),
                std::string(11, '-').c_str());
  }
  std::printf("\n");
  for (const Row& row : rows) {
    std::printf("| %-18s |", row.name.c_str());
    for (size_t m = 0; m < subjects.size(); ++m) {
      std::printf(" %12.0f | %9.2f |", Median(row.rates[m]),
                  Median(Ratios(row.rates[m], rows[0].rates[m])));
    }
    if (two) std::printf(" %9.2f |", Median(Ratios(row.rates[0], row.rates[1])));
    std::printf("\n");
  }
}

int Main() {
  const std::vector<int> batches = Batches();
  if (batches.empty() || *std::min_element(batches.begin(), batches.end()) < 1) {
    std::fprintf(stderr, "bench_decode: --batches must be a list of numbers from 1\n");
    return 1;
  }
  std::vector<std::unique_ptr<Subject>> subjects;
  const int context = std::max(absl::GetFlag(FLAGS_context) + absl::GetFlag(FLAGS_steps),
                               absl::GetFlag(FLAGS_prefill));
  for (const std::string& directory : {absl::GetFlag(FLAGS_model), absl::GetFlag(FLAGS_compare)}) {
    if (directory.empty()) continue;
    subjects.push_back(
        Subject::Open(directory, context, *std::max_element(batches.begin(), batches.end())));
    if (subjects.back() == nullptr) return 1;
    subjects.back()->WarmUp();
  }
  if (subjects.empty()) {
    std::fprintf(stderr, "bench_decode: --model is needed\n");
    return 1;
  }
  std::vector<Row> rows;
  for (const int batch : batches) {
    rows.push_back({"decode, batch " + std::to_string(batch), {}});
  }
  rows.push_back({"prefill, " + std::to_string(absl::GetFlag(FLAGS_prefill)), {}});
  for (Row& row : rows) row.rates.resize(subjects.size());
  for (int round = 0; round < absl::GetFlag(FLAGS_rounds); ++round) {
    for (size_t i = 0; i < rows.size(); ++i) {
      for (size_t m = 0; m < subjects.size(); ++m) {
        rows[i].rates[m].push_back(i < batches.size() ? subjects[m]->DecodeRate(batches[i])
                                                      : subjects[m]->PrefillRate());
      }
    }
  }
  Print(subjects, rows);
  return 0;
}

}  // namespace
}  // namespace fewbit

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage("bench_decode --model DIR [--compare DIR]");
  absl::ParseCommandLine(argc, argv);
  return fewbit::Main();
}
