// Time and memory of fewbit-quantize by the shape of the model: writes a checkpoint of random bf16
// weights, a file per tensor and never more than one tensor per thread in memory, quantizes it, and
// prints the time of each layer and the peak of resident memory as the system counts it.
//   quantize_scale --dir=DIR [--shape=llama-2-70b] [--layers=2] [--windows=4] [--context=512] ...
#include <fcntl.h>
#include <malloc.h>
#include <sys/resource.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "runtime/models/arch_table.h"
#include "runtime/products/pieces.h"
#include "runtime/quantize/checkpoint_quantizer.h"
#include "runtime/weights/safetensors_writer.h"

ABSL_FLAG(std::string, dir, "", "directory to work in; needs room for the checkpoint");
ABSL_FLAG(std::string, shape, "llama-2-70b",
          "llama-2-70b, llama-2-7b, tinyllama-1.1b, 0.4b or tiny");
ABSL_FLAG(int, layers, 2, "decoder layers; 0: all of the model");
ABSL_FLAG(std::string, method, fewbit::QuantizeOptions().method, "as fewbit-quantize");
ABSL_FLAG(int, windows, 4, "calibration windows");
ABSL_FLAG(int, probe_windows, 1, "as fewbit-quantize");
ABSL_FLAG(int, held_out_windows, 1, "as fewbit-quantize");
ABSL_FLAG(int, context, 512, "tokens per window");
ABSL_FLAG(int, threads, 0, "0: one per processor");
ABSL_FLAG(int, embedding_bits, 16, "8 or 16");

namespace fewbit {
namespace {

struct Shape {
  const char* name;
  int hidden, heads, kv_heads, ffn, layers, vocab;
};
constexpr Shape kShapes[] = {{"llama-2-70b", 8192, 64, 8, 28672, 80, 32000},
                             {"llama-2-7b", 4096, 32, 32, 11008, 32, 32000},
                             {"tinyllama-1.1b", 2048, 32, 4, 5632, 22, 32000},
                             {"0.4b", 1024, 16, 16, 2816, 24, 32000},
                             {"tiny", 128, 4, 2, 256, 2, 320}};

// Sums of random bytes: near enough to a normal distribution, fast, the same everywhere.
class RandomWeights {
 public:
  explicit RandomWeights(uint64_t seed) : state_(0x9E3779B97F4A7C15u * (seed + 1)) {}

  // bf16 of standard deviation `deviation`.
  std::vector<uint16_t> Draw(int64_t count, float deviation) {
    std::vector<uint16_t> values(count);
    const float scale = deviation / 147.8f;  // of the sum of four bytes
    for (uint16_t& value : values) {
      state_ ^= state_ << 13;
      state_ ^= state_ >> 7;
      state_ ^= state_ << 17;
      const auto bits = static_cast<uint32_t>(state_ >> 32);
      int sum = -510;
      for (int shift = 0; shift < 32; shift += 8) sum += static_cast<int>((bits >> shift) & 255u);
      const float number = scale * static_cast<float>(sum);
      uint32_t word;
      std::memcpy(&word, &number, sizeof(word));
      value = static_cast<uint16_t>(word >> 16);
    }
    return values;
  }

 private:
  uint64_t state_;
};

class CheckpointMaker {
 public:
  CheckpointMaker(std::string directory, const Shape& shape, int layers)
      : directory_(std::move(directory)), shape_(shape), layers_(layers) {}

  absl::Status Make(ThreadTeam* team);

 private:
  // A file with this one tensor: random, of a deviation of 1 over the square root of `cols`; rows
  // 0: a norm of ones.
  struct Tensor {
    std::string name;
    int rows = 0;
    int cols = 0;
  };
  void AddLayer(int layer);
  absl::Status Write(const Tensor& tensor, uint64_t seed) const;
  absl::Status WriteText(const char* name, const nlohmann::json& json) const;

