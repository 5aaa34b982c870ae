#include "kernels/cpu/ops.h"

#include "kernels/cpu/ops_table.h"

namespace fewbit::cpu {
namespace {

const OpsTable& Table(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kAvx512:
      return kAvx512Ops;
    case Isa::kAvx2:
      return kAvx2Ops;
    case Isa::kPortable:
      break;
  }
#else
  (void)isa;
#endif
  return kPortableOps;
}

}  // namespace

void RmsNorm(Isa isa, const float* x, const float* weight, float eps, int n, float* out) {
  Table(isa).rms_norm(x, weight, eps, n, out);
}

void AddRow(Isa isa, float* x, const float* delta, int n) { Table(isa).add_row(x, delta, n); }

void SiluMul(Isa isa, float* gate, const float* up, int n) { Table(isa).silu_mul(gate, up, n); }

void Rotate(Isa isa, float* head, const float* cosines, const float* sines, int rotary_dim,
            bool interleaved) {
  Table(isa).rotate(head, cosines, sines, rotary_dim, interleaved);
}

void StoreKeyValue(Isa isa, const kv::BlockShape& shape, void* block, int head, int token,
                   const float* key, const float* value) {
  Table(isa).store_key_value(shape, block, head, token, key, value);
}

size_t AttentionScratchBytes(int padded_dim) {
  return sizeof(float) * (kScratchRows + 2 * static_cast<size_t>(kGroupKeys) * padded_dim);
}

void Attend(Isa isa, const AttentionTile& tile, void* scratch) {
  Table(isa).attend(tile, static_cast<float*>(scratch));
}

RowStats ScanRow(Isa isa, const float* x, int n) { return Table(isa).scan_row(x, n); }

double ExpSum(Isa isa, const float* x, int n, float max, float factor, float* out) {
  return Table(isa).exp_sum(x, n, max, factor, out);
}

}  // namespace fewbit::cpu
