#include "tests/bench/cuda/linears.h"

#include <cstdio>
#include <memory>

#include "kernels/cuda/cublas.h"
#include "kernels/cuda/dequantize.h"
#include "kernels/cuda/linear_launch.h"
#include "tests/bench/cuda/bandwidth.h"
#include "tests/bench/cuda/machine.h"
#include "tests/bench/cuda/timing.h"

namespace fewbit::bench {
namespace {

using cuda::CheckCuda;
using cuda::DeviceBuffer;

// Copies of each matrix that launches take in turn, so that no weight is found in the L2 cache: all
// layers together, and one matrix alone, which takes copies of so many bytes.
constexpr int kCopies = 6, kDenseCopies = 2;
constexpr size_t kAloneBytes = size_t{160} << 20;

int CopiesFor(int least, double bytes) {
  return std::max(least, static_cast<int>(kAloneBytes / bytes) + 1);
}

// A linear goes through scratch and cuBLAS where its plan says so: many tokens. Only the persistent
// kernel of few tokens can do without the ring.
enum class Kind { kLinear, kLinearAndStaging, kCublas };

struct Variant {
  const char* name;
  Kind kind;
  bool outliers;
  bool ring, early;  // weights come ahead of their use; also before the kernel before has ended
};
constexpr Variant kVariants[] = {
    {"synchronous", Kind::kLinear, true, false, false},
    {"asynchronous", Kind::kLinear, true, true, false},
    {"default", Kind::kLinear, true, true, true},
    {"default+staging", Kind::kLinearAndStaging, true, true, true},
    {"no_outliers", Kind::kLinear, false, true, true},
    {"cublas_fp16", Kind::kCublas, false, true, true},
};

const ModelShape* FindShape(const std::string& name) {
  for (const ModelShape& s : kModelShapes) {
    if (s.name == name) return &s;
  }
  return nullptr;
}

class Linears {
 public:
  Linears(const LinearsOptions& options, const ModelShape& model, int most_tokens)
      : options_(options), layers_(LinearsOf(model)), model_(model) {
    CheckCuda(cuda::ReadDeviceProps(0, &props_), "device properties");
    CheckCuda(cuda::PrepareLinearKernels(props_), "PrepareLinearKernels");
    exchange_ = DeviceBuffer<uint8_t>(cuda::ExchangeBytes(props_));
    CheckCuda(cudaMemset(exchange_.get(), 0, exchange_.bytes()), "exchange");
    uint64_t seed = 1;
    size_t widest = 0;
    for (const LinearShape& l : layers_) {
      const double bytes = 3.0 / 8 * l.rows * l.cols;  // roughly
      matrices_.emplace_back(l.rows, l.cols, options.mix, CopiesFor(kCopies, bytes), seed++);
      widest = std::max<size_t>({widest, static_cast<size_t>(l.rows), static_cast<size_t>(l.cols)});
      size_t most_staged = 0;
      for (int m : options.m) {
        const cuda::Desc desc = DescOf(m, matrices_.size() - 1);
        most_staged = std::max(most_staged, cuda::StagedBytes(desc, cuda::Select(desc, props_)));
      }
      staged_.emplace_back(most_staged);
    }
    std::vector<uint16_t> x(widest * most_tokens);
    uint32_t state = 1;
    for (uint16_t& v : x) {  // fp16 of magnitude 0.25 to 2, any sign
      state = state * 1664525u + 1013904223u;
      v = static_cast<uint16_t>(0x3400u + (state >> 20) % 0x0C00u) |
          static_cast<uint16_t>((state >> 16) & 0x8000u);
    }
    x_ = DeviceBuffer<uint16_t>(x);
    y_ = DeviceBuffer<uint16_t>(widest * most_tokens);
    std::string error;
    cublas_ = cuda::Cublas::Open(&error);
    if (!error.empty()) std::fprintf(stderr, "without cuBLAS: %s\n", error.c_str());
    if (cublas_ != nullptr) PrepareCublas();
    if (compares()) MakeDense();
  }

