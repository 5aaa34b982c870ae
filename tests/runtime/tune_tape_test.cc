// The passes of tuning for every model family: forward against the decoder, gradients against
// finite differences of the loss in double.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <random>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/tune/cpu_ops.h"
#include "tests/npy.h"
#include "tests/runtime/model_runner.h"
#include "tests/runtime/random_model.h"
#include "tests/runtime/tape_runner.h"

namespace fewbit {
namespace {

using testing::DoubleModel;
using testing::Doubles;
using testing::TapeResult;
using testing::TapeRunner;

std::string Directory(const std::string& name) {
  return std::string(FEWBIT_SOURCE_DIR) + "/tests/golden/" + name;
}

std::unique_ptr<Model> Load(const std::string& name) { return LoadModel(Directory(name)).value(); }

std::vector<int32_t> Prompt(const std::string& name) {
  std::ifstream in(Directory(name) + "/golden.json");
  return nlohmann::json::parse(in)["prompt_ids"].get<std::vector<int32_t>>();
}

double Dot(const Doubles& a, const Doubles& b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

double Length(const Doubles& x) { return std::sqrt(Dot(x, x)); }

template <typename A, typename B>
double LargestError(const std::vector<A>& got, const std::vector<B>& want) {
  if (got.size() != want.size()) return INFINITY;
  double error = 0.0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double e = std::fabs(static_cast<double>(got[i]) - want[i]);
    if (!(e <= error)) error = e;
  }
  return error;
}

// A student that differs from the model it was made of in everything that is tuned, its teacher,
// and windows of text for both.
struct Lesson {
  explicit Lesson(const Model& model, std::span<const int32_t> ids, int num_windows, int length)
      : windows(num_windows), context(length), teacher(model), student(model) {
    std::mt19937 engine(1);
    std::normal_distribution<double> normal;
    student.ForEachTuned([&](const std::string&, Doubles& array) {
      for (double& x : array) x = static_cast<float>(x * (1.0 + 0.2 * normal(engine)));
    });
    input = testing::Embed(student, ids.first(windows * context));
    teacher_hidden = input;
    testing::RunLayers(teacher, context, &teacher_hidden);
    // The device sees floats.
    for (double& x : teacher_hidden) x = static_cast<float>(x);
    teacher_logits = testing::Logits(teacher, teacher_hidden);
  }

  int rows() const { return windows * context; }

  // Mean over rows.
  double Loss() const {
    Doubles hidden = input;
    testing::RunLayers(student, context, &hidden);
    return testing::SumOfDivergences(teacher_logits, testing::Logits(student, hidden),
                                     student.spec.vocab_size) /
           rows();
  }

  TapeResult Run(tune::Ops* ops, int head_rows = 7,
                 int64_t score_bytes = tune::LayerTape::kScoreBytes) const {
    TapeRunner runner(student, ops, windows, context, head_rows, score_bytes);
    return runner.Run(input, teacher, teacher_hidden, 1.0f / static_cast<float>(rows()));
  }

