// Groups of matrices with one input, activations staged by their producer, and chains of dependent
// launches: always the bits of one matrix run alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "kernels/cuda/ops.h"
#include "tests/gpu/gpu_linear.h"
#include "tests/gpu/on_device.h"
#include "tests/gpu/stage_rows.h"
#include "tests/kernels/random_matrix.h"

namespace fewbit::testing {
namespace {

using cuda::CheckCuda;
using cuda::DeviceBuffer;

// Matrices with one input, all in one launch.
struct Group {
  std::vector<GpuMatrix> parts;
  cuda::Desc desc;
  cuda::DeviceGroup view;

  Group(const std::vector<PackedOptions>& options, std::mt19937* rng) {
    for (const PackedOptions& o : options) {
      const quant::PackedStorage packed = quant::Pack(RandomUnpacked(o, rng));
      desc.shapes[parts.size()] = packed.shape;
      parts.emplace_back(packed);
    }
    desc.count = view.count = static_cast<int>(parts.size());
    for (size_t i = 0; i < parts.size(); ++i) view.parts[i] = parts[i].view();
    desc.x_type = desc.y_type = DType::kF32;
  }
};

// The group's launch into one row of outputs, with gaps between the parts.
struct Launch {
  static constexpr int64_t kGap = 24;

  cuda::Plan plan;
  DeviceBuffer<uint8_t> staged, exchange;
  cuda::LinearInput in;
  DeviceBuffer<float> y;
  cuda::LinearOutput out;

