// The decoder on the GPU: one step as a row of launches, the same for every family. It owns the
// order of the launches and the activations between them, and knows neither graphs nor hosts.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_launch.h"
#include "kernels/cuda/cublas.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/sample.h"
#include "runtime/cuda/device_model.h"
#include "runtime/cuda/fatal.h"
#include "runtime/cuda/linear_group.h"
#include "runtime/cuda/memory_plan.h"

namespace fewbit {

struct DeviceDecoderLimits {
  int32_t max_tokens = 0;     // T
  int32_t max_sequences = 0;  // S
  int32_t max_context = 0;    // positions
  kv::KvType kv_type = kv::KvType::kF16;
};

// Logit rows that are in memory together. A step that wants more takes turns; the head's kernels
// give a row the same bits for any number of rows up to here.
inline constexpr int32_t kDeviceLogitRows = cuda::kMaxDenseTokens;

// What a step is launched with beside its view.
struct DeviceStep {
  cuda::StepView view;
  const cuda::SampleParams* params = nullptr;  // [R]
  const int32_t* lists = nullptr;              // of params
  uint32_t* counts = nullptr;                  // [slots, V]
  cuda::SampleResult* results = nullptr;       // [R]
};

// Thread rule: one caller at a time.
class DeviceDecoder {
 public:
  // `model` outlives the object. UNIMPLEMENTED: a matrix or an attention that no kernel takes.
  // UNAVAILABLE: cuBLAS is needed for steps of max_tokens and cannot be had.
  static absl::StatusOr<std::unique_ptr<DeviceDecoder>> Create(const DeviceModel* model,
                                                               const DeviceDecoderLimits& limits,
                                                               const cuda::DeviceProps& props);

  // Takes its buffers from `carver`, or only counts if that has no base. Called twice before Start.
  void Place(Carver* carver);

  // The context up to which steps that decode `sequences` sequences are launched another way than
  // longer ones (StepView::max_kv_len); 0: there is but one way.
  int32_t ShortContext(int32_t sequences) const;

  // Prepares kernels and clears what must start at zero. `kv`: layers() * layer_bytes(blocks).
  absl::Status Start(uint8_t* kv, int32_t num_blocks);

  size_t block_bytes() const { return attention_.cache.block_bytes(); }  // one layer
  size_t layer_bytes(int32_t num_blocks) const;

  // Enqueues the whole step on `stream`: nothing is read on the host, so it may be captured. A
  // failing launch ends the process; `place` says where.
  void Run(const DeviceStep& step, StepPlace* place, cudaStream_t stream);

  // [min(R, kDeviceLogitRows), V] of the rows that Run did last.
  const float* logits() const { return logits_; }

 private:
  struct Layer {
    LinearGroup qkv, o, gate_up, down;
  };
  // The hidden state between two launches: rows + delta, or rows alone where delta is null.
  struct Hidden {
    float* rows = nullptr;
    const float* delta = nullptr;

    // What a layer can make its norm from.
    cuda::RowKind norm_kind() const {
      return delta == nullptr ? cuda::RowKind::kNorm : cuda::RowKind::kStaged;
    }
  };

  DeviceDecoder(const DeviceModel* model, const DeviceDecoderLimits& limits,
                const cuda::DeviceProps& props)
      : model_(model), limits_(limits), logit_rows_(std::min(kDeviceLogitRows, limits.max_tokens)) {
    memory_.props = props;
  }
  absl::Status MakeGroups();
  absl::Status MeasureGroups();
  void RunLayer(int index, const DeviceStep& step, Hidden* hidden, StepPlace* place,
                cudaStream_t stream);
  // The buffer in which a sum of hidden rows goes, but for one in place: a launch may read them in
  // one block while another one writes.
  float* Other(const Hidden& hidden) const { return hidden_[hidden.rows == hidden_[0]]; }
  // The norm of hidden rows for `call`; `wanted` rows alone go on, into memory of their own, if
  // that is not null.
  void NormHidden(GroupCall* call, const float* weight, const int32_t* wanted, const char* what,
                  Hidden* hidden, StepPlace* place, cudaStream_t stream) const;
  // o or down, whose result goes onto hidden rows: `same_rows`, or some of them, which the next
  // norm finds.
  void AddTo(const LinearGroup& group, const GroupCall& call, bool same_rows, const char* what,
             Hidden* hidden, StepPlace* place, cudaStream_t stream) const;
  // Leaves the input of a layer's q, k and v; o; gate and up; or down with the call, or for it in
  // memory.
  void NormFor(GroupCall* call, const cuda::NormArgs& norm, const char* what, StepPlace* place,
               cudaStream_t stream) const;
  void SiluFor(GroupCall* call, const cuda::SiluArgs& silu, StepPlace* place,
               cudaStream_t stream) const;
  // `type`: of q, k and v. The call is for the wanted rows.
  void AttendFor(GroupCall* call, DType type, int index, const cuda::WantedRows& wanted,
                 const DeviceStep& step, StepPlace* place, cudaStream_t stream);
  void RunHead(const DeviceStep& step, const Hidden& hidden, int32_t begin, int32_t end,
               StepPlace* place, cudaStream_t stream);

  const DeviceModel* const model_;
  const DeviceDecoderLimits limits_;
  const int32_t logit_rows_;
  std::vector<Layer> layers_;
  LinearGroup head_;
  LinearNeeds needs_;
  cuda::AttentionPlan attention_;
  std::unique_ptr<cuda::Cublas> cublas_;

  LinearMemory memory_;
  uint8_t* cublas_workspace_ = nullptr;
  uint8_t* attention_workspace_ = nullptr;
  float* hidden_[2] = {};      // [T, E], in turn
  float* wanted_ = nullptr;    // [T, E] rows that survive the last layer
  float* delta_ = nullptr;     // [T, E] what o or down made, to be added to hidden
  float* y_ = nullptr;         // what another linear group made
  float* logits_ = nullptr;    // [logit_rows, V]
  float* adjusted_ = nullptr;  // [logit_rows, V]
  uint8_t* kv_ = nullptr;
  int32_t num_blocks_ = 0;
};

}  // namespace fewbit
