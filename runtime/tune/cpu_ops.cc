#include "runtime/tune/cpu_ops.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/cpu/gradients.h"
#include "kernels/quant_pack.h"
#include "runtime/products/pieces.h"
#include "runtime/thread_team.h"
#include "runtime/tune/cpu_products.h"
#include "scheduler/check.h"

namespace fewbit::tune {
namespace {

// Bytes that the system would still give; 0 if it does not say.
int64_t AvailableBytes() {
  std::ifstream in("/proc/meminfo");
  for (std::string name, unit; in >> name;) {
    int64_t kib = 0;
    if (!(in >> kib)) break;
    if (name == "MemAvailable:") return kib * 1024;
    std::getline(in, unit);
  }
  return 0;
}

class CpuOps final : public Ops {
 public:
  CpuOps(int threads, cpu::Isa isa, TileType products)
      : team_(threads),
        table_(cpu::FloatGradients(isa)),
        products_(&team_, &table_, products),
        device_(absl::StrCat("cpu: ", team_.size(), team_.size() == 1 ? " thread" : " threads",
                             products == TileType::kBFloat16 ? ", bfloat16 products" : "")) {}

  ~CpuOps() override {
    for (const auto& [data, bytes] : blocks_) std::free(data);
  }

  const std::string& device() const override { return device_; }

  absl::StatusOr<void*> Allocate(size_t bytes) override {
    const int64_t available = AvailableBytes();
    const auto rounded =
        static_cast<size_t>(RoundUp(std::max<int64_t>(static_cast<int64_t>(bytes), 1), kAlignment));
    void* data = nullptr;
    if (available == 0 || rounded <= static_cast<size_t>(available)) {
      data = std::aligned_alloc(kAlignment, rounded);
    }
    if (data == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrCat(device_, ": no memory for ", bytes, " bytes; ", available, " are free"));
    }
    blocks_[data] = rounded;
    allocated_ += rounded;
    peak_ = std::max(peak_, allocated_);
    return data;
  }

  void Free(void* data) override {
    if (data == nullptr) return;
    const auto block = blocks_.find(data);
    FEWBIT_CHECK(block != blocks_.end()) << "memory that is not ours";
    allocated_ -= block->second;
    blocks_.erase(block);
    std::free(data);
  }

  void Upload(const void* host, size_t bytes, void* device) override {
    if (bytes > 0) std::memcpy(device, host, bytes);
  }
  void Download(const void* device, size_t bytes, void* host) override {
    if (bytes > 0) std::memcpy(host, device, bytes);
  }
  void Zero(void* device, size_t bytes) override { std::memset(device, 0, bytes); }
  void Copy(const void* from, size_t bytes, void* to) override { std::memcpy(to, from, bytes); }
  int64_t PeakBytes() const override { return static_cast<int64_t>(peak_); }

  void Multiply(const Product& product) override { products_.Multiply(product); }

  void Widen(const void* from, DType type, int64_t count, float* to) override {
    const int64_t width = type == DType::kF32 ? 4 : 2;
    Share(count, kPieceElements, [&](int64_t begin, int64_t end) {
      const void* data = static_cast<const char*>(from) + begin * width;
      cpu::DequantizeRow(DenseMatrix{data, type, 1, static_cast<int32_t>(end - begin)}, 0,
                         to + begin);
    });
  }

  void Weights(const ScaledMatrix& matrix, float* weights) override {
    Share(matrix.rows, RowsPerPiece(matrix.cols), [&](int64_t begin, int64_t end) {
      std::vector<float> rounded(matrix.tiles);
      for (int64_t r = begin; r < end; ++r) {
        table_.scaled_weights(RowOf(matrix, r, rounded.data()), weights + r * matrix.cols);
      }
      const auto [first, last] = OutliersOf(matrix, begin, end);
      for (int i = first; i < last; ++i) weights[matrix.outlier_at[i]] += matrix.outliers[i];
    });
  }

  void WeightGradients(const ScaledMatrix& matrix, const float* d_weights,
                       const ScaledMatrixGradients& gradients) override {
    const int strips = matrix.cols / quant::kStripChannels;
    Share(matrix.rows, RowsPerPiece(matrix.cols), [&](int64_t begin, int64_t end) {
      std::vector<float> rounded(matrix.tiles);
      for (int64_t r = begin; r < end; ++r) {
        table_.scaled_gradients(RowOf(matrix, r, rounded.data()), d_weights + r * matrix.cols,
                                gradients.sub_scales + r * strips,
                                gradients.second_order + r * matrix.tiles);
      }
      const auto [first, last] = OutliersOf(matrix, begin, end);
      for (int i = first; i < last; ++i) {
        gradients.outliers[i] += d_weights[matrix.outlier_at[i]];
      }
    });
  }

  void Add(const float* x, int64_t count, float* y) override {
    Share(count, kPieceElements,
          [&](int64_t begin, int64_t end) { table_.add(x + begin, end - begin, y + begin); });
  }

