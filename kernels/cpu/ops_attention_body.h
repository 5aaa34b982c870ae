// Attention over the paged cache, and the exp it shares with the row operations, over the Vec of
// the including file. Included once by each ops_<isa>.cc, inside its anonymous namespace; see
// ops_rows_body.h for what may not be used here.
//
// A row's result is defined by: for each group of 64 keys by absolute index, scores s_j = sum over
// d in ascending order (fused); the new maximum; p_j = exp(s_j - max); lane sums l = l * f + p
// (block by block); out = out * f + sum over j in ascending order (fused). A key that a row does
// not see has p_j = 0, which changes nothing, so tiles may compute more than a row needs.

// exp(x) with error below 2 ulp: 2^n times the Taylor polynomial of degree 7 on |r| <= ln(2)/2. 0
// below -87, exp(88) above 88.
inline Vec Exp(Vec x) {
  const Vec clamped = Min(Set(88.0f), Max(Set(-87.0f), x));
  const Vec magic = Fma(clamped, Set(1.44269504f), Set(12582912.0f));
  const Vec n = Sub(magic, Set(12582912.0f));
  Vec r = Fma(n, Set(-0.693359375f), clamped);
  r = Fma(n, Set(2.12194440e-4f), r);
  Vec p = Set(1.0f / 5040.0f);
  p = Fma(p, r, Set(1.0f / 720.0f));
  p = Fma(p, r, Set(1.0f / 120.0f));
  p = Fma(p, r, Set(1.0f / 24.0f));
  p = Fma(p, r, Set(1.0f / 6.0f));
  p = Fma(p, r, Set(0.5f));
  p = Fma(p, r, Set(1.0f));
  p = Fma(p, r, Set(1.0f));
  return ZeroBelow(Mul(p, PowerOfTwo(magic)), x, Set(-87.0f));
}

inline uint32_t LowBits(int n) { return n >= 16 ? 0xFFFFu : (1u << n) - 1; }

inline Vec LoadAs(const float* p) { return Load(p); }
inline Vec LoadAs(const uint16_t* p) { return LoadHalf(p); }

// The blocks of one group of keys that some row of the tile sees: [block_begin, block_end) of its
// four.
template <typename T>
struct Group {
  const T* keys[kGroupBlocks];
  const T* values[kGroupBlocks];
  int block_begin = 0;
  int block_end = 0;
  int key_begin = 0;  // within the group; values outside are not read
  int key_end = 0;
};

// scores[r][16 b + lane] for R rows and B blocks.
template <typename T, int R, int B>
void ScoreTile(const float* queries, int dims, const T* const* keys, float* scores) {
  Vec sums[R][B];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) sums[r][b] = Zero();
  }
  for (int d = 0; d < dims; ++d) {
    Vec key[B];
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) key[b] = LoadAs(keys[b] + 16 * d);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec query = Set(queries[r * dims + d]);
#pragma GCC unroll 4
      for (int b = 0; b < B; ++b) sums[r][b] = Fma(query, key[b], sums[r][b]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) Store(scores + r * kGroupKeys + 16 * b, sums[r][b]);
  }
}

template <typename T, int R, int B>
void ScoreRows(const float* queries, int dims, const Group<T>& group, float* scores) {
  int b = group.block_begin;
  for (; b + B <= group.block_end; b += B) {
    ScoreTile<T, R, B>(queries, dims, group.keys + b, scores + 16 * b);
  }
  for (; b < group.block_end; ++b) {
    ScoreTile<T, R, 1>(queries, dims, group.keys + b, scores + 16 * b);
  }
}

template <typename T>
void ScoreGroup(const float* queries, int rows, int dims, const Group<T>& group, float* scores) {
  int r = 0;
  for (; r + kScoreRows <= rows; r += kScoreRows) {
    ScoreRows<T, kScoreRows, kScoreBlocks>(queries + r * dims, dims, group,
                                           scores + r * kGroupKeys);
  }
  for (; r + 2 <= rows; r += 2) {
    ScoreRows<T, 2, 2 * kScoreBlocks>(queries + r * dims, dims, group, scores + r * kGroupKeys);
  }
  if (r < rows) {
    ScoreRows<T, 1, 2 * kScoreBlocks>(queries + r * dims, dims, group, scores + r * kGroupKeys);
  }
}