  // With cuBLAS on plain fp16 weights.
  bool compares() const { return cublas_ != nullptr && !options_.only_default; }

  // Microseconds of the layers [first, last) of one decoder layer; negative if it cannot run.
  double Micros(const Variant& v, int m, size_t first, size_t last) {
    for (size_t l = first; l < last; ++l) {
      if (v.kind == Kind::kCublas) continue;
      const cuda::Plan plan = PlanOf(v, m, l);
      if (!plan.error.empty() || (!v.ring && plan.path != cuda::Path::kStream)) return -1;
      if (plan.path == cuda::Path::kDequantize &&
          (cublas_ == nullptr || !v.early || v.kind == Kind::kLinearAndStaging)) {
        return -1;
      }
    }
    if (v.kind == Kind::kLinear) {
      for (size_t l = first; l < last; ++l) Stage(v, m, l);
    }
    const int copies = last - first > 1          ? kCopies
                       : v.kind == Kind::kCublas ? dense_copies_[first]
                                                 : matrices_[first].copies();
    const double all = MedianReplayMicros(
        [&](cudaStream_t stream) {
          for (int c = 0; c < copies; ++c) {
            for (size_t l = first; l < last; ++l) Enqueue(v, m, l, c, stream);
          }
        },
        options_.repeats);
    return all / copies;
  }

  // Bytes that these layers of one decoder layer have to move: weights, activations in and out.
  double BytesMoved(const Variant& v, int m, size_t first, size_t last) const {
    double bytes = 0;
    for (size_t l = first; l < last; ++l) {
      const double weights = v.kind == Kind::kCublas ? 2.0 * layers_[l].rows * layers_[l].cols
                                                     : static_cast<double>(matrices_[l].bytes());
      bytes += weights + 2.0 * m * (layers_[l].rows + layers_[l].cols);
    }
    return bytes;
  }
  double BitsPerWeight() const {
    double bytes = 0, weights = 0;
    for (size_t l = 0; l < layers_.size(); ++l) {
      bytes += static_cast<double>(matrices_[l].bytes());
      weights += 1.0 * layers_[l].rows * layers_[l].cols;
    }
    return 8 * bytes / weights;
  }
  size_t layers() const { return layers_.size(); }
  std::string_view layer_name(size_t l) const { return layers_[l].name; }
  cuda::Plan PlanOf(const Variant& v, int m, size_t l) const {
    cuda::Tuning tuning = options_.tuning;
    if (!v.ring) tuning.synchronous = 1;
    if (!v.early) tuning.no_early_start = 1;
    return cuda::Select(DescOf(m, l), props_, tuning);
  }

 private:
  cuda::Desc DescOf(int m, size_t l) const {
    cuda::Desc d;
    d.shapes[0] = matrices_[l].shape();
    d.m = m;
    return d;
  }

  // The activations that a producer would have left.
  void Stage(const Variant& v, int m, size_t l) {
    const cuda::Desc desc = DescOf(m, l);
    const cuda::Plan plan = PlanOf(v, m, l);
    if (!plan.staged()) return;
    const cuda::LinearInput in =
        cuda::InputOf(desc, plan, {1, {matrices_[l].copy(0)}}, staged_[l].get(), nullptr);
    CheckCuda(cuda::StageActivations(desc, x_.get(), layers_[l].cols, in, nullptr), "stage");
    CheckCuda(cudaDeviceSynchronize(), "stage");
  }

  void MakeDense() {
    for (const LinearShape& l : layers_) {
      const size_t weights = size_t{1} * l.rows * l.cols;
      dense_copies_.push_back(CopiesFor(kDenseCopies, 2.0 * static_cast<double>(weights)));
      dense_.emplace_back(weights * dense_copies_.back());
      for (size_t at = 0; at < dense_.back().size();) {  // x_ holds random fp16 numbers
        const size_t n = std::min(x_.size(), dense_.back().size() - at);
        CheckCuda(cudaMemcpy(dense_.back().get() + at, x_.get(), 2 * n, cudaMemcpyDeviceToDevice),
                  "fill");
        at += n;
      }
    }
  }

