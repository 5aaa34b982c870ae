// The loops of gradients.h over vectors of 16 lanes in the compiler's own notation, which it turns
// into what the including file is compiled for. Included once by each gradients_<isa>.cc, inside
// its anonymous namespace. No standard header is used here: an inline function of one, compiled
// for AVX-512, could replace the portable copy at link time.

#define FEWBIT_GRADIENT_TABLE(T)                                                             \
  {                                                                                          \
    AddTo<T>, ToBFloat16<T>, RmsNorm<T>, RmsNormBackward<T>, Rope<T>, Softmax<T>,            \
        SoftmaxBackward<T>, SiluMul<T>, SiluMulBackward<T>, Divergence<T>, ScaledWeights<T>, \
        ScaledGradients<T>, Adam<T>                                                          \
  }

constexpr int kLanes = 16;

typedef float FloatVec __attribute__((vector_size(kLanes * sizeof(float))));
typedef double DoubleVec __attribute__((vector_size(kLanes * sizeof(double))));
typedef int32_t FloatBits __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef int64_t DoubleBits __attribute__((vector_size(kLanes * sizeof(int64_t))));

template <typename T>
struct Real;

// exp's range, the bits of a mantissa, 1.5 * 2^that (adding it rounds to a whole number), and ln 2
// in two parts.
template <>
struct Real<float> {
  using Vec = FloatVec;
  using Bits = FloatBits;
  static constexpr float kLow = -87.0f, kHigh = 88.0f, kMagic = 12582912.0f;
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  static constexpr int kMantissa = 23, kBias = 127, kTerms = 7;
};
template <>
struct Real<double> {
  using Vec = DoubleVec;
  using Bits = DoubleBits;
  static constexpr double kLow = -708.0, kHigh = 709.0, kMagic = 6755399441055744.0;
  static constexpr double kLn2High = 0.693145751953125, kLn2Low = 1.42860682030941723212e-6;
  static constexpr int kMantissa = 52, kBias = 1023, kTerms = 13;
};
template <typename T>
using Vec = typename Real<T>::Vec;

template <typename T>
inline Vec<T> Set(T x) {
  return Vec<T>{} + x;
}

template <typename T>
inline Vec<T> Load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

// n of the lanes, the others `fill`.
template <typename T>
inline Vec<T> LoadFirst(const T* p, int n, T fill = T(0)) {
  Vec<T> v = Set<T>(fill);
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}

template <typename T, typename V>
inline void Store(T* p, const V& v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

template <typename T, typename V>
inline void StoreFirst(T* p, const V& v, int n) {
  for (int i = 0; i < n; ++i) p[i] = v[i];
}

inline DoubleVec Widen(const FloatVec& v) { return __builtin_convertvector(v, DoubleVec); }
inline DoubleVec Widen(const DoubleVec& v) { return v; }

// The sum of the lanes in a fixed tree.
template <typename T>
inline T Fold(const Vec<T>& v) {
  T lane[kLanes];
  __builtin_memcpy(lane, &v, sizeof(lane));
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  }
  return lane[0];
}

// 1 / i! for i = 0 .. terms.
template <typename T>
struct Taylor {
  T factor[Real<T>::kTerms + 1];
  constexpr Taylor() : factor{} {
    double product = 1.0;
    for (int i = 0; i <= Real<T>::kTerms; ++i) {
      factor[i] = static_cast<T>(1.0 / product);
      product *= i + 1;
    }
  }
};
template <typename T>
constexpr Taylor<T> kTaylor;

// exp(x) within 2 ulp: 2^n times a Taylor polynomial on |r| <= ln(2) / 2. 0 below the range, its
// end's value above.
template <typename T>
inline Vec<T> Exp(const Vec<T>& x) {
  using R = Real<T>;
  using Bits = typename R::Bits;
  Vec<T> in = x < R::kLow ? Set<T>(R::kLow) : x;
  in = in > R::kHigh ? Set<T>(R::kHigh) : in;
  const Vec<T> magic = in * static_cast<T>(1.44269504088896340736) + R::kMagic;
  const Vec<T> n = magic - R::kMagic;
  const Vec<T> r = (in - n * R::kLn2High) - n * R::kLn2Low;
  Vec<T> p = Set<T>(kTaylor<T>.factor[R::kTerms]);
  for (int i = R::kTerms - 1; i >= 0; --i) p = p * r + kTaylor<T>.factor[i];
  const Bits power = (__builtin_bit_cast(Bits, magic) + R::kBias) << R::kMantissa;
  p = p * __builtin_bit_cast(Vec<T>, power);
  return x < R::kLow ? Vec<T>{} : p;
}

