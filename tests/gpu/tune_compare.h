// Runs the same operators of tuning on the CPU and on the GPU and compares what they leave in
// memory: within a tolerance, nothing written beyond an array, and the GPU's bits twice the same.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "runtime/tune/ops.h"

namespace fewbit::testing {

// Values that were never written: NaN.
std::vector<float> Unwritten(size_t count);

// Normal values, in steps of 1/64 between -4 and 4 where `exact`: products of two of them are the
// same in TF32 as in float32.
std::vector<float> RandomFloats(size_t count, std::mt19937* rng, bool exact = false);

bool SameBits(const std::vector<float>& a, const std::vector<float>& b);

// ||x - reference|| / ||reference||; NaN in both counts as equal (neither was written).
double RelativeError(const std::vector<float>& x, const std::vector<float>& reference);

// One of each for the whole program's tests: opening cuBLAS takes longer than any of them.
class TuneGpu : public ::testing::Test {
 protected:
  static void SetUpTestSuite();
  static void TearDownTestSuite();
  void SetUp() override;

  // Arrays in device memory, in the order given, and sums that start at `kFirstSums`.
  using Run = std::function<void(tune::Ops*, const std::vector<float*>&, tune::LossSums*)>;
  static constexpr tune::LossSums kFirstSums = {1.0, 2.0};

  // `tolerance` bounds the relative error of each array and each sum.
  void ExpectSame(const std::vector<std::vector<float>>& arrays, double tolerance, const Run& run);

  static std::unique_ptr<tune::Ops> cpu_, gpu_;

 private:
  struct Outcome {
    std::vector<std::vector<float>> arrays;
    tune::LossSums sums;
  };
  static Outcome RunOn(tune::Ops* ops, const std::vector<std::vector<float>>& arrays,
                       const Run& run);
};

}  // namespace fewbit::testing