  const std::string directory_;
  const Shape& shape_;
  const int layers_;
  std::vector<Tensor> tensors_;
};

absl::Status CheckpointMaker::Write(const Tensor& tensor, uint64_t seed) const {
  constexpr uint16_t kOne = 0x3F80;  // bf16
  const bool norm = tensor.rows == 0;
  const std::vector<uint16_t> values =
      norm ? std::vector<uint16_t>(tensor.cols, kOne)
           : RandomWeights(seed).Draw(int64_t{tensor.rows} * tensor.cols,
                                      1.0f / std::sqrt(static_cast<float>(tensor.cols)));
  const std::vector<int64_t> shape =
      norm ? std::vector<int64_t>{tensor.cols} : std::vector<int64_t>{tensor.rows, tensor.cols};
  return WriteSafetensors(
      absl::StrCat(directory_, "/", tensor.name, ".safetensors"),
      {{.name = tensor.name,
        .type = TensorType::kBF16,
        .shape = shape,
        .data = {reinterpret_cast<const uint8_t*>(values.data()), values.size() * 2}}});
}

void CheckpointMaker::AddLayer(int layer) {
  const int head_dim = shape_.hidden / shape_.heads;
  const LinearShape shapes[kNumLinearRoles] = {{shape_.hidden, shape_.hidden},
                                               {shape_.kv_heads * head_dim, shape_.hidden},
                                               {shape_.kv_heads * head_dim, shape_.hidden},
                                               {shape_.hidden, shape_.hidden},
                                               {shape_.ffn, shape_.hidden},
                                               {shape_.ffn, shape_.hidden},
                                               {shape_.hidden, shape_.ffn}};
  const TensorNames& names = CanonicalNames();
  for (int r = 0; r < kNumLinearRoles; ++r) {
    tensors_.push_back({absl::StrCat(names.InLayer(layer, names.linears[r]), ".weight"),
                        shapes[r].rows, shapes[r].cols});
  }
  for (const char* norm : {names.input_norm, names.post_attention_norm}) {
    tensors_.push_back({names.InLayer(layer, norm), 0, shape_.hidden});
  }
}

absl::Status CheckpointMaker::WriteText(const char* name, const nlohmann::json& json) const {
  std::ofstream out(directory_ + "/" + name);
  out << json.dump(1) << "\n";
  out.close();
  return out ? absl::OkStatus() : absl::UnknownError(absl::StrCat(directory_, "/", name));
}

absl::Status CheckpointMaker::Make(ThreadTeam* team) {
  std::error_code error;
  std::filesystem::create_directories(directory_, error);
  const TensorNames& names = CanonicalNames();
  tensors_ = {{names.embedding, shape_.vocab, shape_.hidden},
              {names.head, shape_.vocab, shape_.hidden},
              {names.final_norm, 0, shape_.hidden}};
  for (int layer = 0; layer < layers_; ++layer) AddLayer(layer);
  std::vector<absl::Status> statuses(tensors_.size());
  nlohmann::json weight_map;
  ForPieces(team, static_cast<int64_t>(tensors_.size()), 1, [&](int, int64_t i, int64_t) {
    statuses[i] = Write(tensors_[i], static_cast<uint64_t>(i));
  });
  for (size_t i = 0; i < tensors_.size(); ++i) {
    if (!statuses[i].ok()) return statuses[i];
    weight_map[tensors_[i].name] = tensors_[i].name + ".safetensors";
  }
  absl::Status status;
  status = WriteText("config.json", {{"architectures", {"LlamaForCausalLM"}},
                                     {"model_type", "llama"},
                                     {"hidden_size", shape_.hidden},
                                     {"intermediate_size", shape_.ffn},
                                     {"num_hidden_layers", layers_},
                                     {"num_attention_heads", shape_.heads},
                                     {"num_key_value_heads", shape_.kv_heads},
                                     {"vocab_size", shape_.vocab},
                                     {"max_position_embeddings", 4096},
                                     {"rms_norm_eps", 1e-5},
                                     {"rope_theta", 10000.0},
                                     {"hidden_act", "silu"},
                                     {"bos_token_id", 1},
                                     {"eos_token_id", 2},
                                     {"tie_word_embeddings", false},
                                     {"torch_dtype", "bfloat16"}});
  if (!status.ok()) return status;
  return WriteText("model.safetensors.index.json", {{"weight_map", weight_map}});
}

// MiB; resident pages of mapped files count in the first, not in the second. -1: not known.
struct Memory {
  double peak = -1;       // VmHWM, since the last reset
  double anonymous = -1;  // RssAnon, now
};
Memory MemoryNow() {
  Memory memory;
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    const auto value = [&line] { return std::stod(line.substr(line.find(':') + 1)) / 1024.0; };
    if (line.starts_with("VmHWM:")) memory.peak = value();
    if (line.starts_with("RssAnon:")) memory.anonymous = value();
  }
  return memory;
}

// Begins the peak anew, so that making the checkpoint does not count.
void ResetPeak() {
  std::ofstream clear("/proc/self/clear_refs");
  clear << "5";
}

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// A line per step and the sum per layer, printed when the next one begins.
class StepTable {
 public:
  StepTable() {
    std::printf(
        "  layer  activity              s   peak so far, MiB   anonymous at the end, MiB\n");
  }
  void Begin(int layer, const char* activity) {
    End();
    if (std::string_view(activity) == "probing" || std::string_view(activity) == "calibrating") {
      EndLayer();
    }
    layer_ = layer;
    activity_ = activity;
    step_ = std::chrono::steady_clock::now();
  }
  void EndLayer() {
    End();
    if (sum_ > 0.0) std::printf("  %5d  %-13s %9.2f\n", layer_, "together", sum_);
    sum_ = 0.0;
  }

 private:
  void End() {
    if (activity_ == nullptr) return;
    const Memory memory = MemoryNow();
    const double seconds = SecondsSince(step_);
    std::printf("  %5d  %-13s %9.2f   %16.0f   %16.0f\n", layer_, activity_, seconds, memory.peak,
                memory.anonymous);
    std::fflush(stdout);
    sum_ += seconds;
    activity_ = nullptr;
  }