// Calls fn(i, lanes in use) for each group of lanes of n elements.
template <typename Fn>
inline void Groups(int64_t n, Fn fn) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) fn(i, kLanes);
  if (i < n) fn(i, static_cast<int>(n - i));
}

template <typename T>
inline Vec<T> LoadGroup(const T* p, int used, T fill = T(0)) {
  return used == kLanes ? Load(p) : LoadFirst(p, used, fill);
}

template <typename T>
inline void StoreGroup(T* p, const Vec<T>& v, int used) {
  if (used == kLanes) {
    Store(p, v);
  } else {
    StoreFirst(p, v, used);
  }
}

template <typename T>
void AddTo(const T* x, int64_t count, T* y) {
  for (int64_t i = 0; i < count; ++i) y[i] += x[i];
}

template <typename T>
void ToBFloat16(const T* x, T factor, int64_t count, uint16_t* y) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, static_cast<float>(factor * x[i]));
    const uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    y[i] = static_cast<uint16_t>((bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : rounded);
  }
}

template <typename T>
inline T Sqrt(T x) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return __builtin_sqrtf(x);
  } else {
    return __builtin_sqrt(x);
  }
}

template <typename T>
void RmsNorm(const T* x, const T* weight, T eps, int rows, int cols, T* y, T* inverse_rms) {
  for (int r = 0; r < rows; ++r, x += cols, y += cols) {
    Vec<T> sum = {};
    Groups(cols, [&](int64_t i, int used) {
      const Vec<T> v = LoadGroup(x + i, used);
      sum += v * v;
    });
    const T scale = T(1) / Sqrt(Fold<T>(sum) / static_cast<T>(cols) + eps);
    inverse_rms[r] = scale;
    for (int i = 0; i < cols; ++i) y[i] = x[i] * scale * weight[i];
  }
}

// With r = inverse_rms: dx = r (weight dy) - x r^3 / cols * sum(weight dy x); d_weight += dy x r.
template <typename T>
void RmsNormBackward(const T* x, const T* weight, const T* inverse_rms, const T* dy, int rows,
                     int cols, bool add, T* dx, T* d_weight) {
  for (int row = 0; row < rows; ++row, x += cols, dy += cols, dx += cols) {
    const T r = inverse_rms[row];
    Vec<T> sum = {};
    Groups(cols, [&](int64_t i, int used) {
      const Vec<T> product = LoadGroup(x + i, used) * LoadGroup(dy + i, used);
      sum += product * LoadGroup(weight + i, used);
      if (d_weight != nullptr) {
        StoreGroup<T>(d_weight + i, LoadGroup(d_weight + i, used) + product * r, used);
      }
    });
    const T pull = Fold<T>(sum) * r * r * r / static_cast<T>(cols);
    if (add) {
      for (int i = 0; i < cols; ++i) dx[i] += weight[i] * dy[i] * r - x[i] * pull;
    } else {
      for (int i = 0; i < cols; ++i) dx[i] = weight[i] * dy[i] * r - x[i] * pull;
    }
  }
}

template <typename T>
void Rope(const T* cosines, const T* sines, int heads, int head_dim, int pairs, bool interleaved,
          bool inverse, T* x) {
  const T sign = inverse ? T(-1) : T(1);
  const int apart = interleaved ? 1 : pairs;
  const int step = interleaved ? 2 : 1;
  for (int h = 0; h < heads; ++h, x += head_dim) {
    for (int i = 0; i < pairs; ++i) {
      T* pair = x + i * step;
      const T a = pair[0];
      const T b = pair[apart];
      const T sine = sign * sines[i];
      pair[0] = a * cosines[i] - b * sine;
      pair[apart] = b * cosines[i] + a * sine;
    }
  }
}

