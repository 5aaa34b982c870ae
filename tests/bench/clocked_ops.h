// Any device's operators with a stopwatch around each: for benchmarks.
#pragma once

#include <chrono>
#include <map>
#include <string>

#include "runtime/tune/ops.h"

namespace fewbit::testing {

// Thread rule: one caller at a time.
class ClockedOps final : public tune::Ops {
 public:
  // `device_word`: 4 bytes in the device's memory, which are downloaded to wait for every call;
  // null: calls are done when they return, as those of the CPU are.
  explicit ClockedOps(tune::Ops* ops, const void* device_word = nullptr)
      : ops_(ops), device_word_(device_word) {}

  // Seconds by operator since the last Reset.
  const std::map<std::string, double>& seconds() const { return seconds_; }
  void Reset() { seconds_.clear(); }

  const std::string& device() const override { return ops_->device(); }
  absl::StatusOr<void*> Allocate(size_t bytes) override { return ops_->Allocate(bytes); }
  void Free(void* data) override { ops_->Free(data); }
  void Upload(const void* host, size_t bytes, void* device) override {
    ops_->Upload(host, bytes, device);
  }
  void Download(const void* device, size_t bytes, void* host) override {
    ops_->Download(device, bytes, host);
  }
  int64_t PeakBytes() const override { return ops_->PeakBytes(); }

  void Zero(void* device, size_t bytes) override {
    Clock("copy", [&] { ops_->Zero(device, bytes); });
  }
  void Copy(const void* from, size_t bytes, void* to) override {
    Clock("copy", [&] { ops_->Copy(from, bytes, to); });
  }
  void Multiply(const tune::Product& product) override {
    const char* name = product.outer * product.inner > 1 ? "products of attention"
                       : product.a.transposed            ? "products, weight gradients"
                       : product.b.transposed            ? "products, outputs"
                                                         : "products, input gradients";
    Clock(name, [&] { ops_->Multiply(product); });
  }
  void Widen(const void* from, DType type, int64_t count, float* to) override {
    Clock("widen", [&] { ops_->Widen(from, type, count, to); });
  }
  void Weights(const tune::ScaledMatrix& matrix, float* weights) override {
    Clock("weights", [&] { ops_->Weights(matrix, weights); });
  }
  void WeightGradients(const tune::ScaledMatrix& matrix, const float* d_weights,
                       const tune::ScaledMatrixGradients& gradients) override {
    Clock("weight gradients", [&] { ops_->WeightGradients(matrix, d_weights, gradients); });
  }
  void Add(const float* x, int64_t count, float* y) override {
    Clock("add", [&] { ops_->Add(x, count, y); });
  }
  void AddBias(const float* bias, int rows, int cols, float* y) override {
    Clock("add", [&] { ops_->AddBias(bias, rows, cols, y); });
  }
  void RmsNorm(const float* x, const float* weight, float eps, int rows, int cols, float* y,
               float* inverse_rms) override {
    Clock("norms", [&] { ops_->RmsNorm(x, weight, eps, rows, cols, y, inverse_rms); });
  }
  void RmsNormBackward(const float* x, const float* weight, const float* inverse_rms,
                       const float* dy, int rows, int cols, bool add, float* dx,
                       float* d_weight) override {
    Clock("norms", [&] {
      ops_->RmsNormBackward(x, weight, inverse_rms, dy, rows, cols, add, dx, d_weight);
    });
  }
  void Rope(const tune::RopeArgs& args, bool inverse, float* x) override {
    Clock("rope", [&] { ops_->Rope(args, inverse, x); });
  }
  void CausalSoftmax(int64_t matrices, int context, int window, float* scores) override {
    Clock("softmax", [&] { ops_->CausalSoftmax(matrices, context, window, scores); });
  }
  void CausalSoftmaxBackward(int64_t matrices, int context, int window, const float* probabilities,
                             float* gradients) override {
    Clock("softmax", [&] {
      ops_->CausalSoftmaxBackward(matrices, context, window, probabilities, gradients);
    });
  }
  void SiluMul(const float* gate, const float* up, int64_t count, float* y) override {
    Clock("silu", [&] { ops_->SiluMul(gate, up, count, y); });
  }
  void SiluMulBackward(const float* dy, int64_t count, float* gate, float* up) override {
    Clock("silu", [&] { ops_->SiluMulBackward(dy, count, gate, up); });
  }
  void KlDivergence(const float* teacher, int rows, int vocab, float scale, bool gradient,
                    float* student, tune::LossSums* sums) override {
    Clock("divergence",
          [&] { ops_->KlDivergence(teacher, rows, vocab, scale, gradient, student, sums); });
  }
  void Adam(const tune::AdamArgs& args) override {
    Clock("adam", [&] { ops_->Adam(args); });
  }

 private:
  template <typename Fn>
  void Clock(const char* name, const Fn& fn) {
    const auto start = std::chrono::steady_clock::now();
    fn();
    float word;
    if (device_word_ != nullptr) ops_->Download(device_word_, sizeof(word), &word);
    seconds_[name] +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  tune::Ops* const ops_;
  const void* const device_word_;
  std::map<std::string, double> seconds_;
};

}  // namespace fewbit::testing
