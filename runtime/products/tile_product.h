// Products of matrix tiles on one thread of the CPU. The one place that sees oneDNN.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace fewbit {

enum class TileType : uint8_t { kFloat32, kBFloat16 };

// A matrix in row-major order; `transposed`: stored as the transpose of what is multiplied.
struct TileOperand {
  const void* data = nullptr;  // of the product's type
  int64_t row_stride = 0;      // elements between rows as stored
  bool transposed = false;
};

// c [m, n] = alpha * a b + beta * c in float32; a [m, k], b [k, n]. Where beta is 0 the old content
// of c is not read.
struct TileProduct {
  int m = 0;
  int n = 0;
  int k = 0;
  TileType type = TileType::kFloat32;
  TileOperand a, b;
  float alpha = 1.0f;  // 1 for bfloat16
  float beta = 0.0f;
  float* c = nullptr;
  int64_t c_row_stride = 0;
};

// Whether this processor has instructions for products of bfloat16 numbers.
bool HasBFloat16Products();

// What results depend on beside the arguments: the library's version and the instructions that it
// uses here.
std::string ProductsName();

// Results depend on the arguments and ProductsName() only. Thread rule: one caller at a
// time; several of these run beside each other.
class TileMultiplier {
 public:
  TileMultiplier();
  ~TileMultiplier();

  void Multiply(const TileProduct& product);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fewbit