// Largest element and the lowest index it has.
template <typename T>
struct Peak {
  T value;
  int index;
};

template <typename T>
inline Peak<T> FindPeak(const T* x, int n) {
  Vec<T> best = Set<T>(x[0]);
  Groups(n, [&](int64_t i, int used) {
    const Vec<T> v = LoadGroup(x + i, used, x[0]);
    best = v > best ? v : best;
  });
  Peak<T> peak = {best[0], 0};
  for (int i = 1; i < kLanes; ++i) peak.value = best[i] > peak.value ? best[i] : peak.value;
  // Without a NaN it is there.
  while (peak.index + 1 < n && !(x[peak.index] == peak.value)) ++peak.index;
  return peak;
}

template <typename T>
void Softmax(int begin, int end, int cols, T* row) {
  for (int i = 0; i < begin; ++i) row[i] = T(0);
  for (int i = end; i < cols; ++i) row[i] = T(0);
  T* x = row + begin;
  const int n = end - begin;
  Vec<T> best = Set<T>(x[0]);
  Groups(n, [&](int64_t i, int used) {
    const Vec<T> v = LoadGroup(x + i, used, x[0]);
    best = v > best ? v : best;
  });
  T max = best[0];
  for (int i = 1; i < kLanes; ++i) max = best[i] > max ? best[i] : max;
  Vec<T> sum = {};
  Groups(n, [&](int64_t i, int used) {
    const Vec<T> e = Exp<T>(LoadGroup(x + i, used, Real<T>::kLow * 2) - max);
    StoreGroup<T>(x + i, e, used);
    sum += e;
  });
  const T scale = T(1) / Fold<T>(sum);
  for (int i = 0; i < n; ++i) x[i] *= scale;
}

// Of y = softmax(x): dx = y (dy - sum(y dy)).
template <typename T>
void SoftmaxBackward(int begin, int end, int cols, const T* probabilities, T* d_row) {
  Vec<T> sum = {};
  Groups(end - begin, [&](int64_t i, int used) {
    sum += LoadGroup(probabilities + begin + i, used) * LoadGroup(d_row + begin + i, used);
  });
  const T mean = Fold<T>(sum);
  for (int i = 0; i < begin; ++i) d_row[i] = T(0);
  for (int i = begin; i < end; ++i) d_row[i] = probabilities[i] * (d_row[i] - mean);
  for (int i = end; i < cols; ++i) d_row[i] = T(0);
}

template <typename T>
inline Vec<T> Sigmoid(const Vec<T>& x) {
  return T(1) / (T(1) + Exp<T>(-x));
}

template <typename T>
void SiluMul(const T* gate, const T* up, int64_t count, T* y) {
  Groups(count, [&](int64_t i, int used) {
    const Vec<T> g = LoadGroup(gate + i, used);
    StoreGroup<T>(y + i, g * Sigmoid<T>(g) * LoadGroup(up + i, used), used);
  });
}

template <typename T>
void SiluMulBackward(const T* dy, int64_t count, T* gate, T* up) {
  Groups(count, [&](int64_t i, int used) {
    const Vec<T> d = LoadGroup(dy + i, used);
    const Vec<T> g = LoadGroup(gate + i, used);
    const Vec<T> u = LoadGroup(up + i, used);
    const Vec<T> s = Sigmoid<T>(g);
    StoreGroup<T>(gate + i, d * u * s * (T(1) + g * (T(1) - s)), used);
    StoreGroup<T>(up + i, d * g * s, used);
  });
}

