#include "tests/gpu/gpu_attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "kernels/quant_pack.h"
#include "tests/gpu/gpu_linear.h"

namespace fewbit::testing {
namespace {

using cuda::CheckCuda;
using cuda::DeviceBuffer;

constexpr int kMaxTokens = 1400;
constexpr int kMaxSequences = 40;
constexpr int kCacheBlocks = 1200;
constexpr int kMaxStride = 4096;  // blocks of a sequence
constexpr size_t kGuard = 256;
constexpr uint8_t kPoison = 0xFF;  // NaN in every type

std::vector<float> Normal(size_t count, std::mt19937* rng, float mean, float deviation) {
  std::normal_distribution<float> normal(mean, deviation);
  std::vector<float> x(count);
  for (float& v : x) v = normal(*rng);
  return x;
}

uint16_t Bits16(kv::KvType type, float value) {
  if (type != kv::KvType::kBF16) return quant::FloatToHalf(value);
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

float Value16(kv::KvType type, uint16_t bits) {
  return FromBits(type == kv::KvType::kBF16 ? DType::kBF16 : DType::kF16, bits);
}

}  // namespace

GpuAttention::GpuAttention(const AttentionOptions& options) : options_(options), d_(options.desc) {
  plan_ = cuda::SelectAttention(d_, {kMaxTokens, kMaxSequences, options.max_context}, ThisDevice());
  EXPECT_EQ(plan_.error, "");
  CheckCuda(cuda::PrepareAttention(plan_), "PrepareAttention");
  shape_ = plan_.cache;
  std::mt19937 rng(options.seed);
  const int q = d_.num_heads * d_.head_dim, k = d_.num_kv_heads * d_.head_dim;
  if (options.biases) {
    q_bias_ = Normal(q, &rng, 0, 0.5f);
    k_bias_ = Normal(k, &rng, 0, 2.0f);
    v_bias_ = Normal(k, &rng, 0, 0.5f);
  }
  if (options.norms) {
    q_norm_ = Normal(d_.head_dim, &rng, 1, 0.2f);
    k_norm_ = Normal(d_.head_dim, &rng, 1, 0.2f);
  }
  for (int i = 0; i < d_.rotary_dim / 2; ++i) {
    frequencies_.push_back(std::pow(options.theta, -2.0 * i / d_.rotary_dim));
  }
  free_blocks_.resize(options.max_context > 20000 ? kMaxStride : kCacheBlocks);
  std::iota(free_blocks_.begin(), free_blocks_.end(), 0);
  std::shuffle(free_blocks_.begin(), free_blocks_.end(), rng);
  image_.assign(free_blocks_.size() * shape_.block_bytes(), kPoison);
  cache_ = DeviceBuffer<uint8_t>(image_.size());
  workspace_ = DeviceBuffer<uint8_t>(plan_.workspace_bytes);
  CheckCuda(cudaMemset(workspace_.get(), 0, workspace_.bytes()), "clear");
  q_bias_device_ = DeviceBuffer<float>(q_bias_);
  k_bias_device_ = DeviceBuffer<float>(k_bias_);
  v_bias_device_ = DeviceBuffer<float>(v_bias_);
  q_norm_device_ = DeviceBuffer<float>(q_norm_);
  k_norm_device_ = DeviceBuffer<float>(k_norm_);
  frequencies_device_ = DeviceBuffer<double>(frequencies_);
  arrays_ = DeviceBuffer<int32_t>(sizeof(cuda::StepSizes) / 4 + 2 * kMaxTokens + 2 * kMaxSequences +
                                  1 + kMaxSequences * kMaxStride);
  const int width = options_.qkv_type == DType::kF32 ? 4 : 2;
  qkv_ = DeviceBuffer<uint8_t>(size_t{1} * kMaxTokens * (q + 2 * k) * width);
  order_ = DeviceBuffer<uint8_t>(16);
  out_ = DeviceBuffer<uint8_t>(2 * kGuard + sizeof(float) * kMaxTokens * q);
}

int GpuAttention::AddSequence(int cached, uint32_t seed) {
  Sequence s;
  s.cached = cached;
  s.seed = seed;
  GrowTo(&s, cached);
  for (int t = 0; t < cached; ++t) WriteCached(s, t);
  sequences_.push_back(std::move(s));
  CheckCuda(cudaMemcpy(cache_.get(), image_.data(), image_.size(), cudaMemcpyHostToDevice),
            "upload cache");
  return static_cast<int>(sequences_.size()) - 1;
}

void GpuAttention::SpoilCache(int sequence) {
  for (int32_t block : sequences_[sequence].blocks) {
    std::fill_n(image_.begin() + block * shape_.block_bytes(), shape_.block_bytes(), kPoison);
  }
  CheckCuda(cudaMemcpy(cache_.get(), image_.data(), image_.size(), cudaMemcpyHostToDevice),
            "upload cache");
  spoiled_ = sequence;
}

void GpuAttention::GrowTo(Sequence* s, int tokens) {
  while (static_cast<int>(s->blocks.size()) * kv::kBlockTokens < tokens) {
    ASSERT_FALSE(free_blocks_.empty()) << "the test's cache is too small";
    s->blocks.push_back(free_blocks_.back());
    free_blocks_.pop_back();
  }
}

std::vector<float> GpuAttention::Projections(const Sequence& s, int position) const {
  std::mt19937 rng(s.seed * 7919u + position);
  const int q = d_.num_heads * d_.head_dim, k = d_.num_kv_heads * d_.head_dim;
  std::vector<float> row = Normal(q + 2 * k, &rng, 0, 1.2f);
  if (options_.qkv_type == DType::kF16) row = RoundTo(DType::kF16, row);
  return row;
}

std::vector<double> GpuAttention::Head(const std::vector<float>& row, int offset,
                                       const std::vector<float>& bias, int bias_offset,
                                       const std::vector<float>& norm, int position) const {
  const int dim = d_.head_dim;
  std::vector<double> x(dim);
  double squares = 0;
  for (int i = 0; i < dim; ++i) {
    x[i] = row[offset + i] + (bias.empty() ? 0.0 : bias[bias_offset + i]);
    squares += x[i] * x[i];
  }
  if (!norm.empty()) {
    for (int i = 0; i < dim; ++i) x[i] *= norm[i] / std::sqrt(squares / dim + d_.rms_eps);
  }
  const int pairs = position < 0 ? 0 : d_.rotary_dim / 2;  // below 0: a value, which does not turn
  for (int p = 0; p < pairs; ++p) {
    const int first = d_.interleaved ? 2 * p : p;
    const int second = d_.interleaved ? 2 * p + 1 : p + pairs;
    const double a = x[first], b = x[second], angle = position * frequencies_[p];
    x[first] = a * std::cos(angle) - b * std::sin(angle);
    x[second] = b * std::cos(angle) + a * std::sin(angle);
  }
  return x;
}

size_t GpuAttention::HalfOffset(const Sequence& s, int position, int head, bool value) const {
  return s.blocks[position / kv::kBlockTokens] * shape_.block_bytes() +
         static_cast<size_t>(head) * shape_.head_bytes() + (value ? shape_.value_offset() : 0);
}

void GpuAttention::EncodeInto(const std::vector<float>& x, uint8_t* half, uint8_t* scales,
                              int token) {
  uint16_t scale_bits = 0;
  float scale = 0;
  if (shape_.type == kv::KvType::kI8) {
    float most = 0;
    for (float v : x) most = std::max(most, std::abs(v));
    scale_bits = quant::FloatToHalf(most / 126.0f);
    scale = quant::HalfToFloat(scale_bits);
    std::memcpy(scales + 2 * token, &scale_bits, 2);
  }
  for (int i = 0; i < shape_.padded_dim(); ++i) {
    const float v = i < d_.head_dim ? x[i] : 0.0f;
    uint8_t* at = half + shape_.element_offset(token, i);
    if (shape_.type == kv::KvType::kI8) {
      *at = static_cast<uint8_t>(128 + (scale == 0 ? 0 : std::lround(v / scale)));
    } else {
      const uint16_t bits = Bits16(shape_.type, v);
      std::memcpy(at, &bits, 2);
    }
  }
}

// Keys and values of earlier steps: any numbers will do.
void GpuAttention::WriteCached(const Sequence& s, int position) {
  std::mt19937 rng(s.seed * 104729u + position);
  for (int h = 0; h < d_.num_kv_heads; ++h) {
    for (bool value : {false, true}) {
      uint8_t* half = image_.data() + HalfOffset(s, position, h, value);
      uint8_t* head = half - (value ? shape_.value_offset() : 0);
      EncodeInto(Normal(d_.head_dim, &rng, 0, value ? 0.7f : 1.1f), half,
                 head + (value ? shape_.value_scale_offset() : shape_.key_scale_offset()),
                 position % kv::kBlockTokens);
    }
  }
}

std::vector<float> GpuAttention::CachedRow(const Sequence& s, int position, int head,
                                           bool value) const {
  const uint8_t* half = image_.data() + HalfOffset(s, position, head, value);
  const uint8_t* first = half - (value ? shape_.value_offset() : 0);
  const int token = position % kv::kBlockTokens;
  std::vector<float> x(d_.head_dim);
  for (int i = 0; i < d_.head_dim; ++i) {
    const uint8_t* at = half + shape_.element_offset(token, i);
    uint16_t bits;
    if (shape_.type == kv::KvType::kI8) {
      std::memcpy(
          &bits,
          first + (value ? shape_.value_scale_offset() : shape_.key_scale_offset()) + 2 * token, 2);
      x[i] = (*at - 128) * quant::HalfToFloat(bits);
    } else {
      std::memcpy(&bits, at, 2);
      x[i] = Value16(shape_.type, bits);
    }
  }
  return x;
}

void GpuAttention::Upload(const std::vector<StepPart>& parts, int padding_tokens,
                          int padding_sequences) {
  std::vector<int32_t> positions, sequence_of, q_start = {0}, kv_len, table;
  std::vector<float> rows;
  int stride = 1, max_query = 1;
  bool only_chunks = padding_tokens == 0 && padding_sequences == 0;
  row_sequence_.clear();
  row_position_.clear();
  for (const StepPart& p : parts) {
    Sequence& s = sequences_[p.sequence];
    GrowTo(&s, s.cached + p.tokens);
    stride = std::max(stride, static_cast<int>(s.blocks.size()) + 3);
    max_query = std::max(max_query, p.tokens);
    only_chunks = only_chunks && p.tokens > 1;
    for (int i = 0; i < p.tokens; ++i) {
      positions.push_back(s.cached + i);
      sequence_of.push_back(static_cast<int>(kv_len.size()));
      row_sequence_.push_back(p.sequence);
      row_position_.push_back(s.cached + i);
      const std::vector<float> row = Projections(s, s.cached + i);
      rows.insert(rows.end(), row.begin(), row.end());
    }
    s.cached += p.tokens;
    q_start.push_back(static_cast<int>(positions.size()));
    kv_len.push_back(s.cached);
  }
  const cuda::StepSizes sizes = {static_cast<int>(positions.size()),
                                 static_cast<int>(kv_len.size()), 0, stride};
  positions.resize(positions.size() + padding_tokens, 0);
  sequence_of.resize(sequence_of.size() + padding_tokens, -1);
  kv_len.resize(kv_len.size() + padding_sequences, 0);
  q_start.resize(q_start.size() + padding_sequences, sizes.tokens);
  table.assign(kv_len.size() * stride, -1);
  for (size_t i = 0; i < parts.size(); ++i) {
    const auto& blocks = sequences_[parts[i].sequence].blocks;
    const size_t used = (kv_len[i] + kv::kBlockTokens - 1) / kv::kBlockTokens;
    std::copy(blocks.begin(), blocks.begin() + used, table.begin() + i * stride);
  }
  size_t at = 0;
  const auto put = [&](const void* from, size_t count, size_t room) {
    EXPECT_LE(count, room);
    int32_t* to = arrays_.get() + at;
    CheckCuda(cudaMemcpy(to, from, 4 * count, cudaMemcpyHostToDevice), "upload");
    at += room;
    return to;
  };
  step_.sizes = reinterpret_cast<const cuda::StepSizes*>(put(&sizes, 4, 4));
  step_.positions = put(positions.data(), positions.size(), kMaxTokens);
  step_.sequence_of = put(sequence_of.data(), sequence_of.size(), kMaxTokens);
  step_.q_start = put(q_start.data(), q_start.size(), kMaxSequences + 1);
  step_.kv_len = put(kv_len.data(), kv_len.size(), kMaxSequences);
  step_.block_table = put(table.data(), table.size(), arrays_.size() - at);
  step_.tokens = static_cast<int>(positions.size());
  step_.sequences = static_cast<int>(kv_len.size());
  step_.max_query = max_query;
  step_.only_chunks = only_chunks;
  UploadRows(rows);
  CheckCuda(cudaMemset(out_.get(), kPoison, out_.bytes()), "poison");
}

void GpuAttention::UploadRows(const std::vector<float>& rows) {
  const int q = d_.num_heads * d_.head_dim, k = d_.num_kv_heads * d_.head_dim;
  const int width = options_.qkv_type == DType::kF32 ? 4 : 2;
  CheckCuda(cudaMemset(qkv_.get(), kPoison, qkv_.bytes()), "poison");
  if (width == 4) {
    CheckCuda(cudaMemcpy(qkv_.get(), rows.data(), 4 * rows.size(), cudaMemcpyHostToDevice), "qkv");
  } else {
    std::vector<uint16_t> bits;
    for (float v : rows) bits.push_back(quant::FloatToHalf(v));
    CheckCuda(cudaMemcpy(qkv_.get(), bits.data(), 2 * bits.size(), cudaMemcpyHostToDevice), "qkv");
  }
  const auto or_null = [](const DeviceBuffer<float>& b) {
    return b.size() > 0 ? b.get() : nullptr;
  };
  layer_ = {qkv_.get(),
            qkv_.get() + q * width,
            qkv_.get() + (q + k) * width,
            q + 2 * k,
            q + 2 * k,
            q + 2 * k,
            or_null(q_bias_device_),
            or_null(k_bias_device_),
            or_null(v_bias_device_),
            or_null(q_norm_device_),
            or_null(k_norm_device_),
            cache_.get(),
            options_.qkv_type};
}

void GpuAttention::LaunchStep(cudaStream_t stream) {
  CheckCuda(
      cuda::LaunchAttentionStep(plan_, step_, frequencies_device_.get(), workspace_.get(), stream),
      "LaunchAttentionStep");
  // What LaunchAttentionStep wants next: something that is no dependent launch.
  CheckCuda(cudaMemsetAsync(order_.get(), 0, order_.bytes(), stream), "order");
}

void GpuAttention::Launch(const cuda::LinearInput& out, const cuda::WantedRows& wanted,
                          cudaStream_t stream) {
  LaunchStep(stream);
  CheckCuda(cuda::LaunchAttention(plan_, step_, layer_, workspace_.get(), out, wanted, stream),
            "LaunchAttention");
}

void GpuAttention::RunInto(const cuda::LinearInput& out, const cuda::WantedRows& wanted) {
  Launch(out, wanted, nullptr);
  CheckCuda(cudaDeviceSynchronize(), "attention");
}

std::vector<float> GpuAttention::RunIntoRows(int max_kv_len) {
  float* const rows_at = cuda::AttendedRows(plan_, workspace_.get());
  std::vector<float> out(static_cast<size_t>(rows()) * cols());
  CheckCuda(cudaMemset(rows_at, kPoison, sizeof(float) * out.size()), "poison");
  LaunchStep(nullptr);
  cuda::StepView step = step_;
  step.max_kv_len = max_kv_len;
  CheckCuda(cuda::LaunchAttentionRows(plan_, step, layer_, workspace_.get(), nullptr),
            "LaunchAttentionRows");
  CheckCuda(cudaMemcpy(out.data(), rows_at, sizeof(float) * out.size(), cudaMemcpyDeviceToHost),
            "attention");
  return out;
}

std::vector<float> GpuAttention::Step(const std::vector<StepPart>& parts) {
  Upload(parts, options_.padding_tokens, options_.padding_sequences);
  cuda::LinearInput out;
  out.plain = out_.get() + kGuard;
  out.plain_type = DType::kF32;
  RunInto(out);
  return Collect();
}

std::vector<float> GpuAttention::Collect() {
  const std::vector<uint8_t> raw = out_.Download();
  const size_t row_bytes = sizeof(float) * cols();
  const auto poisoned = [&](size_t begin, size_t end) {
    return std::all_of(raw.begin() + begin, raw.begin() + end,
                       [](uint8_t b) { return b == kPoison; });
  };
  EXPECT_TRUE(poisoned(0, kGuard)) << "written before the output";
  EXPECT_TRUE(poisoned(kGuard + step_.tokens * row_bytes, raw.size())) << "written behind it";
  std::vector<float> out(static_cast<size_t>(rows()) * cols());
  std::memcpy(out.data(), raw.data() + kGuard, sizeof(float) * out.size());
  for (size_t i = 0; i < out.size(); ++i) {
    if (std::isnan(out[i]) && row_sequence_[i / cols()] != spoiled_) {
      ADD_FAILURE() << "row " << i / cols() << " column " << i % cols()
                    << " is NaN or was not written";
      break;
    }
  }
  for (size_t i = kGuard + rows() * row_bytes; i < kGuard + step_.tokens * row_bytes; ++i) {
    if (raw[i] != 0) {
      ADD_FAILURE() << "a padding row is not zero";
      break;
    }
  }
  CheckCache();
  return out;
}

void GpuAttention::CheckCache() {
  const std::vector<uint8_t> now = cache_.Download();
  worst_new_row_ = 0;
  for (int r = 0; r < rows(); ++r) {
    const Sequence& s = sequences_[row_sequence_[r]];
    const int position = row_position_[r], token = position % kv::kBlockTokens;
    for (int h = 0; h < d_.num_kv_heads; ++h) {
      for (bool value : {false, true}) {
        const size_t half = HalfOffset(s, position, h, value);
        for (int i = 0; i < shape_.padded_dim(); ++i) {
          const size_t at = half + shape_.element_offset(token, i);
          for (int b = 0; b < kv::KvTypeBytes(shape_.type); ++b) image_[at + b] = now[at + b];
        }
        if (shape_.type == kv::KvType::kI8) {
          const size_t first = half - (value ? shape_.value_offset() : 0);
          const size_t at =
              first + (value ? shape_.value_scale_offset() : shape_.key_scale_offset()) + 2 * token;
          image_[at] = now[at];
          image_[at + 1] = now[at + 1];
        }
        const int q = d_.num_heads * d_.head_dim, k = d_.num_kv_heads * d_.head_dim;
        const std::vector<double> expected =
            Head(Projections(s, position), q + (value ? k : 0) + h * d_.head_dim,
                 value ? v_bias_ : k_bias_, h * d_.head_dim, value ? std::vector<float>{} : k_norm_,
                 value ? -1 : position);
        worst_new_row_ =
            std::max(worst_new_row_, RelativeError(CachedRow(s, position, h, value), expected));
      }
    }
  }
  EXPECT_TRUE(now == image_) << "the cache changed beyond the step's keys and values";
}

std::vector<double> GpuAttention::ExpectedRow(int row) const {
  const Sequence& s = sequences_[row_sequence_[row]];
  const int position = row_position_[row], dim = d_.head_dim;
  const std::vector<float> projections = Projections(s, position);
  const int group = d_.num_heads / d_.num_kv_heads;
  const int first = d_.window == 0 ? 0 : std::max(0, position - d_.window + 1);
  std::vector<double> out(cols());
  for (int kv_head = 0; kv_head < d_.num_kv_heads; ++kv_head) {
    std::vector<std::vector<float>> keys, values;
    for (int t = first; t <= position; ++t) {
      keys.push_back(CachedRow(s, t, kv_head, false));
      values.push_back(CachedRow(s, t, kv_head, true));
    }
    for (int h = kv_head * group; h < (kv_head + 1) * group; ++h) {
      const std::vector<double> q = Head(projections, h * dim, q_bias_, h * dim, q_norm_, position);
      std::vector<double> scores;
      double top = -INFINITY, sum = 0;
      for (const auto& key : keys) {
        scores.push_back(std::inner_product(q.begin(), q.end(), key.begin(), 0.0) /
                         std::sqrt(static_cast<double>(dim)));
        top = std::max(top, scores.back());
      }
      for (double& w : scores) sum += w = std::exp(w - top);
      for (size_t t = 0; t < values.size(); ++t) {
        for (int i = 0; i < dim; ++i) out[h * dim + i] += scores[t] / sum * values[t][i];
      }
    }
  }
  return out;
}

void GpuAttention::CaptureDecode(int sequences) {
  std::vector<StepPart> nothing;
  Upload(nothing, sequences, sequences);
  cuda::LinearInput out;
  out.plain = out_.get() + kGuard;
  out.plain_type = DType::kF32;
  CheckCuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
  cudaGraph_t graph;
  CheckCuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal), "capture");
  Launch(out, {}, stream_);
  CheckCuda(cudaStreamEndCapture(stream_, &graph), "capture");
  CheckCuda(cudaGraphInstantiate(&replay_, graph, 0), "graph");
  CheckCuda(cudaGraphDestroy(graph), "graph");
  replay_sequences_ = sequences;
}

std::vector<float> GpuAttention::ReplayDecode(const std::vector<StepPart>& parts) {
  const int padding = replay_sequences_ - static_cast<int>(parts.size());
  Upload(parts, padding, padding);
  CheckCuda(cudaDeviceSynchronize(), "upload");
  CheckCuda(cudaGraphLaunch(replay_, stream_), "graph launch");
  CheckCuda(cudaDeviceSynchronize(), "graph");
  return Collect();
}

}  // namespace fewbit::testing
