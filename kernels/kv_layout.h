// The only text of the paged KV layouts. A cache is, per layer, an array of blocks of 16 tokens; a
// sequence's block table maps its token t to block table[t / 16], place t % 16. A block holds the
// kv heads one after another, and of each head first the keys, then the values.
//
// On the CPU (BlockShape):
//   block := K heads x ( keys [padded D][16 tokens] | values [16 tokens][padded D] )     elements
//   f16 or f32
//
// Keys are transposed so that the scores of a query against a block are one vector of 16 that grows
// by a fused multiply-add per dimension: no horizontal sums, and an order of summation that no
// tiling can change. D is padded to 16; the padding stays 0.
//
// On a GPU (DeviceBlockShape):
//   block := K heads x ( keys [16 tokens][padded D] | values [16 tokens][padded D]
//                        | i8 only: f16 scale of each key [16], of each value [16] )
//   elements f16, bf16 or i8
//
// A head of a block is one run of bytes, so that one bulk copy brings it to shared memory. A
// token's elements lie in 16-byte pieces whose order depends on the token (piece_slot): there,
// copied as it is, a matrix load of the same piece of 8 tokens meets every memory bank once. Where
// a token has more than 128 bytes and a multiple of that, keys (and values) lie in panels: the
// first 128 bytes of all tokens, then the next; that is what products of a warpgroup read. An i8
// element is (byte - 128) * scale. D is padded to the next size that kernels are compiled for;
// padding is 0.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fewbit::kv {

// CPU caches are f16 or f32, those on a GPU f16, bf16 or i8.
enum class KvType : uint8_t { kF16, kF32, kBF16, kI8 };

inline constexpr int kBlockTokens = 16;
// Blocks that so many tokens of a sequence take.
constexpr int32_t BlocksFor(int32_t tokens) { return (tokens + kBlockTokens - 1) / kBlockTokens; }
inline constexpr int kDimUnit = 16;

constexpr int KvTypeBytes(KvType type) {
  return type == KvType::kF32 ? 4 : type == KvType::kI8 ? 1 : 2;
}
constexpr const char* KvTypeName(KvType type) {
  switch (type) {
    case KvType::kF16:
      return "f16";
    case KvType::kF32:
      return "f32";
    case KvType::kBF16:
      return "bf16";
    case KvType::kI8:
      return "i8";
  }
  return "?";
}

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

// Head sizes that the GPU's kernels are compiled for; any other is padded to the next one.
inline constexpr int kDeviceDims[] = {16, 32, 64, 80, 96, 128, 256};
inline constexpr int kMaxDeviceDim = 256;

struct DeviceBlockShape {
  KvType type = KvType::kF16;
  int32_t num_heads = 0;  // kv heads
  int32_t head_dim = 0;   // D, at most kMaxDeviceDim

  constexpr int padded_dim() const {
    for (int dim : kDeviceDims) {
      if (head_dim <= dim) return dim;
    }
    return 0;
  }
  constexpr int token_bytes() const { return padded_dim() * KvTypeBytes(type); }  // of a key
  constexpr int half_bytes() const { return kBlockTokens * token_bytes(); }
  constexpr int scale_bytes() const { return type == KvType::kI8 ? 2 * kBlockTokens * 2 : 0; }
  constexpr int head_bytes() const { return 2 * half_bytes() + scale_bytes(); }
  // Within a head's bytes.
  constexpr int value_offset() const { return half_bytes(); }
  constexpr int key_scale_offset() const { return 2 * half_bytes(); }
  constexpr int value_scale_offset() const { return 2 * half_bytes() + 2 * kBlockTokens; }
  constexpr size_t block_bytes() const {  // one layer
    return static_cast<size_t>(num_heads) * head_bytes();
  }

  // Where 16-byte piece `piece` of a token's key or value lies among `pieces` of them. Only the
  // lowest bits change, as many as divide the number of pieces.
  static constexpr int piece_slot(int pieces, int token, int piece) {
    const int width = pieces % 8 == 0 ? 8 : pieces % 4 == 0 ? 4 : pieces % 2 == 0 ? 2 : 1;
    return piece ^ (token % 8 / (8 / width));
  }
  // Pieces of a token that lie together.
  static constexpr int panel_pieces(int pieces) { return pieces % 8 == 0 ? 8 : pieces; }
  // Byte of piece `piece` of a token's key, of `pieces`, from the first key; the same for values.
  static constexpr int piece_offset(int pieces, int token, int piece) {
    const int panel = panel_pieces(pieces);
    return 16 * ((piece / panel * kBlockTokens + token) * panel +
                 piece_slot(pieces, token, piece) % panel);
  }
  // Byte of element `dim` of a token's key, from the first key; the same for values.
  constexpr int element_offset(int token, int dim) const {
    const int at = dim * KvTypeBytes(type);
    return piece_offset(token_bytes() / 16, token, at / 16) + at % 16;
  }
};

}  // namespace fewbit::kv
