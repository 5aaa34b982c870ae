// The row operations of ops.h over the Vec of the including file. Included once by each
// ops_<isa>.cc, inside its anonymous namespace. No standard header is used here: an inline function
// of one, compiled for AVX-512, could replace the portable copy at link time.

#define FEWBIT_OPS_TABLE \
  { RmsNormRow, AddRows, SiluMulRow, RotateHead, StoreToken, AttendRows, ScanLogits, SumOfExp }

float SumOfSquares(const float* x, int n) {
  Vec sums[4] = {Zero(), Zero(), Zero(), Zero()};
  int i = 0;
  for (; i + 64 <= n; i += 64) {
    for (int j = 0; j < 4; ++j) {
      const Vec v = Load(x + i + 16 * j);
      sums[j] = Fma(v, v, sums[j]);
    }
  }
  for (; i < n; i += 16) {
    const Vec v = n - i >= 16 ? Load(x + i) : LoadFirst(x + i, n - i);
    sums[0] = Fma(v, v, sums[0]);
  }
  return FoldSum(Add(Add(sums[0], sums[1]), Add(sums[2], sums[3])));
}

void RmsNormRow(const float* x, const float* weight, float eps, int n, float* out) {
  const float mean = SumOfSquares(x, n) / static_cast<float>(n);
  const Vec scale = Set(1.0f / __builtin_sqrtf(mean + eps));
  int i = 0;
  for (; i + 16 <= n; i += 16) Store(out + i, Mul(Mul(Load(x + i), scale), Load(weight + i)));
  if (i < n) {
    const Vec v = Mul(Mul(LoadFirst(x + i, n - i), scale), LoadFirst(weight + i, n - i));
    StoreFirst(out + i, v, n - i);
  }
}

void AddRows(float* x, const float* delta, int n) {
  int i = 0;
  for (; i + 16 <= n; i += 16) Store(x + i, Add(Load(x + i), Load(delta + i)));
  for (; i < n; ++i) x[i] += delta[i];
}

inline Vec Silu(Vec gate, Vec up) {
  return Mul(Div(gate, Add(Set(1.0f), Exp(Sub(Zero(), gate)))), up);
}

void SiluMulRow(float* gate, const float* up, int n) {
  int i = 0;
  for (; i + 16 <= n; i += 16) Store(gate + i, Silu(Load(gate + i), Load(up + i)));
  if (i < n) {
    StoreFirst(gate + i, Silu(LoadFirst(gate + i, n - i), LoadFirst(up + i, n - i)), n - i);
  }
}

void RotateHead(float* head, const float* cosines, const float* sines, int rotary_dim,
                bool interleaved) {
  const int pairs = rotary_dim / 2;
  if (interleaved) {
    for (int i = 0; i < pairs; ++i) {
      const float a = head[2 * i];
      const float b = head[2 * i + 1];
      head[2 * i] = a * cosines[i] - b * sines[i];
      head[2 * i + 1] = b * cosines[i] + a * sines[i];
    }
    return;
  }
  float* upper = head + pairs;
  int i = 0;
  for (; i + 16 <= pairs; i += 16) {
    const Vec a = Load(head + i);
    const Vec b = Load(upper + i);
    const Vec c = Load(cosines + i);
    const Vec s = Load(sines + i);
    Store(head + i, Sub(Mul(a, c), Mul(b, s)));
    Store(upper + i, Add(Mul(b, c), Mul(a, s)));
  }
  for (; i < pairs; ++i) {
    const float a = head[i];
    const float b = upper[i];
    head[i] = a * cosines[i] - b * sines[i];
    upper[i] = b * cosines[i] + a * sines[i];
  }
}

inline void Narrow(float* out, Vec v) { Store(out, v); }
inline void Narrow(uint16_t* out, Vec v) {
  StoreHalf(out, Min(Set(65504.0f), Max(Set(-65504.0f), v)));
}

template <typename T>
void StoreTokenAs(const kv::BlockShape& shape, T* keys, T* values, int token, const float* key,
                  const float* value) {
  for (int d = 0; d < shape.head_dim; d += 16) {
    const int n = shape.head_dim - d;
    T lanes[16];
    Narrow(lanes, n >= 16 ? Load(key + d) : LoadFirst(key + d, n));
    for (int i = 0; i < 16; ++i) keys[shape.key_index(d + i, token)] = lanes[i];
    Narrow(values + shape.value_index(token, d),
           n >= 16 ? Load(value + d) : LoadFirst(value + d, n));
  }
}

void StoreToken(const kv::BlockShape& shape, void* block, int head, int token, const float* key,
                const float* value) {
  uint8_t* bytes = static_cast<uint8_t*>(block);
  uint8_t* keys = bytes + shape.key_offset(head);
  uint8_t* values = bytes + shape.value_offset(head);
  if (shape.type == kv::KvType::kF16) {
    StoreTokenAs(shape, reinterpret_cast<uint16_t*>(keys), reinterpret_cast<uint16_t*>(values),
                 token, key, value);
  } else {
    StoreTokenAs(shape, reinterpret_cast<float*>(keys), reinterpret_cast<float*>(values), token,
                 key, value);
  }
}

RowStats ScanLogits(const float* x, int n) {
  const float lowest = -__builtin_inff();
  Vec max[2] = {Set(lowest), Set(lowest)};
  uint32_t ordered = 0xFFFF;
  int i = 0;
  for (; i + 32 <= n; i += 32) {
    const Vec a = Load(x + i);
    const Vec b = Load(x + i + 16);
    ordered &= BitsEqual(a, a) & BitsEqual(b, b);
    max[0] = Max(a, max[0]);
    max[1] = Max(b, max[1]);
  }
  for (; i < n; i += 16) {
    const Vec v = n - i >= 16 ? Load(x + i) : Keep(LoadFirst(x + i, n - i), LowBits(n - i), lowest);
    ordered &= BitsEqual(v, v);
    max[0] = Max(v, max[0]);
  }
  RowStats stats;
  stats.max = FoldMax(Max(max[0], max[1]));
  stats.finite = ordered == 0xFFFF && stats.max > lowest && stats.max < __builtin_inff();
  for (i = 0; stats.finite && i < n; i += 16) {
    const Vec v = n - i >= 16 ? Load(x + i) : Keep(LoadFirst(x + i, n - i), LowBits(n - i), lowest);
    const uint32_t hits = BitsEqual(v, Set(stats.max));
    if (hits != 0) {
      stats.argmax = i + __builtin_ctz(hits);
      break;
    }
  }
  return stats;
}

double SumOfExp(const float* x, int n, float max, float factor, float* out) {
  const Vec shift = Set(max);
  const Vec slope = Set(factor);
  double total = 0.0;
  for (int begin = 0; begin < n; begin += 1024) {
    const int end = n - begin < 1024 ? n : begin + 1024;
    Vec sum = Zero();
    int i = begin;
    for (; i + 16 <= end; i += 16) {
      const Vec e = Exp(Mul(Sub(Load(x + i), shift), slope));
      if (out != nullptr) Store(out + i, e);
      sum = Add(sum, e);
    }
    if (i < end) {
      const Vec e =
          Keep(Exp(Mul(Sub(LoadFirst(x + i, end - i), shift), slope)), LowBits(end - i), 0.0f);
      if (out != nullptr) StoreFirst(out + i, e, end - i);
      sum = Add(sum, e);
    }
    total += FoldSum(sum);
  }
  return total;
}
