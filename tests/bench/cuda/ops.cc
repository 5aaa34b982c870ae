#include "tests/bench/cuda/ops.h"

#include <cstdio>
#include <functional>
#include <random>

#include "kernels/cuda/dense.h"
#include "kernels/cuda/linear_launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/sample.h"
#include "tests/bench/cuda/bandwidth.h"
#include "tests/bench/cuda/random_layers.h"
#include "tests/bench/cuda/shapes.h"
#include "tests/bench/cuda/timing.h"

namespace fewbit::bench {
namespace {

using cuda::CheckCuda;
using cuda::DeviceBuffer;

constexpr int kChain = 40;  // launches of one replay, one behind the other as in a step

DeviceBuffer<float> RandomFloats(size_t count, float scale, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(count);
  for (float& v : values) v = normal(rng);
  return DeviceBuffer<float>(values);
}

class Bench {
 public:
  Bench(const OpsOptions& options, const ModelShape& shape)
      : options_(options), shape_(shape), bandwidth_(ReadBytesPerMicro()) {
    CheckCuda(cuda::ReadDeviceProps(0, &props_), "device");
    CheckCuda(cuda::PrepareOps(), "PrepareOps");
  }

  void Norms(int m);
  void Silu(int m);
  void Heads(int m, cuda::Cublas* cublas);
  void Samplers(int rows, int vocab);
  double bandwidth() const { return bandwidth_; }

 private:
  using Work = std::function<void(cudaStream_t)>;

  // Microseconds of one of kChain launches.
  double Micros(const Work& work) const {
    return MedianReplayMicros(
               [&](cudaStream_t stream) {
                 for (int i = 0; i < kChain; ++i) work(stream);
               },
               options_.repeats) /
           kChain;
  }
  void Print(const char* name, int m, double micros, double bytes) const {
    std::printf("%-34s %6d %9.2f %8.1f\n", name, m, micros, 100.0 * bytes / micros / bandwidth_);
    std::fflush(stdout);
  }

  OpsOptions options_;
  ModelShape shape_;
  double bandwidth_;
  cuda::DeviceProps props_;
};

// The inputs of linear layers of the given row counts, staged as the chosen kernels want them.
struct Target {
  std::vector<RandomMatrix> matrices;
  cuda::DeviceGroup group;
  cuda::Desc desc;
  cuda::Plan plan;
  DeviceBuffer<uint8_t> staged, plain;

