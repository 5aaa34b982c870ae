// One row of logits, worked on by one group of blocks: the best token, the cut of top-k and top-p,
// the draw, the most likely tokens. Every function is called by all threads of the group and gives
// all of them the same result. Sums are of integers, so no result depends on how many blocks there
// are.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/block_group.cuh"
#include "kernels/cuda/device/exp.cuh"
#include "kernels/cuda/sample.h"

namespace fewbit::cuda {

// Bins of the histogram over (max - x) / temperature: 32 per factor e, up to e^-32. What lies
// beyond has mass 0.
inline constexpr int kBins = 1024;
inline constexpr float kBinsPerNat = 32.0f;
// Tokens of one bin that are ranked by comparing all of them with each other.
inline constexpr int kMostCandidates = kGroupThreads;
// A segment is 128 neighbouring ids, 4 per lane; its mass is kept for finding the drawn one.
inline constexpr int kSegment = 128;
inline constexpr int kMaxGroupBlocks = 8;

// Orders as floats do, -0 and +0 equal.
__device__ __forceinline__ uint32_t Ordered(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
}
__device__ __forceinline__ float FromOrdered(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}
// A larger key is a better token: higher logit, then lower id.
__device__ __forceinline__ uint64_t KeyOf(float x, int id) {
  return static_cast<uint64_t>(Ordered(x)) << 32 | ~static_cast<uint32_t>(id);
}

// Softmax weights: exp((x - max) * factor), the best token's is 1.
struct SoftmaxWeight {
  float max, factor;
  __device__ float Nats(float x) const { return __fmul_rn(__fsub_rn(x, max), factor); }
  __device__ float Weight(float x) const { return ExpLikeCpu(Nats(x)); }
  __device__ uint64_t Mass(float x) const { return Fixed(Weight(x)); }
  __device__ static uint64_t Fixed(float weight) {
    return __float2ull_rn(__fmul_rn(weight, 0x1p44f));
  }
  // Never falls from a better to a worse token; kBins and more: no mass.
  __device__ int Bin(float x) const {
    return static_cast<int>(fminf(__fmul_rn(-Nats(x), kBinsPerNat), 1.0f * kBins));
  }
};

struct Candidate {
  uint64_t key, mass;
};

// A block's shared memory. The other blocks of the group read it too.
struct SampleBoard {
  ReduceBoard reduce;
  uint64_t bin_mass[kBins];
  uint32_t bin_count[kBins];
  uint64_t slice_mass;  // of the bins that this block has summed over the group
  uint32_t slice_count;
  uint32_t num_candidates;
  Candidate candidates[kMostCandidates];  // this block's
  Candidate gathered[kMostCandidates];    // the group's
  uint64_t top[kMaxTopTokens];
  uint64_t cut_key, cut_mass;  // what a search has found
  uint64_t before_mass;
  uint32_t before_count, in_bin;
  int bin;
  uint32_t found[2];  // 1 + the id, 0: not in this block; in turn, as ReduceBoard's slots
};

// One row as one block sees it.
struct LogitRow {
  const float* x;  // the whole row
  int begin, end;  // this block's ids; begin is a multiple of kSegment
  bool aligned;    // x can be read 4 at a time
};

template <typename F>
__device__ __forceinline__ void ForEach(const LogitRow& row, const F& f) {
  const int whole = row.aligned ? row.begin + (row.end - row.begin) / 4 * 4 : row.begin;
#pragma unroll 4
  for (int i = row.begin + 4 * static_cast<int>(threadIdx.x); i < whole; i += 4 * kGroupThreads) {
    const float4 v = *reinterpret_cast<const float4*>(row.x + i);
    f(i, v.x);
    f(i + 1, v.y);
    f(i + 2, v.z);
    f(i + 3, v.w);
  }
#pragma unroll 4
  for (int i = whole + static_cast<int>(threadIdx.x); i < row.end; i += kGroupThreads) {
    f(i, row.x[i]);
  }
}

struct RowSampler {
  SampleBoard* board;
  uint64_t* segments;  // [ids of a block / kSegment]
  int turn = 0;

  template <typename Op>
  __device__ uint64_t Reduce(uint64_t v, Op op, uint64_t* before = nullptr) {
    return GroupReduce(v, op, &board->reduce, &turn, before);
  }

  // Key of the best token; 0 if the row has a NaN.
  __device__ uint64_t Best(const LogitRow& row) {
    float best = -__builtin_inff();
    int id = row.begin;
    bool ordered = true;
    ForEach(row, [&](int i, float x) {
      ordered &= x == x;
      if (x > best) best = x, id = i;
    });
    // Not a number beats everything: its key is all ones.
    const uint64_t key =
        Reduce(ordered ? (row.begin < row.end ? KeyOf(best, id) : 0) : ~uint64_t{0}, TakeMax());
    return key == ~uint64_t{0} ? 0 : key;
  }