  int windows, context;
  DoubleModel teacher, student;
  Doubles input, teacher_hidden, teacher_logits;
};

Lesson TwoWindows(const std::string& name) {
  const std::vector<int32_t> prompt = Prompt(name);
  // Longer than the window of the family that has one.
  const int context = std::min<int>(prompt.size() / 2, 40);
  return Lesson(*Load(name), prompt, 2, context);
}

// `gradient` of the loss with respect to `array`, which is part of the lesson, along a random
// direction, along itself and at its largest element.
void ExpectGradient(const Lesson& lesson, const std::string& name, const std::vector<float>& got,
                    Doubles* array) {
  SCOPED_TRACE(name);
  ASSERT_EQ(got.size(), array->size());
  const Doubles gradient(got.begin(), got.end());
  const double length = Length(gradient);
  ASSERT_GT(length, 1e-6);
  std::mt19937 engine(2);
  std::normal_distribution<double> normal;
  Doubles random(array->size()), own = gradient, single(array->size());
  for (double& x : random) x = normal(engine);
  const auto largest = std::max_element(gradient.begin(), gradient.end(), [](double a, double b) {
    return std::fabs(a) < std::fabs(b);
  });
  single[largest - gradient.begin()] = 1.0;
  for (Doubles* direction : {&random, &own, &single}) {
    const double unit = 1.0 / Length(*direction);
    for (double& x : *direction) x *= unit;
    constexpr double kStep = 1e-4;
    const Doubles start = *array;
    double losses[2];
    for (const int side : {0, 1}) {
      for (size_t i = 0; i < start.size(); ++i) {
        (*array)[i] = start[i] + (side == 0 ? kStep : -kStep) * (*direction)[i];
      }
      losses[side] = lesson.Loss();
    }
    *array = start;
    EXPECT_NEAR(Dot(gradient, *direction), (losses[0] - losses[1]) / (2 * kStep), 2e-5 * length);
  }
}

class Families : public ::testing::TestWithParam<const char*> {};

TEST_P(Families, ForwardIsTheDecoders) {
  const auto model = Load(GetParam());
  const std::vector<int32_t> prompt = Prompt(GetParam());
  const int context = static_cast<int>(prompt.size());
  const DoubleModel reference(*model);
  Doubles hidden = testing::Embed(reference, prompt);
  const Doubles input = hidden;
  testing::RunLayers(reference, context, &hidden);
  const Doubles logits = testing::Logits(reference, hidden);
  const auto golden = testing::ReadNpy<float>(Directory(GetParam()) + "/logits.npy").values;
  EXPECT_LE(LargestError(logits, golden), 2e-3);

  const auto ops = tune::CreateCpuOps(2);
  TapeRunner runner(reference, ops.get(), 1, context, context);
  const TapeResult result = runner.Run(input, reference, hidden, 1.0f);
  EXPECT_LE(LargestError(result.hidden, hidden), 1e-4);
  EXPECT_LE(std::fabs(result.sums.kl), 1e-6);
  EXPECT_EQ(result.sums.same_top, context);

  ThreadTeam team(2);
  std::vector<float> got(logits.size());
  ComputeLogits(model->spec, model->final_norm, model->head, result.hidden.data(), context, &team,
                cpu::BestIsa(), got.data());
  testing::ModelRunner decoder(*model);
  const int sequence = decoder.Add(prompt);
  decoder.Step({{sequence, context}});
  EXPECT_LE(LargestError(got, decoder.sequence(sequence).logits), 1e-4);
}

TEST_P(Families, GradientsAreThoseOfTheLoss) {
  Lesson lesson = TwoWindows(GetParam());
  const auto ops = tune::CreateCpuOps(2);
  TapeResult result = lesson.Run(ops.get());
  const double loss = lesson.Loss();
  ASSERT_GT(loss, 1e-2);
  EXPECT_NEAR(result.sums.kl / lesson.rows(), loss, 1e-5 * loss);
  ExpectGradient(lesson, "input", result.d_hidden, &lesson.input);
  size_t tuned = 0;
  lesson.student.ForEachTuned([&](const std::string& name, Doubles& array) {
    ExpectGradient(lesson, name, result.gradients[name], &array);
    ++tuned;
  });
  EXPECT_EQ(result.gradients.size(), tuned);
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST_P(Families, AnyNumberOfThreadsGivesTheSameBits) {
  const Lesson lesson = TwoWindows(GetParam());
  const TapeResult one = lesson.Run(tune::CreateCpuOps(1).get());
  for (const int threads : {2, 3, 8}) {
    SCOPED_TRACE(threads);
    const TapeResult more = lesson.Run(tune::CreateCpuOps(threads).get());
    EXPECT_EQ(more.sums.kl, one.sums.kl);
    EXPECT_TRUE(SameBits(more.hidden, one.hidden));
    EXPECT_TRUE(SameBits(more.d_hidden, one.d_hidden));
    for (const auto& [name, gradient] : one.gradients) {
      EXPECT_TRUE(SameBits(more.gradients.at(name), gradient)) << name;
    }
  }
}

// Rounding what is multiplied turns no gradient, and gives the same bits on any number of threads.
TEST_P(Families, BFloat16Products) {
  if (!HasBFloat16Products()) GTEST_SKIP() << "not on this processor";
  const auto ops = [](int threads) {
    return tune::CreateCpuOps(threads, cpu::BestIsa(), TileType::kBFloat16);
  };
  const Lesson lesson = TwoWindows(GetParam());
  const TapeResult exact = lesson.Run(tune::CreateCpuOps(2).get());
  const TapeResult one = lesson.Run(ops(1).get()), more = lesson.Run(ops(3).get());
  EXPECT_NEAR(one.sums.kl, exact.sums.kl, 0.02 * exact.sums.kl);
  EXPECT_EQ(more.sums.kl, one.sums.kl);
  for (const auto& [name, gradient] : exact.gradients) {
    const Doubles want(gradient.begin(), gradient.end());
    const std::vector<float>& rounded = one.gradients.at(name);
    const Doubles got(rounded.begin(), rounded.end());
    EXPECT_GT(Dot(got, want) / (Length(got) * Length(want)), 0.998) << name;
    EXPECT_TRUE(SameBits(more.gradients.at(name), rounded)) << name;
  }
}

// With memory for the scores of one window only, backward makes the probabilities again.
TEST_P(Families, OneWindowOfScoresAtOnce) {
  const Lesson lesson = TwoWindows(GetParam());
  const auto ops = tune::CreateCpuOps(2);
  const TapeResult all = lesson.Run(ops.get());
  const int64_t peak = ops->PeakBytes();
  const auto small = tune::CreateCpuOps(2);
  const TapeResult one = lesson.Run(small.get(), 7, 1);
  EXPECT_LT(small->PeakBytes(), peak);
  EXPECT_LE(LargestError(one.hidden, all.hidden), 1e-5);
  for (const auto& [name, gradient] : all.gradients) {
    const Doubles want(gradient.begin(), gradient.end());
    EXPECT_LE(LargestError(one.gradients.at(name), gradient), 1e-5 * Length(want)) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, Families,
                         ::testing::Values("llama2", "llama3", "mistral-swa", "qwen2", "qwen3",
                                           "glm", "chatglm2"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::erase(name, '-');
                           return name;
                         });

TEST(HeadLoss, WithoutGradientsTheSumsAreTheSame) {
  const Lesson lesson = TwoWindows("qwen2");
  const auto ops = tune::CreateCpuOps(2);
  const TapeResult result = lesson.Run(ops.get());
  const ModelSpec& spec = lesson.student.spec;
  const auto upload = [&](const Doubles& x) {
    return tune::DeviceArray<float>::Upload(ops.get(), std::vector<float>(x.begin(), x.end()))
        .value();
  };
  const auto teacher_norm = upload(lesson.teacher.final_norm), head = upload(lesson.teacher.head);
  const auto teacher_hidden = upload(lesson.teacher_hidden);
  const auto norm = upload(lesson.student.final_norm);
  const auto hidden = tune::DeviceArray<float>::Upload(ops.get(), result.hidden).value();
  auto loss = tune::HeadLoss::Create(spec, ops.get(), 7).value();
  tune::LossSums sums = {.kl = 1.0, .same_top = 2.0};
  loss->Run({teacher_norm.data(), head.data()}, teacher_hidden.data(), {norm.data(), head.data()},
            hidden.data(), lesson.rows(), 1.0f, &sums, nullptr, nullptr);
  EXPECT_NEAR(sums.kl, 1.0 + result.sums.kl, 1e-12);
  EXPECT_EQ(sums.same_top, 2.0 + result.sums.same_top);
}

TEST(LayerTape, SaysWhatItWouldTake) {
  ModelSpec spec = testing::SmallSpec();
  spec.ffn_size = 1 << 28;
  const auto ops = tune::CreateCpuOps(1);
  const absl::Status status = tune::LayerTape::Create(spec, ops.get(), 100, 1000).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              ::testing::AllOf(::testing::HasSubstr("100 windows of 1000 tokens"),
                               ::testing::HasSubstr("bytes; "), ::testing::HasSubstr("free")));
}

}  // namespace
}  // namespace fewbit
