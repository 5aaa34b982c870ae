// Attention of one layer run on the device the way a caller does it - paged cache, step arrays,
// guarded output, memory that nobody wrote full of NaN - and the same in float64.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/attention_launch.h"
#include "kernels/cuda/device_buffer.h"

namespace fewbit::testing {

struct AttentionOptions {
  cuda::AttentionDesc desc;
  DType qkv_type = DType::kF32;
  bool biases = false;
  bool norms = false;
  double theta = 10000.0;
  int max_context = 4096;
  int padding_tokens = 0;  // behind those of a step
  int padding_sequences = 0;
  uint32_t seed = 1;
};

// What a sequence brings to a step.
struct StepPart {
  int sequence = 0;  // as AddSequence returned it
  int tokens = 0;
};

class GpuAttention {
 public:
  explicit GpuAttention(const AttentionOptions& options);

  // A sequence with `cached` tokens already in the cache. All its numbers come from `seed` and
  // positions alone.
  int AddSequence(int cached, uint32_t seed);

  // Overwrites all that a sequence has in the cache with NaN. Its rows may then be anything.
  void SpoilCache(int sequence);

  // Runs a step and returns its rows [T, H * D] without padding. Fails the test if an output stays
  // unwritten, a padding row is not zero, memory around the output changes, or any byte of the
  // cache but the new keys and values does.
  std::vector<float> Step(const std::vector<StepPart>& parts);

  // What the last Step should have returned for its rows, with the cache's keys and values as they
  // are now; and the largest relative error of a new key or value against float64.
  std::vector<double> ExpectedRow(int row) const;
  double WorstNewRow() const { return worst_new_row_; }

  int rows() const { return static_cast<int>(row_sequence_.size()); }
  int cols() const { return d_.num_heads * d_.head_dim; }

  // The last Step once more, from a graph captured for `sequences` sequences before that step was
  // known.
  void CaptureDecode(int sequences);
  std::vector<float> ReplayDecode(const std::vector<StepPart>& parts);

  const cuda::AttentionPlan& plan() const { return plan_; }
  // Attention of the last step again, into any form; and, if its sequences brought single tokens,
  // as LaunchAttentionRows leaves them: rows [T, H * D]. `max_kv_len`: StepView's.
  void RunInto(const cuda::LinearInput& out, const cuda::WantedRows& wanted = {});
  std::vector<float> RunIntoRows(int max_kv_len = 0);

 private:
  struct Sequence {
    int cached = 0;
    uint32_t seed = 0;
    std::vector<int32_t> blocks;
  };
  // One token's q, k and v as the linear layers leave them.
  std::vector<float> Projections(const Sequence& s, int position) const;
  // A head after bias, norm and rope.
  std::vector<double> Head(const std::vector<float>& row, int offset,
                           const std::vector<float>& bias, int bias_offset,
                           const std::vector<float>& norm, int position) const;
  void GrowTo(Sequence* s, int tokens);
  void WriteCached(const Sequence& s, int position);
  std::vector<float> CachedRow(const Sequence& s, int position, int head, bool value) const;
  size_t HalfOffset(const Sequence& s, int position, int head, bool value) const;
  void EncodeInto(const std::vector<float>& x, uint8_t* half, uint8_t* scales, int token);
  void Upload(const std::vector<StepPart>& parts, int padding_tokens, int padding_sequences);
  void UploadRows(const std::vector<float>& rows);  // of the qkv layer
  void LaunchStep(cudaStream_t stream);
  void Launch(const cuda::LinearInput& out, const cuda::WantedRows& wanted, cudaStream_t stream);
  std::vector<float> Collect();
  void CheckCache();

  AttentionOptions options_;
  cuda::AttentionDesc d_;
  cuda::AttentionPlan plan_;
  kv::DeviceBlockShape shape_;
  std::vector<Sequence> sequences_;
  std::vector<int32_t> free_blocks_;
  std::vector<uint8_t> image_;  // the cache as it should be
  std::vector<double> frequencies_;
  std::vector<float> q_bias_, k_bias_, v_bias_, q_norm_, k_norm_;

  // Of the last step.
  std::vector<int> row_sequence_, row_position_;
  int spoiled_ = -1;
  double worst_new_row_ = 0;
  cuda::StepView step_;
  cuda::AttentionLayer layer_;

  cuda::DeviceBuffer<uint8_t> cache_, workspace_, qkv_, out_, order_;
  cuda::DeviceBuffer<float> q_bias_device_, k_bias_device_, v_bias_device_, q_norm_device_,
      k_norm_device_;
  cuda::DeviceBuffer<double> frequencies_device_;
  cuda::DeviceBuffer<int32_t> arrays_;
  cudaStream_t stream_ = nullptr;
  cudaGraphExec_t replay_ = nullptr;
  int replay_sequences_ = 0;
};

}  // namespace fewbit::testing