// With t, s shifted by their maxima: KL = sum(e^t (t - s)) / Zt - log Zt + log Zs.
template <typename T>
RowDivergence Divergence(const T* teacher, int vocab, T scale, bool gradient, T* student) {
  const Peak<T> t_peak = FindPeak(teacher, vocab);
  const Peak<T> s_peak = FindPeak<T>(student, vocab);
  DoubleVec t_sum = {}, s_sum = {}, mixed = {};
  Groups(vocab, [&](int64_t i, int used) {
    const T nothing = Real<T>::kLow * 2;
    const Vec<T> t = LoadGroup(teacher + i, used, t_peak.value + nothing) - t_peak.value;
    const Vec<T> s = LoadGroup<T>(student + i, used, s_peak.value + nothing) - s_peak.value;
    const Vec<T> e = Exp<T>(t);
    t_sum += Widen(e);
    s_sum += Widen(Exp<T>(s));
    mixed += Widen(e) * Widen(t - s);
  });
  const double t_total = Fold<double>(t_sum), s_total = Fold<double>(s_sum);
  RowDivergence out;
  out.kl = Fold<double>(mixed) / t_total - __builtin_log(t_total) + __builtin_log(s_total);
  out.same_top = t_peak.index == s_peak.index;
  if (!gradient) return out;
  const T t_scale = static_cast<T>(scale / t_total), s_scale = static_cast<T>(scale / s_total);
  Groups(vocab, [&](int64_t i, int used) {
    const Vec<T> t = Exp<T>(LoadGroup(teacher + i, used) - t_peak.value);
    const Vec<T> s = Exp<T>(LoadGroup<T>(student + i, used) - s_peak.value);
    StoreGroup<T>(student + i, s * s_scale - t * t_scale, used);
  });
  return out;
}

constexpr int kStrip = 16;

// The sub-scale that counts: a whole number of 0 .. 15 where rounded, halves to even.
template <typename T>
inline T SubScale(const ScaledRow<T>& row, int strip) {
  const T s = row.sub_scales[strip];
  if (!row.rounded) return s;
  const T clamped = s < T(0) ? T(0) : s > T(15) ? T(15) : s;
  return (clamped + Real<T>::kMagic) - Real<T>::kMagic;
}

template <typename T>
void ScaledWeights(const ScaledRow<T>& row, T* weights) {
  const int strips = row.cols / kStrip;
  for (int p = 0; p < strips; ++p) {
    const T step = SubScale(row, p) * (row.second_order[row.tile_of_strip[p]] * T(0.5));
    for (int i = p * kStrip; i < (p + 1) * kStrip; ++i) {
      weights[i] = static_cast<T>(row.levels[i]) * step;
    }
  }
}

template <typename T>
void ScaledGradients(const ScaledRow<T>& row, const T* d_weights, T* d_sub_scales,
                     T* d_second_order) {
  const int strips = row.cols / kStrip;
  for (int p = 0; p < strips; ++p) {
    T product[kStrip];
    const int8_t* levels = row.levels + p * kStrip;
    const T* d = d_weights + p * kStrip;
    for (int i = 0; i < kStrip; ++i) product[i] = static_cast<T>(levels[i]) * d[i];
    const T sum = Fold<T>(Load(product)) * T(0.5);
    const int tile = row.tile_of_strip[p];
    const T s = row.sub_scales[p];
    const T d_scale = sum * row.second_order[tile];
    const bool outward =
        row.rounded && ((s <= T(0) && d_scale > T(0)) || (s >= T(15) && d_scale < T(0)));
    if (!outward) d_sub_scales[p] += d_scale;
    d_second_order[tile] += sum * SubScale(row, p);
  }
}

template <typename T>
void Adam(const AdamConstants<T>& c, int64_t count, const T* gradients, const T* reference,
          T* values, T* first_moments, T* second_moments) {
  for (int64_t i = 0; i < count; ++i) {
    const T unit = reference != nullptr ? reference[i] : T(1);
    const T g = gradients[i] * unit;
    const T m = c.beta1 * first_moments[i] + (T(1) - c.beta1) * g;
    const T v = c.beta2 * second_moments[i] + (T(1) - c.beta2) * g * g;
    first_moments[i] = m;
    second_moments[i] = v;
    const T size = Sqrt(v * c.second_correction) + c.epsilon;
    const T next = values[i] - c.learning_rate * unit * (m * c.first_correction) / size;
    values[i] = next < c.min_value ? c.min_value : next > c.max_value ? c.max_value : next;
  }
}