// out[r][16 c ...] = out * factors[r] + sum over keys of p * value, for R rows and C vectors of
// columns.
template <typename T, int R, int C>
void ValueTile(const float* weights, const float* factors, const Group<T>& group, int dims, int col,
               float* out) {
  Vec sums[R][C];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    const Vec factor = Set(factors[r]);
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) sums[r][c] = Mul(Load(out + r * dims + col + 16 * c), factor);
  }
  for (int j = group.key_begin; j < group.key_end; ++j) {
    const T* value = group.values[j / 16] + (j % 16) * dims + col;
    Vec columns[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) columns[c] = LoadAs(value + 16 * c);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Vec weight = Set(weights[r * kGroupKeys + j]);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sums[r][c] = Fma(weight, columns[c], sums[r][c]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) Store(out + r * dims + col + 16 * c, sums[r][c]);
  }
}

template <typename T, int R>
void ValueRows(const float* weights, const float* factors, const Group<T>& group, int dims,
               float* out) {
  int col = 0;
  for (; col + 16 * kValueCols <= dims; col += 16 * kValueCols) {
    ValueTile<T, R, kValueCols>(weights, factors, group, dims, col, out);
  }
  for (; col < dims; col += 16) ValueTile<T, R, 1>(weights, factors, group, dims, col, out);
}

template <typename T>
void ValueGroup(const float* weights, const float* factors, int rows, int dims,
                const Group<T>& group, float* out) {
  int r = 0;
  for (; r + kValueRows <= rows; r += kValueRows) {
    ValueRows<T, kValueRows>(weights + r * kGroupKeys, factors + r, group, dims, out + r * dims);
  }
  for (; r + 2 <= rows; r += 2) {
    ValueRows<T, 2>(weights + r * kGroupKeys, factors + r, group, dims, out + r * dims);
  }
  if (r < rows) {
    ValueRows<T, 1>(weights + r * kGroupKeys, factors + r, group, dims, out + r * dims);
  }
}

// One row's scores of a group become weights; [begin, end) of the group's keys are seen. Returns
// the factor for what was summed so far.
float SoftmaxRow(float* scores, int begin, int end, int block_begin, int block_end, float* max,
                 float* lane_sums) {
  const float unseen = -__builtin_inff();
  Vec top = Set(unseen);
  for (int b = block_begin; b < block_end; ++b) {
    const int from = begin - 16 * b;
    const int to = end - 16 * b;
    Vec s = Load(scores + 16 * b);
    if (from > 0 || to < 16) {
      const uint32_t below = to <= 0 ? 0 : LowBits(to);
      const uint32_t above = from <= 0 ? 0 : LowBits(from);
      s = Keep(s, below & ~above, unseen);
      Store(scores + 16 * b, s);
    }
    top = Max(top, s);
  }
  const float old_max = *max;
  const float group_max = FoldMax(top);
  const float new_max = group_max > old_max ? group_max : old_max;
  float factor = 1.0f;
  if (new_max != old_max) {
    float lanes[16];
    Store(lanes, Exp(Set(old_max - new_max)));
    factor = lanes[0];
  }
  Vec sums = Mul(Load(lane_sums), Set(factor));
  for (int b = block_begin; b < block_end; ++b) {
    const Vec p = Exp(Sub(Load(scores + 16 * b), Set(new_max)));
    Store(scores + 16 * b, p);
    sums = Add(sums, p);
  }
  Store(lane_sums, sums);
  *max = new_max;
  return factor;
}

// Pointers into a thread's scratch; sizes in ops_table.h.
struct Scratch {
  float* scores;     // [rows, 64]
  float* lane_sums;  // [rows, 16]
  float* max;        // [rows]
  float* factors;    // [rows]
  float* staging;    // keys [4][padded D, 16], then values [4][16, padded D]
};

inline int FirstKey(const AttentionTile& tile, int row) {
  const int first = tile.positions[row] - tile.window + 1;
  return tile.window == 0 || first < 0 ? 0 : first;
}