  int layer_ = 0;
  const char* activity_ = nullptr;
  std::chrono::steady_clock::time_point step_;
  double sum_ = 0.0;
};

void PrintSizes(const Shape& shape, int windows, int context) {
  constexpr double kMiB = 1 << 20;
  const double e = shape.hidden;
  const double f = shape.ffn;
  const double kv = e * shape.kv_heads / shape.heads;
  const double layer = 2.0 * (2 * e * e + 2 * e * kv + 3 * e * f);
  const double hessians = 4.0 * (3 * e * e + f * f);
  const double hidden = 4.0 * e * windows * context;
  std::printf("one layer in bf16       %8.0f MiB\n", layer / kMiB);
  std::printf("its four Hessians       %8.0f MiB   (f32, K x K)\n", hessians / kMiB);
  std::printf("their sum               %8.0f MiB\n", (layer + hessians) / kMiB);
  std::printf("hidden states           %8.0f MiB   (of %d windows of %d, once)\n", hidden / kMiB,
              windows, context);
  std::printf("embedding and head      %8.0f MiB   (mapped, read once)\n",
              4.0 * shape.vocab * e / kMiB);
}

absl::Status Quantize(const Shape& shape, const QuantizeOptions& options) {
  std::vector<TokenId> ids;
  uint32_t state = 1;
  for (int i = 0; i < (options.calibration_windows + options.held_out_windows) * options.context;
       ++i) {
    state = state * 1664525u + 1013904223u;
    ids.push_back(TokenId{static_cast<int32_t>((state >> 8) % static_cast<uint32_t>(shape.vocab))});
  }
  ResetPeak();
  const Memory before = MemoryNow();
  std::printf("resident at the start   %8.0f MiB\n\n", before.peak);
  StepTable table;
  const auto start = std::chrono::steady_clock::now();
  const auto report = QuantizeCheckpoint(
      options, ids,
      [&table](const QuantizeProgress& progress) {
        table.Begin(progress.layer, progress.activity);
      },
      nullptr);
  table.EndLayer();
  if (!report.ok()) return report.status();
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  std::printf("\n%.1f s in all, %.3f bits per weight\n", SecondsSince(start), report->average_bits);
  std::printf("peak of quantizing      %8.0f MiB   (VmHWM)\n", MemoryNow().peak);
  std::printf("peak of the process     %8.0f MiB   (ru_maxrss, making the checkpoint included)\n",
              static_cast<double>(usage.ru_maxrss) / 1024.0);
  return absl::OkStatus();
}

absl::Status Run() {
  const std::string directory = absl::GetFlag(FLAGS_dir);
  if (directory.empty()) return absl::InvalidArgumentError("dir is empty: give a directory");
  const Shape* shape = nullptr;
  for (const Shape& row : kShapes) {
    if (absl::GetFlag(FLAGS_shape) == row.name) shape = &row;
  }
  if (shape == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("shape is \"", absl::GetFlag(FLAGS_shape),
                                                   "\", known are llama-2-70b, llama-2-7b, "
                                                   "tinyllama-1.1b, 0.4b, tiny"));
  }
  const int wanted = absl::GetFlag(FLAGS_layers);
  const int layers = wanted <= 0 ? shape->layers : wanted;
  QuantizeOptions options;
  options.model_dir = absl::StrCat(directory, "/", shape->name, "-", layers);
  options.out_dir = options.model_dir + "-quantized";
  options.method = absl::GetFlag(FLAGS_method);
  options.calibration_windows = absl::GetFlag(FLAGS_windows);
  options.probe_windows = absl::GetFlag(FLAGS_probe_windows);
  options.held_out_windows = absl::GetFlag(FLAGS_held_out_windows);
  options.context = absl::GetFlag(FLAGS_context);
  options.threads = absl::GetFlag(FLAGS_threads);
  options.embedding_bits = absl::GetFlag(FLAGS_embedding_bits);
  if (absl::Status status = options.Validate(); !status.ok()) return status;
  if (!std::filesystem::exists(options.model_dir + "/model.safetensors.index.json")) {
    const auto start = std::chrono::steady_clock::now();
    const absl::Status status = [&] {
      ThreadTeam team(options.threads);
      const absl::Status made = CheckpointMaker(options.model_dir, *shape, layers).Make(&team);
      ::malloc_trim(0);  // what the threads' arenas keep is not the quantizer's
      return made;
    }();
    if (!status.ok()) return status;
    std::printf("made %s in %.1f s\n", options.model_dir.c_str(), SecondsSince(start));
  }
  PrintSizes(*shape, options.calibration_windows, options.context);
  return Quantize(*shape, options);
}

}  // namespace
}  // namespace fewbit

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage("Time and memory of the quantizer on random weights.");
  absl::ParseCommandLine(argc, argv);
  const absl::Status status = fewbit::Run();
  if (!status.ok()) std::fprintf(stderr, "quantize_scale: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