  Launch(const Group& g, const cuda::Tuning& tuning = {})
      : plan(cuda::Select(g.desc, ThisDevice(), tuning)),
        staged(cuda::StagedBytes(g.desc, plan)),
        exchange(ZeroedExchange()),
        in(cuda::InputOf(g.desc, plan, g.view, staged.get(), nullptr)) {
    EXPECT_EQ(plan.error, "");
    for (int p = 0; p < g.desc.count; ++p) {
      out.column[p] = out.stride + kGap;
      out.stride = out.column[p] + g.desc.shapes[p].rows;
    }
    y = DeviceBuffer<float>(out.stride * g.desc.m);
    out.y = y.get();
    CheckCuda(cudaMemset(y.get(), 0xFF, y.bytes()), "poison");
    CheckCuda(cudaMemset(staged.get(), 0xFF, staged.bytes()), "poison");
    CheckCuda(cudaDeviceSynchronize(), "poison");  // launches may be on another stream
  }
  void Run(const Group& g, cudaStream_t stream = nullptr) const {
    cuda::LinearWorkspace workspace;
    workspace.exchange = exchange.get();
    EXPECT_EQ(cuda::LaunchLinear(g.desc, plan, g.view, in, out, workspace, stream), "");
  }
};

std::vector<float> Part(const Group& g, const Launch& l, const std::vector<float>& y, int part) {
  const int rows = g.desc.shapes[part].rows;
  std::vector<float> out;
  for (int i = 0; i < g.desc.m; ++i) {
    const auto from = y.begin() + i * l.out.stride + l.out.column[part];
    out.insert(out.end(), from, from + rows);
  }
  return out;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST(LinearGroupGpu, SameBitsAsEachMatrixAlone) {
  std::mt19937 rng(31);
  const std::vector<std::vector<PackedOptions>> groups = {
      {{1040, 1024, 0.25, false, 0.002}, {96, 1024, 0.6, false, 0.01}, {101, 1024, 0.0}},
      {{500, 2064, 0.3, true}, {500, 2064, 0.2, true, 0.004}},
      {{4096, 256, 0.25}, {16, 256, 1.0}, {3, 256, 0.5}}};
  for (const auto& options : groups) {
    Group g(options, &rng);
    for (int m : {1, 2, 3, 6, 8, 20}) {
      g.desc.m = m;
      const auto x = RandomActivations(size_t{1} * m * options[0].cols, &rng);
      const DeviceBuffer<float> x_device(x);
      for (int use_cp_async : {0, 1}) {
        cuda::Tuning tuning;
        tuning.use_cp_async = use_cp_async;
        const Launch launch(g, tuning);
        CheckCuda(
            cuda::StageActivations(g.desc, x_device.get(), options[0].cols, launch.in, nullptr),
            "StageActivations");
        launch.Run(g);
        CheckCuda(cudaDeviceSynchronize(), "LaunchLinear");
        const std::vector<float> y = launch.y.Download();
        for (int p = 0; p < g.desc.count; ++p) {
          cuda::Desc one = g.desc;
          one.count = 1;
          one.shapes[0] = g.desc.shapes[p];
          EXPECT_TRUE(SameBits(Part(g, launch, y, p), RunGpuLinear(one, g.parts[p], x)))
              << Describe(options[p]) << " m " << m << " cp.async " << use_cp_async;
        }
        for (int i = 0; i < m; ++i) {  // the gaps are as they were
          uint32_t gap;
          std::memcpy(&gap, &y[i * launch.out.stride + Launch::kGap - 1], sizeof(gap));
          EXPECT_EQ(gap, 0xFFFFFFFFu);
        }
      }
    }
  }
}

TEST(LinearGroupGpu, ProducersStageTheSameBits) {
  std::mt19937 rng(32);
  Group g({{320, 2064, 0.3, false, 0.002}, {64, 2064, 0.7}}, &rng);
  for (int m : {1, 5, 8, 33}) {
    g.desc.m = m;
    const DeviceBuffer<float> x(RandomActivations(size_t{1} * m * 2064, &rng));
    std::vector<float> results[2];
    for (int by_producer : {0, 1}) {
      const Launch launch(g);
      CheckCuda(by_producer ? StageRows(x.get(), 2064, m, 2064, 1.0f, launch.in, nullptr)
                            : cuda::StageActivations(g.desc, x.get(), 2064, launch.in, nullptr),
                "staging");
      launch.Run(g);
      CheckCuda(cudaDeviceSynchronize(), "LaunchLinear");
      results[by_producer] = launch.y.Download();
    }
    EXPECT_TRUE(SameBits(results[0], results[1])) << "m " << m;
  }
}

// A layer that makes its input itself: the bits of the kernel that would have staged it.
class MadeInput {
 public:
  MadeInput(const std::vector<PackedOptions>& options, int m, std::mt19937* rng)
      : group_(options, rng), m_(m), cols_(options[0].cols) {
    const size_t elements = size_t{1} * (m + 3) * cols_;
    first_ = DeviceBuffer<float>(RandomActivations(elements, rng));
    second_ = DeviceBuffer<float>(RandomActivations(elements, rng));
    weight_ = DeviceBuffer<float>(RandomActivations(cols_, rng));
    kept_[0] = DeviceBuffer<float>(size_t{1} * m * cols_);
    kept_[1] = DeviceBuffer<float>(size_t{1} * m * cols_);
    rows_ = DeviceBuffer<int32_t>(std::vector<int32_t>{2, 0, 1});
  }

  // False if the plan stages for this kind and number of tokens. `keep`: a norm's rows are copied.
  bool Check(cuda::RowKind kind, bool keep = true) {
    keep_ = keep;
    group_.desc.m = m_;
    group_.desc.input = cuda::RowKind::kStaged;
    Launch staged(group_);
    Stage(kind, staged.in);
    staged.Run(group_);
    group_.desc.input = kind;
    Launch made(group_);
    if (!made.plan.makes_input()) return false;
    made.in.source = Source(kind);
    for (int i = 0; i < 3; ++i) made.Run(group_);
    CheckCuda(cudaDeviceSynchronize(), "LaunchLinear");
    EXPECT_TRUE(SameBits(staged.y.Download(), made.y.Download()))
        << "kind " << static_cast<int>(kind) << " m " << m_ << " cols " << cols_;
    if (kind == cuda::RowKind::kNorm && keep) {
      EXPECT_TRUE(SameBits(kept_[0].Download(), kept_[1].Download()));
    }
    return true;
  }

 private:
  cuda::RowSource Source(cuda::RowKind kind) const {
    cuda::RowSource s;
    s.kind = kind;
    s.first = first_.get();
    s.second = second_.get();
    s.stride = cols_;
    if (kind != cuda::RowKind::kNorm) return s;
    s.rows = m_ == 1 ? nullptr : rows_.get();
    s.weight = weight_.get();
    s.eps = 1e-5f;
    s.second = nullptr;
    if (keep_) s.hidden_out = kept_[1].get();
    return s;
  }
  void Stage(cuda::RowKind kind, const cuda::LinearInput& to) {
    const cuda::RowSource s = Source(kind);
    if (kind == cuda::RowKind::kRows) {
      CheckCuda(StageRows(s.first, s.stride, m_, cols_, 1.0f, to, nullptr), "StageRows");
    } else if (kind == cuda::RowKind::kSiluMul) {
      CheckCuda(
          cuda::LaunchSiluMul({m_, cols_, s.first, s.second, DType::kF32, s.stride}, to, nullptr),
          "LaunchSiluMul");
    } else {
      cuda::NormArgs norm;
      norm.tokens = m_;
      norm.cols = cols_;
      norm.hidden = s.first;
      norm.rows = s.rows;
      norm.hidden_out = keep_ ? kept_[0].get() : nullptr;
      norm.weight = s.weight;
      norm.eps = s.eps;
      CheckCuda(cuda::LaunchAddNorm(norm, to, nullptr), "LaunchAddNorm");
    }
  }

  Group group_;
  const int m_, cols_;
  bool keep_ = true;
  DeviceBuffer<float> first_, second_, weight_, kept_[2];
  DeviceBuffer<int32_t> rows_;
};

TEST(LinearGroupGpu, LayersThatMakeTheirInput) {
  if (ThisDevice().major < 9) GTEST_SKIP() << "needs sm_90";
  CheckCuda(cuda::PrepareOps(), "PrepareOps");
  std::mt19937 rng(34);
  const std::vector<std::vector<PackedOptions>> groups = {
      {{1040, 4096, 0.25, false, 0.002}, {96, 4096, 0.6, false, 0.01}, {101, 4096, 0.0}},
      {{500, 2064, 0.3, true}, {500, 2064, 0.2, true, 0.004}},
      {{64, 11008, 0.25, false, 0.002}},
      {{2200, 272, 0.4}}};
  for (const auto& options : groups) {
    for (int m : {1, 2}) {
      MadeInput input(options, m, &rng);
      for (cuda::RowKind kind :
           {cuda::RowKind::kRows, cuda::RowKind::kNorm, cuda::RowKind::kSiluMul}) {
        // 11008 columns of two tokens are more than a block is to read.
        EXPECT_EQ(input.Check(kind),
                  m == 1 || options[0].cols < 11008 || kind == cuda::RowKind::kRows);
      }
      EXPECT_EQ(input.Check(cuda::RowKind::kNorm, false), m == 1 || options[0].cols < 11008);
    }
  }
}

TEST(LinearGroupGpu, ReducedSetMadeInput) {
  if (ThisDevice().major < 9) GTEST_SKIP() << "needs sm_90";
  CheckCuda(cuda::PrepareOps(), "PrepareOps");
  std::mt19937 rng(35);
  MadeInput input({{112, 2064, 0.3, false, 0.002}, {96, 2064, 0.6}}, 2, &rng);
  for (cuda::RowKind kind : {cuda::RowKind::kRows, cuda::RowKind::kNorm, cuda::RowKind::kSiluMul}) {
    EXPECT_TRUE(input.Check(kind));
  }
  EXPECT_TRUE(input.Check(cuda::RowKind::kNorm, false));
}

// The result is added to rows that are there already.
TEST(LinearGroupGpu, ReducedSetAddsRows) {
  if (ThisDevice().major < 9) GTEST_SKIP() << "needs sm_90";
  std::mt19937 rng(36);
  Group g({{320, 2064, 0.3, false, 0.002}, {101, 2064, 0.6}}, &rng);
  for (int m : {1, 2, 4, 7}) {
    g.desc.m = m;
    Launch launch(g);
    ASSERT_TRUE(launch.plan.adds());
    const DeviceBuffer<float> x(RandomActivations(size_t{1} * m * 2064, &rng));
    CheckCuda(cuda::StageActivations(g.desc, x.get(), 2064, launch.in, nullptr), "staging");
    launch.Run(g);
    CheckCuda(cudaDeviceSynchronize(), "LaunchLinear");
    const std::vector<float> alone = launch.y.Download();
    const std::vector<float> rows = RandomActivations(alone.size(), &rng);
    const DeviceBuffer<float> add(rows);
    launch.out.add = add.get();
    launch.Run(g);
    CheckCuda(cudaDeviceSynchronize(), "LaunchLinear");
    const std::vector<float> sum = launch.y.Download();
    for (size_t i = 0; i < sum.size(); ++i) {
      if (std::isnan(alone[i])) continue;  // a gap between the parts
      ASSERT_EQ(sum[i], alone[i] + rows[i]) << "m " << m << " at " << i;
    }
  }
}

// Every layer's input is made from the output of the one before. Launched back to back, kernels
// start early and ask for weights; the bits are those of a run that waits after every launch.
TEST(LinearGroupGpu, ChainOfDependentLaunches) {
  std::mt19937 rng(33);
  constexpr int kWidth = 2048, kLayers = 4;
  const int rounds = OnDevice(12, 1);
  std::vector<std::unique_ptr<Group>> layers;
  for (int i = 0; i < kLayers; ++i) {
    // The second part is there to make grids and shared memory differ from layer to layer.
    layers.push_back(std::make_unique<Group>(
        std::vector<PackedOptions>{{kWidth, kWidth, 0.1 + 0.2 * i, false, 0.002},
                                   {16 + 700 * i, kWidth, 0.3}},
        &rng));
  }
  cudaStream_t stream;
  CheckCuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  for (int m : {1, 3, 8, 17}) {
    const DeviceBuffer<float> x(RandomActivations(size_t{1} * m * kWidth, &rng));
    std::vector<std::unique_ptr<Launch>> launches;
    for (auto& layer : layers) {
      layer->desc.m = m;
      launches.push_back(std::make_unique<Launch>(*layer));
    }
    std::vector<float> results[2];
    for (bool wait : {true, false}) {
      for (int i = 0; i < rounds * kLayers; ++i) {
        const Launch& l = *launches[i % kLayers];
        const Launch& before = *launches[(i + kLayers - 1) % kLayers];
        const bool first = i == 0;
        const float* from =
            first ? x.get() : static_cast<float*>(before.out.y) + before.out.column[0];
        CheckCuda(StageRows(from, first ? kWidth : before.out.stride, m, kWidth,
                            first ? 1.0f : 0.05f, l.in, stream),
                  "StageRows");
        if (wait) CheckCuda(cudaStreamSynchronize(stream), "StageRows");
        l.Run(*layers[i % kLayers], stream);
        if (wait) CheckCuda(cudaStreamSynchronize(stream), "LaunchLinear");
      }
      CheckCuda(cudaStreamSynchronize(stream), "chain");
      for (const auto& l : launches) {
        const std::vector<float> y = l->y.Download();
        results[wait].insert(results[wait].end(), y.begin(), y.end());
      }
    }
    EXPECT_TRUE(SameBits(results[0], results[1])) << "m " << m;
    const size_t finite = std::count_if(results[1].begin(), results[1].end(),
                                        [](float v) { return std::isfinite(v) && v != 0; });
    EXPECT_GT(finite, results[1].size() / 2) << "the chain died out or blew up";
  }
  cudaStreamDestroy(stream);
}

}  // namespace
}  // namespace fewbit::testing
