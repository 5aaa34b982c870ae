// Models made up for tests: random dense float32 weights of any spec, and a trivially rounded
// packed twin of any model.
#pragma once

#include <algorithm>
#include <cmath>
#include <deque>
#include <memory>
#include <random>
#include <vector>

#include "kernels/cpu/linear.h"
#include "kernels/quant_pack.h"
#include "runtime/models/model.h"

namespace fewbit::testing {

// A model together with the memory its matrices point into.
struct OwnedModel {
  Model model;
  std::deque<std::vector<float>> dense;
  std::deque<quant::PackedStorage> packed;
};

inline ModelSpec SmallSpec() {
  ModelSpec spec;
  spec.family = "test";
  spec.num_layers = 2;
  spec.hidden_size = 64;
  spec.ffn_size = 96;
  spec.num_heads = 4;
  spec.num_kv_heads = 2;
  spec.head_dim = 16;
  spec.vocab_size = 128;
  spec.max_context = 1024;
  spec.rope.rotary_dim = 16;
  return spec;
}

inline std::unique_ptr<OwnedModel> RandomModel(const ModelSpec& spec, uint32_t seed) {
  auto owned = std::make_unique<OwnedModel>();
  std::mt19937 engine(seed);
  const auto vector = [&](int n, float mean, float deviation) {
    std::normal_distribution<float> normal(mean, deviation);
    std::vector<float> out(n);
    for (float& x : out) x = normal(engine);
    return out;
  };
  const auto matrix = [&](int rows, int cols) -> Matrix {
    owned->dense.push_back(vector(rows * cols, 0.0f, 1.0f / std::sqrt(static_cast<float>(cols))));
    return DenseMatrix{owned->dense.back().data(), DType::kF32, rows, cols};
  };
  Model& m = owned->model;
  m.spec = spec;
  m.embedding = matrix(spec.vocab_size, spec.hidden_size);
  m.head = spec.tied_head ? m.embedding : matrix(spec.vocab_size, spec.hidden_size);
  m.final_norm = vector(spec.hidden_size, 1.0f, 0.1f);
  for (int l = 0; l < spec.num_layers; ++l) {
    LayerWeights w;
    const int e = spec.hidden_size;
    w[LinearRole::kQ] = matrix(spec.q_size(), e);
    w[LinearRole::kK] = matrix(spec.kv_size(), e);
    w[LinearRole::kV] = matrix(spec.kv_size(), e);
    w[LinearRole::kO] = matrix(e, spec.q_size());
    w[LinearRole::kGate] = matrix(spec.ffn_size, e);
    w[LinearRole::kUp] = matrix(spec.ffn_size, e);
    w[LinearRole::kDown] = matrix(e, spec.ffn_size);
    w.input_norm = vector(e, 1.0f, 0.1f);
    w.post_attention_norm = vector(e, 1.0f, 0.1f);
    if (spec.qk_norm) {
      w.q_norm = vector(spec.head_dim, 1.0f, 0.1f);
      w.k_norm = vector(spec.head_dim, 1.0f, 0.1f);
    }
    if (spec.qkv_bias) {
      w.q_bias = vector(spec.q_size(), 0.0f, 0.3f);
      w.k_bias = vector(spec.kv_size(), 0.0f, 0.3f);
      w.v_bias = vector(spec.kv_size(), 0.0f, 0.3f);
    }
    m.layers.push_back(std::move(w));
  }
  return owned;
}

// Every strip at 4 bits, each weight rounded to the nearest level; strips in reverse order, so that
// the permutation matters.
inline quant::PackedStorage RoundTo4Bits(const Matrix& w) {
  quant::UnpackedMatrix m;
  const int rows = MatrixRows(w), cols = MatrixCols(w);
  const int strips = cols / quant::kStripChannels;
  m.shape.rows = rows;
  m.shape.cols = cols;
  m.shape.chunks4 = (strips + 3) / 4;
  const int positions = m.shape.num_positions();
  for (int p = 0; p < positions; ++p) {
    m.strip_order.push_back(p < strips ? static_cast<uint16_t>(strips - 1 - p) : quant::kNoStrip);
  }
  m.codes.assign(static_cast<size_t>(rows) * positions * 16, 0);
  m.sub_scales.assign(static_cast<size_t>(rows) * positions, 0);
  const int tiles = m.shape.tiles(4);
  m.second_order[1].assign(static_cast<size_t>(rows) * tiles, 0);
  std::vector<float> row(cols);
  for (int r = 0; r < rows; ++r) {
    cpu::DequantizeRow(w, r, row.data());
    const auto strip = [&](int p) { return &row[m.strip_order[p] * 16]; };
    const auto largest = [&](int p) {
      float max = 1e-8f;
      for (int i = 0; i < 16; ++i) max = std::max(max, std::fabs(strip(p)[i]));
      return max;
    };
    for (int tile = 0; tile < tiles; ++tile) {
      const int begin = 16 * tile, end = std::min(begin + 16, strips);
      float max = 0.0f;
      for (int p = begin; p < end; ++p) max = std::max(max, largest(p));
      const uint16_t half = quant::FloatToHalf(64.0f * max / (7.5f * quant::kMaxSubScale));
      const float d = quant::HalfToFloat(half) / 64.0f;
      m.second_order[1][static_cast<size_t>(r) * tiles + tile] = half;
      for (int p = begin; p < end; ++p) {
        const int scale = std::clamp(static_cast<int>(std::ceil(largest(p) / (7.5f * d))), 1, 15);
        m.sub_scales[static_cast<size_t>(r) * positions + p] = static_cast<uint8_t>(scale);
        for (int i = 0; i < 16; ++i) {
          const int q = static_cast<int>(std::lround(strip(p)[i] / (scale * d) + 7.5f));
          m.codes[(static_cast<size_t>(r) * positions + p) * 16 + i] =
              static_cast<uint8_t>(std::clamp(q, 0, 15));
        }
      }
    }
  }
  return quant::Pack(m);
}

// The model with packed linear layers, and, if `dense`, with their dequantized values instead.
// Everything else still points into `source`.
inline std::unique_ptr<OwnedModel> PackedModel(const Model& source, bool dense) {
  auto owned = std::make_unique<OwnedModel>();
  owned->model.spec = source.spec;
  owned->model.embedding = source.embedding;
  owned->model.head = source.head;
  owned->model.final_norm = source.final_norm;
  owned->model.layers = source.layers;
  for (LayerWeights& layer : owned->model.layers) {
    for (Matrix& w : layer.linears) {
      owned->packed.push_back(RoundTo4Bits(w));
      const int rows = MatrixRows(w), cols = MatrixCols(w);
      w = owned->packed.back().view();
      if (!dense) continue;
      std::vector<float> values(static_cast<size_t>(rows) * cols);
      for (int r = 0; r < rows; ++r)
        cpu::DequantizeRow(w, r, &values[static_cast<size_t>(r) * cols]);
      owned->dense.push_back(std::move(values));
      w = DenseMatrix{owned->dense.back().data(), DType::kF32, rows, cols};
    }
  }
  return owned;
}

}  // namespace fewbit::testing