  __device__ void ClearBins() {
    for (int b = threadIdx.x; b < kBins; b += kGroupThreads) {
      board->bin_mass[b] = 0;
      board->bin_count[b] = 0;
    }
    __syncthreads();
  }

  // 64-bit sums by the 32-bit additions that shared memory has, with the carry.
  __device__ static void AddShared(uint64_t* to, uint64_t v) {
    uint32_t* words = reinterpret_cast<uint32_t*>(to);
    const uint32_t low = static_cast<uint32_t>(v), old = atomicAdd(words, low);
    const uint32_t high = static_cast<uint32_t>(v >> 32) + (old + low < old);
    if (high != 0) atomicAdd(words + 1, high);
  }

  // bin_count and bin_mass of the whole group: block r holds the sums of the r-th slice of bins.
  __device__ void Histogram(const LogitRow& row, const SoftmaxWeight& weigh) {
    ClearBins();
    ForEach(row, [&](int, float x) {
      const int bin = weigh.Bin(x);
      if (bin >= kBins) return;
      atomicAdd(&board->bin_count[bin], 1u);
      AddShared(&board->bin_mass[bin], weigh.Mass(x));
    });
    GroupSync();
    const int size = GroupSize(), slice = kBins / size, first = GroupRank() * slice;
    uint64_t mass = 0;
    uint32_t count = 0;
    for (int b = first + threadIdx.x; b < first + slice; b += kGroupThreads) {
      uint64_t bin_mass = 0;
      uint32_t bin_count = 0;
#pragma unroll
      for (int r = 0; r < kMaxGroupBlocks; ++r) {
        if (r >= size) continue;
        bin_mass += *OfRank(&board->bin_mass[b], r);
        bin_count += *OfRank(&board->bin_count[b], r);
      }
      board->bin_mass[b] = bin_mass;  // nobody else reads this slice of this block
      board->bin_count[b] = bin_count;
      mass += bin_mass;
      count += bin_count;
    }
    mass = BlockSum(mass);
    count = static_cast<uint32_t>(BlockSum(count));
    if (threadIdx.x == 0) {
      board->slice_mass = mass;
      board->slice_count = count;
    }
    GroupSync();
  }

  __device__ uint64_t BlockSum(uint64_t v) {
    v = WarpReduce(v, TakeSum());
    __syncthreads();
    if (threadIdx.x % 32 == 0) board->reduce.warps[threadIdx.x / 32] = v;
    __syncthreads();
    uint64_t sum = 0;
    for (int w = 0; w < kGroupWarps; ++w) sum += board->reduce.warps[w];
    return sum;
  }

  // The bin in which the running count (by_mass: mass), best bins first, reaches `needed`; false if
  // it never does. Fills bin, before_count, before_mass and in_bin of the board.
  __device__ bool FindBin(bool by_mass, uint64_t needed) {
    const int size = GroupSize(), slice = kBins / size;
    __syncthreads();  // every warp has read what an earlier search found
    if (threadIdx.x < 32) {
      const int lane = threadIdx.x;
      uint64_t mass = lane < size ? *OfRank(&board->slice_mass, lane) : 0;
      uint64_t count = lane < size ? *OfRank(&board->slice_count, lane) : 0;
      const uint64_t mass_here = mass, count_here = count;
      mass = InclusiveSum(mass);
      count = InclusiveSum(count);
      const uint32_t owners = __ballot_sync(~0u, lane < size && (by_mass ? mass : count) >= needed);
      const int owner = owners == 0 ? size : __ffs(owners) - 1;
      mass = __shfl_sync(~0u, mass - mass_here, owner & 31);
      count = __shfl_sync(~0u, count - count_here, owner & 31);
      if (threadIdx.x == 0) board->bin = -1;
      __syncwarp();
      for (int b = owner * slice; owner < size && b < (owner + 1) * slice; b += 32) {
        const uint64_t m = *OfRank(&board->bin_mass[b + lane], owner);
        const uint64_t c = *OfRank(&board->bin_count[b + lane], owner);
        const uint64_t mass_to = mass + InclusiveSum(m), count_to = count + InclusiveSum(c);
        const uint32_t reached = __ballot_sync(~0u, (by_mass ? mass_to : count_to) >= needed);
        if (reached != 0) {
          if (lane == __ffs(reached) - 1) {
            board->bin = b + lane;
            board->before_mass = mass_to - m;
            board->before_count = static_cast<uint32_t>(count_to - c);
            board->in_bin = static_cast<uint32_t>(c);
          }
          break;
        }
        mass = __shfl_sync(~0u, mass_to, 31);
        count = __shfl_sync(~0u, count_to, 31);
      }
    }
    __syncthreads();
    return board->bin >= 0;
  }