  void AddBias(const float* bias, int rows, int cols, float* y) override {
    Share(rows, RowsPerPiece(cols), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) table_.add(bias, cols, y + r * cols);
    });
  }

  void RmsNorm(const float* x, const float* weight, float eps, int rows, int cols, float* y,
               float* inverse_rms) override {
    Share(rows, RowsPerPiece(cols), [&](int64_t begin, int64_t end) {
      table_.rms_norm(x + begin * cols, weight, eps, static_cast<int>(end - begin), cols,
                      y + begin * cols, inverse_rms + begin);
    });
  }

  void RmsNormBackward(const float* x, const float* weight, const float* inverse_rms,
                       const float* dy, int rows, int cols, bool add, float* dx,
                       float* d_weight) override {
    const int64_t piece = RowsPerPiece(cols);
    // Every piece sums for itself; the pieces are then added in their order.
    if (d_weight != nullptr) partial_.assign(Pieces(rows, piece) * cols, 0.0f);
    Share(rows, piece, [&](int64_t begin, int64_t end) {
      float* sums = d_weight != nullptr ? partial_.data() + begin / piece * cols : nullptr;
      table_.rms_norm_backward(x + begin * cols, weight, inverse_rms + begin, dy + begin * cols,
                               static_cast<int>(end - begin), cols, add, dx + begin * cols, sums);
    });
    if (d_weight == nullptr) return;
    for (size_t at = 0; at < partial_.size(); at += cols) {
      table_.add(partial_.data() + at, cols, d_weight);
    }
  }

  void Rope(const RopeArgs& args, bool inverse, float* x) override {
    const int64_t row_size = static_cast<int64_t>(args.heads) * args.head_dim;
    Share(args.rows, RowsPerPiece(row_size), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const int64_t turn = r % args.context * args.pairs;
        table_.rope(args.cosines + turn, args.sines + turn, args.heads, args.head_dim, args.pairs,
                    args.interleaved, inverse, x + r * row_size);
      }
    });
  }

  void CausalSoftmax(int64_t matrices, int context, int window, float* scores) override {
    Share(matrices * context, RowsPerPiece(context), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const int row = static_cast<int>(r % context);
        table_.softmax(FirstColumn(row, window), row + 1, context, scores + r * context);
      }
    });
  }

  void CausalSoftmaxBackward(int64_t matrices, int context, int window, const float* probabilities,
                             float* gradients) override {
    Share(matrices * context, RowsPerPiece(context), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const int row = static_cast<int>(r % context);
        table_.softmax_backward(FirstColumn(row, window), row + 1, context,
                                probabilities + r * context, gradients + r * context);
      }
    });
  }

  void SiluMul(const float* gate, const float* up, int64_t count, float* y) override {
    Share(count, kPieceElements, [&](int64_t begin, int64_t end) {
      table_.silu_mul(gate + begin, up + begin, end - begin, y + begin);
    });
  }

  void SiluMulBackward(const float* dy, int64_t count, float* gate, float* up) override {
    Share(count, kPieceElements, [&](int64_t begin, int64_t end) {
      table_.silu_mul_backward(dy + begin, end - begin, gate + begin, up + begin);
    });
  }

  void KlDivergence(const float* teacher, int rows, int vocab, float scale, bool gradient,
                    float* student, LossSums* sums) override {
    divergences_.resize(rows);
    Share(rows, 1, [&](int64_t begin, int64_t) {
      divergences_[begin] = table_.divergence(teacher + begin * vocab, vocab, scale, gradient,
                                              student + begin * vocab);
    });
    for (const cpu::RowDivergence& row : divergences_) {
      sums->kl += row.kl;
      sums->same_top += row.same_top ? 1.0 : 0.0;
    }
  }

  void Adam(const AdamArgs& args) override {
    const auto correction = [&](double beta) {
      return static_cast<float>(1.0 / (1.0 - std::pow(beta, args.step)));
    };
    const cpu::AdamConstants<float> constants = {
        args.learning_rate,     args.beta1,     args.beta2,    args.epsilon, correction(args.beta1),
        correction(args.beta2), args.min_value, args.max_value};
    Share(args.count, kPieceElements, [&](int64_t begin, int64_t end) {
      table_.adam(constants, end - begin, args.gradients + begin,
                  args.reference != nullptr ? args.reference + begin : nullptr, args.values + begin,
                  args.first_moments + begin, args.second_moments + begin);
    });
  }

 private:
  template <typename Fn>
  void Share(int64_t count, int64_t piece, const Fn& fn) {
    ForPieces(&team_, count, piece, [&](int, int64_t begin, int64_t end) { fn(begin, end); });
  }

  // `rounded` [tiles]: memory for the row's d.
  static cpu::ScaledRow<float> RowOf(const ScaledMatrix& m, int64_t r, float* rounded) {
    const int strips = m.cols / quant::kStripChannels;
    const float* d = m.second_order + r * m.tiles;
    if (m.rounded) {
      for (int t = 0; t < m.tiles; ++t) {
        rounded[t] =
            quant::HalfToFloat(quant::FloatToHalf(d[t] * quant::kStoredSecondOrderFactor)) /
            quant::kStoredSecondOrderFactor;
      }
      d = rounded;
    }
    return {m.cols,   m.levels + r * m.cols, m.tile_of_strip, m.sub_scales + r * strips, d,
            m.rounded};
  }

  // The outliers of rows [begin, end).
  static std::pair<int, int> OutliersOf(const ScaledMatrix& m, int64_t begin, int64_t end) {
    const int32_t* last = m.outlier_at + m.num_outliers;
    const auto index = [&](int64_t row) {
      return static_cast<int>(std::lower_bound(m.outlier_at, last, row * m.cols) - m.outlier_at);
    };
    return {index(begin), index(end)};
  }

  static int FirstColumn(int row, int window) {
    return window == 0 ? 0 : std::max(0, row - window + 1);
  }

  ThreadTeam team_;
  const cpu::GradientTable<float>& table_;
  CpuProducts products_;
  const std::string device_;
  std::unordered_map<void*, size_t> blocks_;  // bytes of each
  size_t allocated_ = 0;
  size_t peak_ = 0;
  std::vector<float> partial_;
  std::vector<cpu::RowDivergence> divergences_;
};

}  // namespace

std::unique_ptr<Ops> CreateCpuOps(int threads, cpu::Isa isa, TileType products) {
  return std::make_unique<CpuOps>(threads, isa, products);
}

}  // namespace fewbit::tune
