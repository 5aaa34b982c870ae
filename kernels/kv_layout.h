// The only text of the paged KV layout. A cache is, per layer, an array of blocks of 16 tokens; a
// sequence's block table maps its token t to block table[t / 16], place t % 16. A block holds the
// kv heads one after another, and of each head first the keys, then the values:
//
//   block := K heads x ( keys [padded D][16 tokens] | values [16 tokens][padded D] )     elements
//   f16 or f32
//
// Keys are transposed so that the scores of a query against a block are one vector of 16 that grows
// by a fused multiply-add per dimension: no horizontal sums, and an order of summation that no
// tiling can change. D is padded to 16; the padding stays 0.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fewbit::kv {

enum class KvType : uint8_t { kF16, kF32 };

inline constexpr int kBlockTokens = 16;
inline constexpr int kDimUnit = 16;

constexpr int KvTypeBytes(KvType type) { return type == KvType::kF16 ? 2 : 4; }
constexpr const char* KvTypeName(KvType type) { return type == KvType::kF16 ? "f16" : "f32"; }

struct BlockShape {
  KvType type = KvType::kF16;
  int32_t num_heads = 0;  // kv heads
  int32_t head_dim = 0;   // D

  constexpr int padded_dim() const { return (head_dim + kDimUnit - 1) / kDimUnit * kDimUnit; }
  constexpr size_t half_bytes() const {  // the keys, or the values, of one head
    return static_cast<size_t>(padded_dim()) * kBlockTokens * KvTypeBytes(type);
  }
  constexpr size_t key_offset(int head) const { return 2 * head * half_bytes(); }
  constexpr size_t value_offset(int head) const { return (2 * head + 1) * half_bytes(); }
  constexpr size_t block_bytes() const { return 2 * num_heads * half_bytes(); }  // one layer
  // Element indices within keys and values.
  constexpr int key_index(int dim, int token) const { return dim * kBlockTokens + token; }
  constexpr int value_index(int token, int dim) const { return token * padded_dim() + dim; }
};

}  // namespace fewbit::kv
