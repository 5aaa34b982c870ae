// Linear layers on one core: staging plus product, for the shapes of the bundled demo model and one
// of a 7B model.
//
// Weights are rotated over copies that together exceed the last level of a usual cache (64 MiB)
// only for the 4096 x 4096 shape; the demo model's matrices stay in the cache, as they do when it
// is served. Counters: weights/s and GB/s of weight bytes once per call, and MAC/s = weights x
// tokens. Compare ratios within one run; --benchmark_filter=avx512/packed picks rows.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/linear.h"
#include "kernels/quant_pack.h"

namespace fewbit::cpu {
namespace {

enum class Kind { kPacked, kPackedOutliers, kInt8, kBf16 };

const char* KindName(Kind kind) {
  switch (kind) {
    case Kind::kPacked:
      return "packed25";
    case Kind::kPackedOutliers:
      return "packed25_outliers";
    case Kind::kInt8:
      return "int8";
    case Kind::kBf16:
      return "bf16";
  }
  return "";
}

struct Bytes {
  quant::PackedStorage packed;
  std::vector<uint8_t> codes;
  std::vector<float> scales;
  std::vector<uint16_t> dense;
};

struct Weights {
  std::unique_ptr<Bytes> bytes;  // what `matrix` points into
  Matrix matrix;
  size_t size = 0;
};

// 25 % of the strips at 4 bits; codes and scales are random, what they mean does not matter here.
quant::PackedStorage MakePacked(int rows, int cols, bool outliers, std::mt19937* rng) {
  quant::PackedStorage s;
  const int strips = cols / 16, strips4 = strips / 4;
  s.shape = {rows, cols, (strips - strips4 + 7) / 8, (strips4 + 3) / 4, false};
  s.strip_order.assign(s.shape.num_positions(), quant::kNoStrip);
  for (int i = 0; i < strips; ++i) {
    const int p = i % 4 == 3 ? 8 * s.shape.chunks2 + i / 4 : i - i / 4;
    s.strip_order[p] = static_cast<uint16_t>(i);
  }
  s.tiles.resize(s.shape.total_bytes());
  for (uint8_t& b : s.tiles) b = static_cast<uint8_t>((*rng)() & 0x3B);  // d stays a small half
  if (outliers) {
    s.outlier_start.push_back(0);
    for (size_t list = 0; list < s.shape.num_outlier_lists(); ++list) {
      const int channels = 128 * s.shape.tile_chunks(2, list % s.shape.tiles(2));
      const uint32_t count = static_cast<uint32_t>(0.002 * 16 * channels + 0.5);
      for (uint32_t i = 0; i < count; ++i) {
        const uint32_t position = i * channels / count, row = (*rng)() % 16;
        if (list / s.shape.tiles(2) * 16 + row >= static_cast<size_t>(rows)) continue;
        const size_t strip = list % s.shape.tiles(2) * 32 + position / 16;
        if (s.strip_order[strip] == quant::kNoStrip) continue;
        s.outliers.push_back(position | row << 9 | 0x2C00u << 16);
      }
      s.outlier_start.push_back(static_cast<uint32_t>(s.outliers.size()));
    }
  }
  return s;
}

Weights MakeWeights(Kind kind, int rows, int cols) {
  std::mt19937 rng(5);
  Weights w;
  w.bytes = std::make_unique<Bytes>();
  const size_t count = static_cast<size_t>(rows) * cols;
  if (kind == Kind::kPacked || kind == Kind::kPackedOutliers) {
    w.bytes->packed = MakePacked(rows, cols, kind == Kind::kPackedOutliers, &rng);
    w.matrix = w.bytes->packed.view();
    w.size = w.bytes->packed.tiles.size() + 4 * w.bytes->packed.outliers.size();
  } else if (kind == Kind::kInt8) {
    w.bytes->codes.resize(count);
    for (uint8_t& c : w.bytes->codes) c = static_cast<uint8_t>(1 + rng() % 255);
    w.bytes->scales.assign(rows, 0.01f);
    w.matrix = Int8Matrix{w.bytes->codes.data(), w.bytes->scales.data(), rows, cols};
    w.size = count;
  } else {
    w.bytes->dense.resize(count);
    for (uint16_t& v : w.bytes->dense) v = static_cast<uint16_t>(0x3C00 + rng() % 256);
    w.matrix = DenseMatrix{w.bytes->dense.data(), DType::kBF16, rows, cols};
    w.size = 2 * count;
  }
  return w;
}

void RunLinear(benchmark::State& state, Isa isa, Kind kind, int rows, int cols) {
  const int tokens = static_cast<int>(state.range(0));
  const size_t weights = static_cast<size_t>(rows) * cols;
  std::vector<Weights> copies;
  copies.push_back(MakeWeights(kind, rows, cols));
  const size_t wanted = weights >= (16u << 20) ? (96u << 20) / copies[0].size + 1 : 1;
  while (copies.size() < wanted) copies.push_back(MakeWeights(kind, rows, cols));
  std::mt19937 rng(6);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(tokens) * cols), y(static_cast<size_t>(tokens) * rows);
  for (float& v : x) v = normal(rng);
  std::vector<uint8_t> scratch(ActivationBytes(copies[0].matrix, tokens) + 64);
  void* activations =
      reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(scratch.data()) + 63) & ~uintptr_t{63});
  size_t next = 0;
  for (auto _ : state) {
    const Matrix& w = copies[next].matrix;
    next = next + 1 == copies.size() ? 0 : next + 1;
    PrepareActivations(isa, w, x.data(), cols, tokens, 0, tokens, activations);
    Linear(isa, w, x.data(), cols, activations, tokens, 0, rows, y.data(), rows);
    benchmark::DoNotOptimize(y.data());
    benchmark::ClobberMemory();
  }
  const double calls = static_cast<double>(state.iterations());
  using benchmark::Counter;
  state.counters["weights/s"] = Counter(calls * weights, Counter::kIsRate);
  state.counters["GB/s"] = Counter(calls * copies[0].size * 1e-9, Counter::kIsRate);
  state.counters["MAC/s"] = Counter(calls * weights * tokens, Counter::kIsRate);
}

