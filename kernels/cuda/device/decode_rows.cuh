// What a decoding block prepares of its tokens: units of work, and queries, keys and values of the
// step.
#pragma once

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/device/async_copy.cuh"
#include "kernels/cuda/device/decode_bytes.cuh"
#include "kernels/cuda/device/decode_products.cuh"
#include "kernels/cuda/device/head_row.cuh"

namespace fewbit::cuda {

// kColumns: DecodeColumns().
template <kv::KvType kType, int kDim, int kColumns>
struct AttentionOf {
  using Type = HalfAttention<kType, kDim>;
};
template <int kDim, int kColumns>
struct AttentionOf<kv::KvType::kI8, kDim, kColumns> {
  using Type = ByteAttention<kDim, kColumns>;
};

// A unit: one run of the keys of one part of a kv head's group. It moves on without dividing.
struct DecodeUnit {
  DecodeItem item;
  int kv_head, part;
  int split, splits, split_length, first_key;  // of the token

  static __device__ __forceinline__ DecodeUnit First(const DecodeStart& start) {
    return {start.item,   start.kv_head,      start.part,     start.split,
            start.splits, start.split_length, start.first_key};
  }
  // To the next unit; past the last one nothing is loaded.
  __device__ __forceinline__ void Advance(const DecodeArgs& a) {
    if (++split == splits) NextPart(a);
  }
  // To the first run of the next part.
  __device__ __forceinline__ void NextPart(const DecodeArgs& a) {
    split = 0;
    if (++part < a.head_parts) return;
    part = 0;
    if (++kv_head < a.num_kv_heads) return;
    kv_head = 0;
    const int next = item.base + splits;
    if (next < a.counts->decode_items) LoadToken(a, next);
  }

  __device__ int key_begin() const { return first_key + split * split_length; }
  __device__ int key_end() const { return min(key_begin() + split_length, item.kv_len); }
  __device__ int first_head(const DecodeArgs& a) const {
    return kv_head * a.group + part * a.part_heads;
  }
  __device__ int heads(const DecodeArgs& a) const {
    return min(a.part_heads, a.group - part * a.part_heads);
  }

 private:
  __device__ __forceinline__ void LoadToken(const DecodeArgs& a, int entry) {
    item = a.items[entry];
    first_key = FirstKey(item.kv_len, a.window);
    split_length = SplitTokens(item.kv_len - first_key);
    splits = (item.kv_len - first_key + split_length - 1) / split_length;
  }
};

// What a part needs of its token besides old keys and values: queries, and if the block comes to
// the run that ends with the token (`want_fresh`), its key and value. Rows are asked for a part
// ahead.
template <kv::KvType kType, int kDim, typename Attention>
class RowMaker {
 public:
  __device__ RowMaker(const DecodeArgs& a, uint8_t* shared)
      : a_(a), shared_(shared), width_(a.layer.type == DType::kF32 ? 4 : 2) {}

  // Each warp asks for the rows that it will prepare.
  __device__ __forceinline__ void Ask(const DecodeUnit& u, bool want_fresh) {
#if __CUDA_ARCH__ >= 900
    __syncwarp();  // what was there is used
    const int bytes = a_.head.dim * width_, rows = u.heads(a_) + (want_fresh ? 2 : 0);
    for (int r = threadIdx.x / 32; r < rows; r += kDecodeWarps) {
      const uint8_t* from = Source(u, r);
      for (int i = 16 * (threadIdx.x % 32); i < bytes; i += 16 * 32) {
        CopyAsync16(Raw(r) + i, from + i);
      }
    }
    if (u.item.token != token_) {
      token_ = u.item.token;
      const float* from = reinterpret_cast<const float*>(Turns(u));
      for (int i = threadIdx.x % 32; i < a_.head.rotary_dim; i += 32) {
        CopyAsync4(OwnTurns() + 4 * i, from + i);
      }
    }
    CopyAsyncCommit();
#endif
  }

  // Leaves queries and, if wanted, the token's key and value as the cache has them. A row is worked
  // out where it was left.
  __device__ __forceinline__ void Make(const DecodeUnit& u, bool want_fresh, uint8_t* queries,
                                       uint8_t* fresh) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, d = a_.head.dim;
    const AttentionLayer& l = a_.layer;
    const auto part = [d](const float* x, int head) { return x == nullptr ? x : x + head * d; };
#if __CUDA_ARCH__ >= 900
    const float2* turns = reinterpret_cast<const float2*>(OwnTurns());
    CopyAsyncWait<0>();
    __syncwarp();
#else
    const float2* turns = Turns(u);
#endif
    const int heads = u.heads(a_);
    for (int r = warp; r < heads + (want_fresh ? 2 : 0); r += kDecodeWarps) {
#if __CUDA_ARCH__ >= 900
      HeadSource from = {Raw(r), a_.layer.type};
#else
      HeadSource from = {Source(u, r), a_.layer.type};
#endif
      float* row = reinterpret_cast<float*>(Raw(r));
      if (r < heads) {
        const int head = u.first_head(a_) + r;
        from.bias = part(l.q_bias, head);
        from.norm = l.q_norm;
        from.turns = turns;
        PrepareHead<kDim>(a_.head, from, row);
        Attention::PutQuery(row, a_.scale, r, queries);
        continue;
      }
      const bool key = r == heads;
      from.bias = part(key ? l.k_bias : l.v_bias, u.kv_head);
      from.norm = key ? l.k_norm : nullptr;
      from.turns = key ? turns : nullptr;
      PrepareHead<kDim>(a_.head, from, row);
      constexpr int kBytes = kDim * kv::KvTypeBytes(kType);
      const __half scale = EncodeRow<kType, kDim>(row, fresh + (key ? 0 : kBytes));
      if (lane == 0) reinterpret_cast<__half*>(fresh + 2 * kBytes)[key ? 0 : 1] = scale;
    }
  }

 private:
  // Row r: query heads, then the key, then the value.
  __device__ __forceinline__ const uint8_t* Source(const DecodeUnit& u, int r) const {
    const AttentionLayer& l = a_.layer;
    const int heads = u.heads(a_);
    const void* x = r < heads ? l.q : r == heads ? l.k : l.v;
    const int64_t stride = r < heads ? l.q_stride : r == heads ? l.k_stride : l.v_stride;
    const int head = r < heads ? u.first_head(a_) + r : u.kv_head;
    return static_cast<const uint8_t*>(x) + (u.item.token * stride + head * a_.head.dim) * width_;
  }
  __device__ const float2* Turns(const DecodeUnit& u) const {
    return a_.turns + static_cast<int64_t>(u.item.token) * (a_.head.rotary_dim / 2);
  }
  __device__ uint8_t* Raw(int r) const { return shared_ + a_.shared.raw + r * kDim * 4; }
  __device__ uint8_t* OwnTurns() const {
    return shared_ + a_.shared.turns + threadIdx.x / 32 * kDim * 4;
  }

  const DecodeArgs& a_;
  uint8_t* const shared_;
  const int width_;
  int token_ = -1;  // whose turns are in shared memory, or on the way
};

}  // namespace fewbit::cuda