  void PrepareCublas() {
    size_t most = 0;
    for (const RandomMatrix& m : matrices_) most = std::max(most, cuda::ScratchBytes(m.shape()));
    scratch_ = DeviceBuffer<uint8_t>(most);
    constexpr size_t kWorkspace = size_t{64} << 20;
    workspace_ = DeviceBuffer<uint8_t>(kWorkspace);
    cublas_->SetWorkspace(workspace_.get(), kWorkspace);
  }

  void Enqueue(const Variant& v, int m, size_t l, int copy, cudaStream_t stream) {
    const int rows = layers_[l].rows, cols = layers_[l].cols;
    if (v.kind == Kind::kCublas) {
      const uint16_t* w = dense_[l].get() + size_t{1} * (copy % dense_copies_[l]) * rows * cols;
      if (!cublas_->Gemm(DType::kF16, m, rows, cols, x_.get(), cols, w, false, y_.get(),
                         DType::kF16, rows, stream)) {
        std::fprintf(stderr, "cuBLAS fails at m %d, layer %zu\n", m, l);
        std::abort();
      }
      return;
    }
    const cuda::Desc desc = DescOf(m, l);
    cuda::DeviceMatrix w = matrices_[l].copy(copy);
    if (!v.outliers) {
      w.outlier_start = w.outliers = w.tile_outlier_start = w.tile_outliers = nullptr;
    }
    const cuda::Plan plan = PlanOf(v, m, l);
    cuda::DeviceGroup group = {1, {w}};
    const cuda::LinearInput in =
        cuda::InputOf(desc, plan, group, staged_[l].get(), plan.plain() ? x_.get() : nullptr);
    if (v.kind == Kind::kLinearAndStaging) {
      CheckCuda(cuda::StageActivations(desc, x_.get(), cols, in, stream), "StageActivations");
    }
    cuda::LinearOutput out;
    out.y = y_.get();
    out.stride = rows;
    const std::string error = cuda::LaunchLinear(
        desc, plan, group, in, out, {scratch_.get(), cublas_.get(), exchange_.get()}, stream);
    if (!error.empty()) std::fprintf(stderr, "%s\n", error.c_str());
  }

  LinearsOptions options_;
  std::vector<LinearShape> layers_;
  ModelShape model_;
  cuda::DeviceProps props_;
  std::vector<RandomMatrix> matrices_;
  std::vector<DeviceBuffer<uint16_t>> dense_;
  std::vector<int> dense_copies_;  // of each layer
  DeviceBuffer<uint16_t> x_, y_;
  std::vector<DeviceBuffer<uint8_t>> staged_;  // of each layer
  DeviceBuffer<uint8_t> workspace_, scratch_, exchange_;
  std::unique_ptr<cuda::Cublas> cublas_;
};

void PrintLayers(Linears* linears, const Variant& v, int m) {
  for (size_t l = 0; l < linears->layers(); ++l) {
    const double micros = linears->Micros(v, m, l, l + 1);
    std::printf("    %-8s %7.2f us", std::string(linears->layer_name(l)).c_str(), micros);
    if (v.kind != Kind::kCublas) {
      const cuda::Plan plan = linears->PlanOf(v, m, l);
      const cuda::SmallPlan& p = plan.small[0];
      const cuda::StreamPlan& s = plan.stream;
      if (plan.path == cuda::Path::kStream) {
        std::printf("  form %d blocks %d stages %d of %d tiles, %d term slots, shared %d", s.form,
                    s.blocks, s.stages, s.stage_tiles, s.term_slots, s.layout.total);
      } else if (plan.path == cuda::Path::kWide) {
        std::printf("  wide form %d, %d teams, %d token groups", plan.wide.form, plan.wide.teams,
                    plan.wide.groups);
      } else if (plan.path == cuda::Path::kHalf) {
        std::printf("  half form %d, %d clusters, %d token groups", plan.half.form,
                    plan.half.clusters, plan.half.groups);
      } else if (plan.path == cuda::Path::kSmall) {
        std::printf("  warps %d blocks %d own %d group %d shared %zu", p.warps, p.blocks, p.own,
                    p.group_tokens, p.shared_bytes);
      }
    }
    std::printf("\n");
  }
}

// What a line of the table is about: all linear layers of a decoder layer, or one.
struct Range {
  std::string shape;
  size_t first, last;
};

std::vector<Range> RangesOf(const LinearsOptions& options, const Linears& linears) {
  std::vector<Range> ranges = {{options.shape, 0, linears.layers()}};
  for (size_t l = 0; l < linears.layers() && options.per_layer && options.csv; ++l) {
    ranges.push_back({options.shape + "/" + std::string(linears.layer_name(l)), l, l + 1});
  }
  return ranges;
}

class Table {
 public:
  Table(const LinearsOptions& options, const ModelShape& model, Linears* linears)
      : options_(options), decoder_layers_(model.layers), linears_(linears) {
    if (options.csv) {
      std::printf("gpu,date,commit,shape,m,variant,ms_all_layers,pct_bandwidth,x_cublas_fp16\n");
    } else {
      std::printf("%s on %s: %.2f bits per weight, read bandwidth %.2f TB/s\n",
                  options.shape.c_str(), gpu_.c_str(), linears->BitsPerWeight(), bandwidth_ / 1e6);
    }
  }