  __device__ static uint64_t InclusiveSum(uint64_t v) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const uint64_t other = __shfl_up_sync(~0u, v, offset);
      if (lane >= offset) v += other;
    }
    return v;
  }

  // The tokens of the board's bin, from all blocks, into board->gathered. REQUIRES: they fit.
  __device__ int Gather(const LogitRow& row, const SoftmaxWeight& weigh) {
    const int bin = board->bin;
    if (threadIdx.x == 0) board->num_candidates = 0;
    __syncthreads();
    ForEach(row, [&](int i, float x) {
      if (weigh.Bin(x) != bin) return;
      board->candidates[atomicAdd(&board->num_candidates, 1u)] = {KeyOf(x, i), weigh.Mass(x)};
    });
    GroupSync();
    uint64_t first;
    const int n = static_cast<int>(GroupTotal(&board->num_candidates, TakeSum(), &first));
    // Every block writes its own candidates to all of them.
    for (int i = threadIdx.x; i < static_cast<int>(board->num_candidates) * GroupSize();
         i += kGroupThreads) {
      const int r = i % GroupSize(), mine = i / GroupSize();
      *const_cast<Candidate*>(OfRank(&board->gathered[first + mine], r)) = board->candidates[mine];
    }
    GroupSync();  // written everywhere, and the lists may be filled anew
    return n;
  }

  // Key of the last token that is kept when the best ones are taken until there are `needed` of
  // them (by_mass: until their mass reaches it); `kept_mass` is what they weigh. Needs a Histogram
  // of the same row. 0: everything with mass is kept.
  __device__ uint64_t Cut(const LogitRow& row, const SoftmaxWeight& weigh, bool by_mass,
                          uint64_t needed, uint64_t* kept_mass) {
    if (!FindBin(by_mass, needed)) {
      *kept_mass = GroupTotal(&board->slice_mass, TakeSum());
      return 0;
    }
    if (board->in_bin > kMostCandidates)
      return CutByBisection(row, weigh, by_mass, needed, kept_mass);
    const int n = Gather(row, weigh);
    if (static_cast<int>(threadIdx.x) < n) {
      const Candidate mine = board->gathered[threadIdx.x];
      uint64_t mass = board->before_mass, count = board->before_count;
      for (int i = 0; i < n; ++i) {
        const Candidate other = board->gathered[i];
        const bool better = other.key > mine.key;
        mass += better ? other.mass : 0;
        count += better;
      }
      if (by_mass ? mass < needed && mass + mine.mass >= needed : count + 1 == needed) {
        board->cut_key = mine.key;
        board->cut_mass = mass + mine.mass;
      }
    }
    __syncthreads();
    *kept_mass = board->cut_mass;
    return board->cut_key;
  }

  // Count (by_mass: mass) of the tokens whose logit's key is at least `key`.
  __device__ uint64_t AtLeast(const LogitRow& row, const SoftmaxWeight& weigh, bool by_mass,
                              uint32_t key) {
    uint64_t sum = 0;
    ForEach(row, [&](int, float x) {
      if (Ordered(x) >= key) sum += by_mass ? weigh.Mass(x) : 1;
    });
    return Reduce(sum, TakeSum());
  }

  // Cut for rows with very many (nearly) equal logits: bisection over the logits' keys, then over
  // the ids of those that are equal.
  __device__ uint64_t CutByBisection(const LogitRow& row, const SoftmaxWeight& weigh, bool by_mass,
                                     uint64_t needed, uint64_t* kept_mass) {
    uint32_t key = 0;
    for (int bit = 31; bit >= 0; --bit) {
      const uint32_t higher = key | 1u << bit;
      if (AtLeast(row, weigh, by_mass, higher) >= needed) key = higher;
    }
    // Not all ones: that would be the key of a NaN.
    const uint64_t above = AtLeast(row, weigh, by_mass, key + 1);
    const uint64_t each = by_mass ? weigh.Mass(FromOrdered(key)) : 1;
    const uint64_t equals = (needed - above + each - 1) / each;
    Sum(row, [&](int, float x) { return uint64_t{Ordered(x) == key}; });
    const int id = Locate(
        row, [&](int, float x) { return uint64_t{Ordered(x) == key}; }, equals - 1);
    *kept_mass = AtLeast(row, weigh, true, key + 1) + equals * weigh.Mass(FromOrdered(key));
    return KeyOf(FromOrdered(key), id);
  }

  // Total of mass(id, x) over the row; leaves the segments' sums for Locate.
  template <typename F>
  __device__ uint64_t Sum(const LogitRow& row, const F& mass) {
    uint64_t sum = 0;
    for (int s = threadIdx.x / 32; row.begin + s * kSegment < row.end; s += kGroupWarps) {
      const uint64_t of_segment = WarpReduce(SumOf4(row, s, mass), TakeSum());
      if (threadIdx.x % 32 == 0) {
        segments[s] = of_segment;
        sum += of_segment;
      }
    }
    return Reduce(sum, TakeSum(), &before_);
  }

  template <typename F>
  __device__ uint64_t SumOf4(const LogitRow& row, int segment, const F& mass) {
    const int i = row.begin + segment * kSegment + 4 * (threadIdx.x % 32);
    uint64_t sum = 0;
    if (row.aligned && i + 4 <= row.end) {
      const float4 v = *reinterpret_cast<const float4*>(row.x + i);
      sum = mass(i, v.x) + mass(i + 1, v.y) + mass(i + 2, v.z) + mass(i + 3, v.w);
    } else {
      for (int j = i; j < min(i + 4, row.end); ++j) sum += mass(j, row.x[j]);
    }
    return sum;
  }

  // The first id at which the running sum of mass, by id, passes `target` (less than the total).
  // Follows a Sum with the same arguments.
  template <typename F>
  __device__ int Locate(const LogitRow& row, const F& mass, uint64_t target) {
    uint32_t* found = &board->found[located_++ & 1];
    if (threadIdx.x == 0) *found = 0;
    __syncthreads();
    const int lane = threadIdx.x, count = (row.end - row.begin + kSegment - 1) / kSegment;
    if (threadIdx.x < 32 && target >= before_) {
      uint64_t before = before_;
      for (int s = 0; s < count; s += 32) {
        const uint64_t to = before + InclusiveSum(s + lane < count ? segments[s + lane] : 0);
        const uint32_t passed = __ballot_sync(~0u, to > target);
        if (passed != 0) {
          const int first = __ffs(passed) - 1;
          const uint64_t up_to = __shfl_sync(~0u, to, first);
          before = up_to - segments[s + first];
          LocateInSegment(row, s + first, mass, target - before, found);
          break;
        }
        before = __shfl_sync(~0u, to, 31);
      }
    }
    GroupSync();
    return static_cast<int>(GroupTotal(found, TakeMax())) - 1;
  }

  template <typename F>
  __device__ void LocateInSegment(const LogitRow& row, int segment, const F& mass, uint64_t target,
                                  uint32_t* found) {
    const int lane = threadIdx.x % 32, i = row.begin + segment * kSegment + 4 * lane;
    const uint64_t mine = SumOf4(row, segment, mass), to = InclusiveSum(mine);
    const uint32_t passed = __ballot_sync(~0u, to > target);
    if (lane != __ffs(passed) - 1) return;
    uint64_t running = to - mine;
    for (int j = i; j < min(i + 4, row.end); ++j) {
      running += mass(j, row.x[j]);
      if (running > target) {
        *found = j + 1;
        return;
      }
    }
  }

  // The token that `uniform`, in [0, 1), falls to.
  __device__ int Draw(const SampleParams& p, int vocab, const LogitRow& row, float max,
                      double uniform) {
    const SoftmaxWeight weigh = {max, fminf(__fdiv_rn(1.0f, p.temperature), 1e30f)};
    uint64_t cut = 0;
    const bool cut_k = p.top_k > 0 && p.top_k < vocab;
    if (cut_k || p.top_p < 1.0f) {
      Histogram(row, weigh);
      uint64_t mass = 0;
      if (cut_k) {
        cut = Cut(row, weigh, false, p.top_k, &mass);
      } else {
        mass = GroupTotal(&board->slice_mass, TakeSum());
      }
      if (p.top_p < 1.0f) {
        const double share = static_cast<double>(p.top_p) * static_cast<double>(mass);
        const uint64_t kept = Cut(row, weigh, true, static_cast<uint64_t>(ceil(share)), &mass);
        cut = kept > cut ? kept : cut;
      }
    }
    const auto mass = [&](int id, float x) {
      const float weight = weigh.Weight(x);
      return weight < p.min_p || (cut != 0 && KeyOf(x, id) < cut) ? 0
                                                                  : SoftmaxWeight::Fixed(weight);
    };
    const uint64_t total = Sum(row, mass);
    const double target = uniform * static_cast<double>(total);
    return Locate(row, mass, ::min(static_cast<uint64_t>(target), total - 1));
  }

  // The best `n` tokens to board->top of every block, best first.
  __device__ void Top(const LogitRow& row, int n) {
    uint64_t below = ~uint64_t{0};
    for (int k = 0; k < n; ++k) {
      uint64_t best = 0;
      ForEach(row, [&](int i, float x) {
        const uint64_t key = KeyOf(x, i);
        if (key < below && key > best) best = key;
      });
      below = Reduce(best, TakeMax());
      if (threadIdx.x == 0) board->top[k] = below;
    }
    __syncthreads();
  }

  int located_ = 0;
  uint64_t before_ = 0;  // of the last Sum: what the blocks before this one add up to
};

}  // namespace fewbit::cuda
