// Groups of matrices with one input, activations staged by their producer, and chains of dependent
// launches: always the bits of one matrix run alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "tests/gpu/gpu_linear.h"
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
  DeviceBuffer<uint8_t> staged;
  cuda::LinearInput in;
  DeviceBuffer<float> y;
  cuda::LinearOutput out;

  Launch(const Group& g, const cuda::Tuning& tuning = {})
      : plan(cuda::Select(g.desc, ThisDevice(), tuning)),
        staged(cuda::StagedBytes(g.desc, plan)),
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
  }
  void Run(const Group& g, cudaStream_t stream = nullptr) const {
    EXPECT_EQ(cuda::LaunchLinear(g.desc, plan, g.view, in, out, {}, stream), "");
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

// Every layer's input is made from the output of the one before. Launched back to back, kernels
// start early and ask for weights; the bits are those of a run that waits after every launch.
TEST(LinearGroupGpu, ChainOfDependentLaunches) {
  std::mt19937 rng(33);
  constexpr int kWidth = 2048, kLayers = 4, kRounds = 12;
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
      for (int i = 0; i < kRounds * kLayers; ++i) {
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