template <typename T>
void AttendGroup(const AttentionTile& tile, const Group<T>& group, int first_key,
                 const Scratch& s) {
  const int dims = tile.shape.padded_dim();
  ScoreGroup<T>(tile.queries, tile.rows, dims, group, s.scores);
  for (int r = 0; r < tile.rows; ++r) {
    const int begin = FirstKey(tile, r) - first_key;
    const int end = tile.positions[r] + 1 - first_key;
    s.factors[r] = SoftmaxRow(s.scores + r * kGroupKeys, begin, end, group.block_begin,
                              group.block_end, s.max + r, s.lane_sums + 16 * r);
  }
  ValueGroup<T>(s.scores, s.factors, tile.rows, dims, group, tile.out);
}

inline void Widen(const uint16_t* from, int n, float* to) {
  for (int i = 0; i < n; i += 16) Store(to + i, LoadHalf(from + i));
}

// The same group with keys and values widened once, for tiles whose rows would otherwise each widen
// them again.
void AttendGroupWidened(const AttentionTile& tile, const Group<uint16_t>& group, int first_key,
                        const Scratch& s) {
  const int block = tile.shape.padded_dim() * kv::kBlockTokens;
  Group<float> wide;
  wide.block_begin = group.block_begin;
  wide.block_end = group.block_end;
  wide.key_begin = group.key_begin;
  wide.key_end = group.key_end;
  for (int b = group.block_begin; b < group.block_end; ++b) {
    float* keys = s.staging + b * block;
    float* values = keys + kGroupBlocks * block;
    Widen(group.keys[b], block, keys);
    Widen(group.values[b], block, values);
    wide.keys[b] = keys;
    wide.values[b] = values;
  }
  AttendGroup<float>(tile, wide, first_key, s);
}

template <typename T>
Group<T> FindGroup(const AttentionTile& tile, int first_key, int tile_begin, int tile_end) {
  Group<T> group;
  group.key_begin = tile_begin > first_key ? tile_begin - first_key : 0;
  group.key_end = tile_end - first_key < kGroupKeys ? tile_end - first_key : kGroupKeys;
  group.block_begin = group.key_begin / 16;
  group.block_end = (group.key_end + 15) / 16;
  for (int b = group.block_begin; b < group.block_end; ++b) {
    int32_t id;
    __builtin_memcpy(&id, static_cast<const uint8_t*>(tile.blocks) + 4 * (first_key / 16 + b), 4);
    const uint8_t* block = tile.layer + static_cast<size_t>(id) * tile.shape.block_bytes();
    group.keys[b] = reinterpret_cast<const T*>(block + tile.shape.key_offset(tile.head));
    group.values[b] = reinterpret_cast<const T*>(block + tile.shape.value_offset(tile.head));
  }
  return group;
}

void AttendRows(const AttentionTile& tile, float* scratch) {
  const int dims = tile.shape.padded_dim();
  Scratch s;
  s.scores = scratch;
  s.lane_sums = s.scores + kScratchScores;
  s.max = s.lane_sums + kScratchSums;
  s.factors = s.max + kMaxTileRows;
  s.staging = s.factors + kMaxTileRows;
  int begin = FirstKey(tile, 0);
  int end = 0;
  for (int r = 0; r < tile.rows; ++r) {
    s.max[r] = -1e30f;  // finite, so that a group of which a row sees nothing gives exp(-inf) = 0
    Store(s.lane_sums + 16 * r, Zero());
    for (int d = 0; d < dims; d += 16) Store(tile.out + r * dims + d, Zero());
    begin = FirstKey(tile, r) < begin ? FirstKey(tile, r) : begin;
    end = tile.positions[r] + 1 > end ? tile.positions[r] + 1 : end;
  }
  for (int key = begin / kGroupKeys * kGroupKeys; key < end; key += kGroupKeys) {
    if (tile.shape.type == kv::KvType::kF32) {
      AttendGroup<float>(tile, FindGroup<float>(tile, key, begin, end), key, s);
    } else if (tile.rows <= kScoreRows) {
      AttendGroup<uint16_t>(tile, FindGroup<uint16_t>(tile, key, begin, end), key, s);
    } else {
      AttendGroupWidened(tile, FindGroup<uint16_t>(tile, key, begin, end), key, s);
    }
  }
  for (int r = 0; r < tile.rows; ++r) {
    const Vec scale = Set(1.0f / FoldSum(Load(s.lane_sums + 16 * r)));
    for (int d = 0; d < dims; d += 16) {
      Store(tile.out + r * dims + d, Mul(Load(tile.out + r * dims + d), scale));
    }
  }
}