  void Print(int m, const Range& range) {
    constexpr const Variant& kPlain = kVariants[std::size(kVariants) - 1];
    static_assert(kPlain.kind == Kind::kCublas);
    const double dense =
        linears_->compares() ? linears_->Micros(kPlain, m, range.first, range.last) : 0;
    for (const Variant& v : kVariants) {
      if (options_.only_default && v.name != std::string_view("default")) continue;
      if (v.kind == Kind::kCublas && !linears_->compares()) continue;
      const double micros =
          v.kind == Kind::kCublas ? dense : linears_->Micros(v, m, range.first, range.last);
      if (micros < 0) continue;
      const double percent =
          100 * linears_->BytesMoved(v, m, range.first, range.last) / micros / bandwidth_;
      const double ms = micros * decoder_layers_ / 1e3, times = dense / micros;
      std::printf(options_.csv ? "%s,%s,%s,%s,%d,%s,%.4f,%.1f,%.3f\n"
                               : "%.0s%.0s%.0s%.0s  m %4d  %-16s %8.3f ms  %5.1f %% of bandwidth  "
                                 "%5.2f x cuBLAS fp16\n",
                  gpu_.c_str(), date_.c_str(), FEWBIT_COMMIT, range.shape.c_str(), m, v.name, ms,
                  percent, times);
      if (options_.per_layer && !options_.csv) PrintLayers(linears_, v, m);
      std::fflush(stdout);
    }
  }

 private:
  const LinearsOptions& options_;
  const int decoder_layers_;
  Linears* const linears_;
  const double bandwidth_ = ReadBytesPerMicro();
  const std::string gpu_ = GpuName(), date_ = Today();
};

}  // namespace

int RunLinears(const LinearsOptions& options) {
  const ModelShape* model = FindShape(options.shape);
  if (model == nullptr) {
    std::fprintf(stderr, "unknown --shape %s; known:", options.shape.c_str());
    for (const ModelShape& s : kModelShapes)
      std::fprintf(stderr, " %s", std::string(s.name).c_str());
    std::fprintf(stderr, "\n");
    return 2;
  }
  int most = 1;
  for (int m : options.m) most = std::max(most, m);
  Linears linears(options, *model, most);
  Table table(options, *model, &linears);
  const std::vector<Range> ranges = RangesOf(options, linears);
  for (int m : options.m) {
    for (const Range& range : ranges) table.Print(m, range);
  }
  return 0;
}

}  // namespace fewbit::bench