  Target(const std::vector<int>& rows, int cols, int m, const cuda::DeviceProps& props) {
    group.count = desc.count = static_cast<int>(rows.size());
    desc.m = m;
    for (size_t p = 0; p < rows.size(); ++p) {
      matrices.emplace_back(rows[p], cols, WeightMix{}, 1, p + 1);
      group.parts[p] = matrices.back().copy(0);
      desc.shapes[p] = group.parts[p].shape;
    }
    plan = cuda::Select(desc, props);
    if (plan.staged()) staged = DeviceBuffer<uint8_t>(cuda::StagedBytes(desc, plan));
    if (plan.plain()) plain = DeviceBuffer<uint8_t>(size_t{2} * m * cols);
  }
  cuda::LinearInput Input() const {
    return cuda::InputOf(desc, plan, group, staged.get(), plain.get());
  }
  double bytes() const { return staged.bytes() + plain.bytes(); }
};

void Bench::Norms(int m) {
  const int e = shape_.hidden;
  const size_t count = static_cast<size_t>(m) * e;
  const auto hidden = RandomFloats(count, 1.0f, 1), delta = RandomFloats(count, 0.01f, 2);
  const auto weight = RandomFloats(e, 1.0f, 3);
  cuda::NormArgs args;
  args.tokens = m;
  args.cols = e;
  const DeviceBuffer<float> kept(count);
  args.hidden = hidden.get();
  args.hidden_out = kept.get();
  args.delta = delta.get();
  args.weight = weight.get();
  const int kv = (shape_.qkv_rows - e) / 2;
  const Target qkv({e, kv, kv}, e, m, props_);
  const Target gate_up({shape_.intermediate, shape_.intermediate}, e, m, props_);
  const double bytes = 12.0 * count;
  Print("add + norm -> q, k, v", m, Micros([&](cudaStream_t s) {
          CheckCuda(cuda::LaunchAddNorm(args, qkv.Input(), s), "norm");
        }),
        bytes + qkv.bytes());
  Print("add + norm -> gate, up", m, Micros([&](cudaStream_t s) {
          CheckCuda(cuda::LaunchAddNorm(args, gate_up.Input(), s), "norm");
        }),
        bytes + gate_up.bytes());
  const DeviceBuffer<uint16_t> half(count);
  cuda::LinearInput plain;
  plain.plain = half.get();
  args.hidden_out = nullptr;
  Print("add + norm -> f16 (head)", m,
        Micros([&](cudaStream_t s) { CheckCuda(cuda::LaunchAddNorm(args, plain, s), "norm"); }),
        10.0 * count);
  const DeviceBuffer<int32_t> ids(std::vector<int32_t>(m, 17));
  const DeviceBuffer<uint16_t> table(std::vector<uint16_t>(size_t{100} * e, 0x3C00));
  cuda::StepView step;
  step.token_ids = ids.get();
  args.hidden_out = kept.get();
  const cuda::DeviceDense rows = {table.get(), nullptr, cuda::WeightType::kF16, 100, e};
  Print("embedding + norm -> q, k, v", m, Micros([&](cudaStream_t s) {
          CheckCuda(cuda::LaunchEmbedNorm(rows, step, args, qkv.Input(), s), "embedding");
        }),
        6.0 * count + qkv.bytes());
}

void Bench::Silu(int m) {
  const int f = shape_.intermediate;
  const auto x = RandomFloats(size_t{2} * m * f, 1.0f, 4);
  const Target down({shape_.hidden}, f, m, props_);
  cuda::SiluArgs args;
  args.tokens = m;
  args.cols = f;
  args.gate = x.get();
  args.up = x.get() + f;
  args.stride = 2 * f;
  Print("silu * up -> down", m, Micros([&](cudaStream_t s) {
          CheckCuda(cuda::LaunchSiluMul(args, down.Input(), s), "silu");
        }),
        x.bytes() + down.bytes());
}

void Bench::Heads(int m, cuda::Cublas* cublas) {
  const int e = shape_.hidden, v = options_.vocab;
  const size_t count = static_cast<size_t>(v) * e;
  const auto floats = RandomFloats(count / 8, 0.02f, 5);
  const DeviceBuffer<uint16_t> half(count);
  for (int part = 0; part < 8; ++part) {
    CheckCuda(cuda::ConvertToHalf({floats.get(), nullptr, cuda::WeightType::kF32, v / 8, e},
                                  half.get() + part * (count / 8), nullptr, nullptr),
              "convert");
  }
  const DeviceBuffer<uint8_t> codes(count);
  const DeviceBuffer<float> scales(v);
  const cuda::DeviceDense f16 = {half.get(), nullptr, cuda::WeightType::kF16, v, e};
  const cuda::DeviceDense i8 = {codes.get(), scales.get(), cuda::WeightType::kI8, v, e};
  CheckCuda(cuda::QuantizeRows(f16, codes.get(), scales.get(), nullptr), "quantize");
  const auto x32 = RandomFloats(static_cast<size_t>(m) * e, 1.0f, 6);
  const DeviceBuffer<uint16_t> x16(x32.size());
  CheckCuda(cuda::ConvertToHalf({x32.get(), nullptr, cuda::WeightType::kF32, m, e}, x16.get(),
                                nullptr, nullptr),
            "convert");
  const DeviceBuffer<float> y(static_cast<size_t>(m) * v);
  cuda::DenseCall call;
  call.m = m;
  call.x_stride = e;
  call.y = y.get();
  call.y_stride = v;
  const auto print = [&](const char* name, const cuda::DeviceDense& w, bool split) {
    call.w = w;
    call.x = split ? static_cast<const void*>(x32.get()) : x16.get();
    call.x_type = split ? DType::kF32 : DType::kF16;
    Print(name, m, Micros([&](cudaStream_t s) { CheckCuda(cuda::LaunchDense(call, s), "head"); }),
          count * cuda::WeightBytes(w.type) + y.bytes());
  };
  print("head f16, x f16", f16, false);
  print("head f16, x f32", f16, true);
  print("head 8-bit, x f16", i8, false);
  print("head 8-bit, x f32", i8, true);
  if (cublas == nullptr) return;
  const double micros = Micros([&](cudaStream_t s) {
    cublas->Gemm(DType::kF16, m, v, e, x16.get(), e, half.get(), false, y.get(), DType::kF32, v, s);
  });
  Print("head f16, cuBLAS", m, micros, count * 2.0 + y.bytes());
}

void Bench::Samplers(int rows, int vocab) {
  const auto logits = RandomFloats(static_cast<size_t>(rows) * vocab, 2.5f, 7);
  std::vector<int32_t> slots(rows);
  for (int r = 0; r < rows; ++r) slots[r] = r;
  const DeviceBuffer<int32_t> d_slots(slots), last(rows), lists(1);
  const DeviceBuffer<uint32_t> counts(static_cast<size_t>(rows) * vocab);
  CheckCuda(cudaMemset(counts.get(), 0, counts.bytes()), "counts");
  const DeviceBuffer<float> adjusted(static_cast<size_t>(rows) * vocab);
  const DeviceBuffer<cuda::SampleResult> results(rows);
  cuda::SampleCall call;
  call.rows = rows;
  call.vocab = vocab;
  call.logits = logits.get();
  call.logits_stride = vocab;
  call.lists = lists.get();
  call.row_slots = d_slots.get();
  call.last_ids = last.get();
  call.counts = counts.get();
  call.adjusted = adjusted.get();
  call.results = results.get();
  cuda::SampleParams greedy;
  greedy.kind = cuda::SampleKind::kSample;
  greedy.seed = 9;
  auto temperature = greedy, top_p = greedy, top_k = greedy, penalties = greedy, describe = greedy;
  for (auto* p : {&temperature, &top_p, &top_k, &penalties, &describe}) p->temperature = 0.8f;
  top_p.top_p = top_k.top_p = 0.95f;
  top_k.top_k = 50;
  penalties.presence_penalty = 0.5f;
  describe.describe = 1;
  describe.num_top = 5;
  const struct {
    const char* name;
    const cuda::SampleParams& params;
  } kinds[] = {{"greedy", greedy},
               {"temperature", temperature},
               {"top_p 0.95", top_p},
               {"top_k 50, top_p 0.95", top_k},
               {"penalties, temperature", penalties},
               {"temperature, 5 logprobs", describe}};
  for (const auto& kind : kinds) {
    const DeviceBuffer<cuda::SampleParams> params(
        std::vector<cuda::SampleParams>(rows, kind.params));
    call.params = params.get();
    const std::string name = "sample V " + std::to_string(vocab) + ": " + kind.name;
    Print(name.c_str(), rows,
          Micros([&](cudaStream_t s) { CheckCuda(cuda::LaunchSample(call, props_, s), "sample"); }),
          logits.bytes());
  }
}

}  // namespace

int RunOps(const OpsOptions& options) {
  const ModelShape* shape = nullptr;
  for (const ModelShape& s : kModelShapes) {
    if (s.name == options.shape) shape = &s;
  }
  if (shape == nullptr) {
    std::fprintf(stderr, "no shape named %s\n", options.shape.c_str());
    return 2;
  }
  std::string error;
  const auto cublas = cuda::Cublas::Open(&error);
  const DeviceBuffer<uint8_t> workspace(32 << 20);
  if (cublas == nullptr) {
    std::fprintf(stderr, "without cuBLAS: %s\n", error.c_str());
  } else {
    cublas->SetWorkspace(workspace.get(), workspace.bytes());
  }
  Bench bench(options, *shape);
  std::printf("%s; read bandwidth %.2f TB/s\n%-34s %6s %9s %8s\n", options.shape.c_str(),
              bench.bandwidth() / 1e6, "operation", "rows", "us", "% of it");
  for (int m : options.m) {
    bench.Norms(m);
    bench.Silu(m);
    if (m <= cuda::kMaxDenseTokens) bench.Heads(m, cublas.get());
  }
  for (int vocab : {options.vocab, 151936}) {
    for (int m : options.m) {
      if (m <= cuda::kMaxDenseTokens) bench.Samplers(m, vocab);
    }
  }
  return 0;
}

}  // namespace fewbit::bench