// Every linear layer of the demo model once, with weights of its own: what one step of the served
// model asks of one core.
void RunDemoModel(benchmark::State& state, Isa isa, Kind kind, Kind head_kind) {
  constexpr int kLayers = 8, kHidden = 512, kKv = 256, kFfn = 1536, kVocab = 8192;
  const int tokens = static_cast<int>(state.range(0));
  std::vector<Weights> weights;
  for (int layer = 0; layer < kLayers; ++layer) {
    for (const int rows : {kHidden, kKv, kKv, kHidden, kFfn, kFfn}) {
      weights.push_back(MakeWeights(kind, rows, kHidden));
    }
    weights.push_back(MakeWeights(kind, kHidden, kFfn));
  }
  weights.push_back(MakeWeights(head_kind, kVocab, kHidden));
  std::mt19937 rng(6);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(tokens) * kFfn), y(static_cast<size_t>(tokens) * kVocab);
  for (float& v : x) v = normal(rng);
  size_t scratch_bytes = 0, count = 0;
  for (const Weights& w : weights) {
    scratch_bytes = std::max(scratch_bytes, ActivationBytes(w.matrix, tokens));
    count += static_cast<size_t>(MatrixRows(w.matrix)) * MatrixCols(w.matrix);
  }
  std::vector<uint8_t> scratch(scratch_bytes + 64);
  void* activations =
      reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(scratch.data()) + 63) & ~uintptr_t{63});
  for (auto _ : state) {
    for (const Weights& w : weights) {
      // The head is run for one token of a prefill, as the server does.
      const bool head = &w == &weights.back();
      const int n = head && tokens >= 64 ? 1 : tokens;
      const int cols = MatrixCols(w.matrix), rows = MatrixRows(w.matrix);
      PrepareActivations(isa, w.matrix, x.data(), cols, n, 0, n, activations);
      Linear(isa, w.matrix, x.data(), cols, activations, n, 0, rows, y.data(), rows);
    }
    benchmark::DoNotOptimize(y.data());
    benchmark::ClobberMemory();
  }
  const double calls = static_cast<double>(state.iterations());
  state.counters["weights/s"] = benchmark::Counter(calls * count, benchmark::Counter::kIsRate);
  state.counters["tokens/s"] = benchmark::Counter(calls * tokens, benchmark::Counter::kIsRate);
}

void RegisterDemoModel(Isa isa) {
  struct Row {
    const char* name;
    Kind linears, head;
  };
  for (const Row& row :
       {Row{"packed25_outliers+int8", Kind::kPackedOutliers, Kind::kInt8},
        Row{"int8", Kind::kInt8, Kind::kInt8}, Row{"bf16", Kind::kBf16, Kind::kBf16}}) {
    const std::string name = std::string(IsaName(isa)) + "/demo_model/" + row.name;
    auto* b = benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
      RunDemoModel(state, isa, row.linears, row.head);
    });
    b->ArgName("M")->Unit(benchmark::kMicrosecond)->Arg(1)->Arg(2)->Arg(4)->Arg(8)->Arg(16);
    if (isa != Isa::kPortable) b->Arg(512);
  }
}

void RegisterAll() {
  struct Shape {
    int rows, cols;
  };
  const Shape shapes[] = {{512, 512}, {256, 512}, {1536, 512}, {512, 1536}, {4096, 4096}};
  const std::vector<int64_t> token_counts = {1, 2, 4, 8, 16, 64, 512};
  for (const Isa isa : {Isa::kAvx512, Isa::kAvx2, Isa::kPortable}) {
    if (!IsaSupported(isa)) continue;
    const auto add = [&](Kind kind, int rows, int cols) {
      const std::string name = std::string(IsaName(isa)) + "/" + KindName(kind) + "/" +
                               std::to_string(rows) + "x" + std::to_string(cols);
      auto* b = benchmark::RegisterBenchmark(
          name.c_str(), [=](benchmark::State& state) { RunLinear(state, isa, kind, rows, cols); });
      b->ArgName("M")->Unit(benchmark::kMicrosecond);
      for (const int64_t tokens : token_counts) {
        if (isa != Isa::kPortable || tokens <= 16) b->Arg(tokens);
      }
    };
    for (const Shape& shape : shapes) {
      if (isa == Isa::kPortable && shape.rows != 1536) continue;
      for (const Kind kind : {Kind::kPacked, Kind::kPackedOutliers, Kind::kInt8, Kind::kBf16}) {
        add(kind, shape.rows, shape.cols);
      }
    }
    if (isa != Isa::kPortable) add(Kind::kInt8, 8192, 512);
    RegisterDemoModel(isa);
  }
}

}  // namespace
}  // namespace fewbit::cpu

int main(int argc, char** argv) {
  fewbit::cpu::RegisterAll();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
