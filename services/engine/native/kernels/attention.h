// Rotary embedding, the KV cache and paged attention.
//
// With S = 4 / sizeof(element): keys [block][kv head][D / S][16][S], values
// [block][kv head][16 / S][D][S]. Two passes: all scores, their maximum, exponentials and sum in
// sixteen lanes; then the values key by key. No online softmax, so no order to depend on.

#pragma once

#include "linear.h"

namespace shunt {

struct Shape {
  int64_t hidden, heads, kv_heads, head_dim, intermediate;  // padded to whole lanes
  int64_t hidden_numbers, head_numbers;                     // without the padding
  int64_t parts;  // that sums over heads and over the feed-forward layer are in, of this rank
  float epsilon, scale;
  float score_cap;       // 0: none
  float residual_scale;  // of what is added to the residual
  bool gelu;             // of the gate; else SiLU
  bool whole_norms;      // q_norm and k_norm are each of all heads together
};

template <class E>
struct LayerOf {
  const float *input_norm, *mlp_norm, *attention_post_norm, *mlp_post_norm;  // may be null
  const float *q_norm, *k_norm;                                              // likewise
  const float* rope;  // [positions][cos of D / 2, sin of D / 2]
  const E *qkv, *output, *gate_up, *down;
  E *keys, *values;
  const float *qkv_bias, *output_bias, *gate_up_bias, *down_bias;  // may be null
  int64_t window;  // positions a row looks back on, its own included; 0: on all
};

struct Sequence {
  int64_t first, count, start;  // first row, rows, position of the first row
  const int32_t* table;         // KV blocks from position 0
};

// One head's vector: optional RMSNorm, then rotation; in place, fp32.
template <class T>
void rotate(float* v, const float* norm, const float* rope, const Shape& s, int64_t position) {
  const int64_t d = s.head_dim, half = d / 2;
  if (norm && !s.whole_norms) {
    normalize<Fp32>([&](int64_t i) { return load(v + i); }, norm, d, s.head_numbers, s.epsilon, v);
  }
  const float *cosine = rope + position * d, *sine = cosine + half;
  for (int64_t i = 0; i < half; i++) {
    const float a = v[i], b = v[half + i];
    v[i] = __builtin_fmaf(a, cosine[i], -(b * sine[i]));
    v[half + i] = __builtin_fmaf(b, cosine[i], a * sine[i]);
  }
}

template <class T>
void write_keys_and_values(const LayerOf<typename T::E>& layer, const Shape& s, const Sequence& q,
                           float* qkv, int64_t stride, int64_t head) {
  using E = typename T::E;
  const int64_t d = s.head_dim, step = T::kStep;
  std::vector<E> narrow(d);
  for (int64_t r = 0; r < q.count; r++) {
    const int64_t position = q.start + r, lane = position % kBlock;
    const int64_t page = (q.table[position / kBlock] * s.kv_heads + head) * d * kBlock;
    E *keys = layer.keys + page, *values = layer.values + page;
    if (lane == 0) {  // no value of an earlier owner is ever multiplied, not even by zero
      std::memset(keys, 0, d * kBlock * sizeof(E));
      std::memset(values, 0, d * kBlock * sizeof(E));
    }
    float* k = qkv + (q.first + r) * stride + (s.heads + head) * d;
    rotate<T>(k, layer.k_norm, layer.rope, s, position);
    for (int64_t i = 0; i < d; i += kLanes) T::narrow(narrow.data() + i, load(k + i));
    for (int64_t i = 0; i < d; i++)
      keys[(i / step * kBlock + lane) * step + i % step] = narrow[i];
    const float* v = k + s.kv_heads * d;
    for (int64_t i = 0; i < d; i += kLanes) T::narrow(narrow.data() + i, load(v + i));
    E* row = values + lane / step * d * step + lane % step;
    for (int64_t i = 0; i < d; i++) row[i * step] = narrow[i];
  }
}

// scores[m][B blocks of 16] = q[m] . keys
template <class T, int M, int B>
void score_tile(const typename T::E* const* q, const typename T::E* const* pages, int64_t d,
                float* scores, int64_t stride) {
  F acc[M][B] = {};
  for (int64_t s = 0; s < d / T::kStep; s++) {
    I key[B];
#pragma GCC unroll 8
    for (int b = 0; b < B; b++) key[b] = load_step(pages[b] + s * kBlock * T::kStep);
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
      I a = splat_step(q[m] + s * T::kStep);
#pragma GCC unroll 8
      for (int b = 0; b < B; b++) acc[m][b] = T::dot(acc[m][b], a, key[b]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; m++)
#pragma GCC unroll 8
    for (int b = 0; b < B; b++) store(scores + m * stride + b * kBlock, acc[m][b]);
}

template <class T, int B, int M = kQueries>
void score(int64_t m, const typename T::E* const* q, const typename T::E* const* pages, int64_t d,
           float* scores, int64_t stride) {
  if (m == M) return score_tile<T, M, B>(q, pages, d, scores, stride);
  if constexpr (M > 1) score<T, B, M - 1>(m, q, pages, d, scores, stride);
}

// Most (row, head) pairs that `attend` takes at once.
template <class T>
int64_t queries_at_once(int64_t d) {
  return on_tiles<T>(d) ? kTiledQueries : kQueries;
}

// All scores of m vectors q [m, d].
template <class T>
void score_all(const typename T::E* q, int64_t m, const typename T::E* keys, const int32_t* table,
               int64_t page, int64_t blocks, int64_t d, float* scores, int64_t stride) {
#if defined(__AMX_BF16__)
  if constexpr (std::is_same_v<T, Bf16>)
    if (on_tiles<T>(d)) return amx::score(q, m, keys, table, page, blocks, d, scores, stride);
#endif
  const typename T::E* vectors[kQueries];
  for (int64_t i = 0; i < m; i++) vectors[i] = q + i * d;
  int64_t b = 0;
  for (const typename T::E* pages[4]; b + 4 <= blocks; b += 4) {
    for (int i = 0; i < 4; i++) pages[i] = keys + table[b + i] * page;
    for (int64_t i = 0; i < m; i += kFourRows)
      score<T, 4, kFourRows>(std::min(kFourRows, m - i), vectors + i, pages, d,
                             scores + i * stride + b * kBlock, stride);
  }
  for (; b < blocks; b++) {
    const typename T::E* one = keys + table[b] * page;
    score<T, 1>(m, vectors, &one, d, scores + b * kBlock, stride);
  }
}

// out[m][V vectors from `column`] = weights[m] . values, key by key.
template <class T, int M, int V>
void mix_tile(const typename T::E* const* weights, const typename T::E* values,
              const int32_t* table, int64_t page, int64_t blocks, int64_t d, int64_t column,
              F* out) {
  F acc[M][V] = {};
  for (int64_t b = 0; b < blocks; b++) {
    const typename T::E* p = values + table[b] * page + column * T::kStep;
    for (int64_t s = 0; s < kBlock / T::kStep; s++) {
      I value[V];
      for (int v = 0; v < V; v++) value[v] = load_step(p + (s * d + v * kLanes) * T::kStep);
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        I a = splat_step(weights[m] + b * kBlock + s * T::kStep);
        for (int v = 0; v < V; v++) acc[m][v] = T::dot(acc[m][v], a, value[v]);
      }
    }
  }
  for (int m = 0; m < M; m++)
    for (int v = 0; v < V; v++) out[m * 4 + v] = acc[m][v];
}

template <class T, int V = 4, int M = kMixed>
void mix(int64_t v, int64_t m, const typename T::E* const* weights, const typename T::E* values,
         const int32_t* table, int64_t page, int64_t blocks, int64_t d, int64_t column, F* out) {
  if (v == V && m == M)
    return mix_tile<T, M, V>(weights, values, table, page, blocks, d, column, out);
  if constexpr (M > 1) {
    if (v == V) return mix<T, V, M - 1>(v, m, weights, values, table, page, blocks, d, column, out);
  }
  if constexpr (V > 1 && M == kMixed)
    mix<T, V - 1, M>(v, m, weights, values, table, page, blocks, d, column, out);
}

// sums[m][64] = weights[m] . values from `column` on, `width` (1 to 4) times 16 columns.
template <class T>
void mix_all(const typename T::E* weights, int64_t stride, int64_t m, const typename T::E* values,
             const int32_t* table, int64_t page, int64_t blocks, int64_t d, int64_t column,
             int64_t width, float* sums) {
#if defined(__AMX_BF16__)
  if constexpr (std::is_same_v<T, Bf16>)
    if (on_tiles<T>(d))
      return amx::mix(weights, stride, m, values, table, page, blocks, d, column, width, sums);
#endif
  for (int64_t first = 0; first < m; first += kMixed) {
    const typename T::E* shares[kMixed];
    F mixed[kMixed * 4];
    const int64_t some = std::min(kMixed, m - first);
    for (int64_t i = 0; i < some; i++) shares[i] = weights + (first + i) * stride;
    mix<T>(width, some, shares, values, table, page, blocks, d, column, mixed);
    for (int64_t i = 0; i < some * 4; i++) store(sums + first * 4 * kLanes + i * kLanes, mixed[i]);
  }
}

// Scores of positions before `from` and from `to` on: of none of the context.
inline void hide(float* scores, int64_t length, int64_t from, int64_t to) {
  const F never = splat(-__builtin_inff());
  auto keep = [&](int64_t i, I seen) { store(scores + i, select(seen, load(scores + i), never)); };
  for (int64_t i = 0; i < from; i += kLanes) keep(i, lanes() + (int32_t)i >= (int32_t)from);
  for (int64_t i = to / kLanes * kLanes; i < length; i += kLanes)
    keep(i, lanes() + (int32_t)i < (int32_t)to);
}

// Of M rows of scores the exponentials, over their row's maximum, and one over their sums. Rows are
// taken together, for one alone would wait for itself.
template <class T, int M>
void soften(int64_t m, float* scores, typename T::E* weights, int64_t length, const Shape& s,
            float* totals) {
  if constexpr (M > 1)
    if (m < M) return soften<T, M - 1>(m, scores, weights, length, s, totals);
  F top[M], total[M] = {};
  const F scale = splat(s.score_cap ? 1.0f : s.scale);
  for (int r = 0; r < M; r++) top[r] = splat(-__builtin_inff());
  for (int64_t i = 0; i < length; i += kLanes)
#pragma GCC unroll 4
    for (int r = 0; r < M; r++) top[r] = larger(load(scores + r * length + i) * scale, top[r]);
  for (int r = 0; r < M; r++) top[r] = splat(maximum(top[r]));
  for (int64_t i = 0; i < length; i += kLanes)
#pragma GCC unroll 4
    for (int r = 0; r < M; r++) {
      F e = exponential(load(scores + r * length + i) * scale - top[r]);
      total[r] += e;
      T::narrow(weights + r * length + i, e);
    }
  for (int r = 0; r < M; r++) totals[r] = 1.0f / sum(total[r]);
}

// Queries (row, head) of one sequence and one KV head: scores, softmax, mixture; each over its
// own context, from 0 or from where its window begins up to its position. Blocks of the tile before
// and past it add exact zeros.
template <class T>
void attend(const LayerOf<typename T::E>& layer, const Shape& s, const Sequence& q,
            const typename T::E* queries, typename T::E* out, int64_t kv_head, int64_t row,
            int64_t row_count, int64_t head, int64_t head_count) {
  using E = typename T::E;
  constexpr int64_t kMost = std::max(kQueries, kTiledQueries), kWidth = 4 * kLanes;
  const int64_t d = s.head_dim, page = s.kv_heads * d * kBlock, m_count = row_count * head_count;
  const int64_t window = layer.window ? layer.window : q.start + row + row_count;
  const int64_t begin = std::max<int64_t>(0, q.start + row + 1 - window) / kBlock;
  const int64_t blocks = (q.start + row + row_count - 1) / kBlock + 1 - begin;
  const int64_t length = blocks * kBlock;
  const int32_t* table = q.table + begin;
  thread_local std::vector<float> scores, sums;
  thread_local std::vector<E> weights, vectors;
  if ((int64_t)scores.size() < m_count * length) scores.resize(m_count * length);
  if ((int64_t)weights.size() < m_count * length) weights.resize(m_count * length);
  vectors.resize(kMost * d);
  sums.resize(kMixedAtOnce * kWidth);
  const E *keys = layer.keys + kv_head * d * kBlock, *values = layer.values + kv_head * d * kBlock;
  for (int64_t m = 0; m < m_count; m++) {
    const int64_t at = (q.first + row + m / head_count) * s.heads + head + m % head_count;
    std::memcpy(vectors.data() + m * d, queries + at * d, d * sizeof(E));
  }
  score_all<T>(vectors.data(), m_count, keys, table, page, blocks, d, scores.data(), length);
  if (s.score_cap)
    for (int64_t i = 0; i < m_count * length; i += kLanes)
      store(&scores[i], capped(load(&scores[i]) * splat(s.scale), splat(s.score_cap)));
  for (int64_t m = 0; m < m_count; m++) {
    const int64_t context = q.start + row + m / head_count + 1 - begin * kBlock;
    hide(scores.data() + m * length, length, context - window, context);
  }
  float totals[kMost];
  for (int64_t m = 0; m < m_count; m += kSoftened)
    soften<T, kSoftened>(std::min(kSoftened, m_count - m), scores.data() + m * length,
                         weights.data() + m * length, length, s, totals + m);
  for (int64_t m = 0; m < m_count; m += kMixedAtOnce) {
    const int64_t some = std::min(kMixedAtOnce, m_count - m);
    for (int64_t column = 0; column < d; column += kWidth) {
      const int64_t width = std::min<int64_t>(4, (d - column) / kLanes);
      const E* shares = weights.data() + m * length;
      mix_all<T>(shares, length, some, values, table, page, blocks, d, column, width,
                 sums.data());
      for (int64_t i = 0; i < some; i++) {
        const int64_t at = q.first + row + (m + i) / head_count;
        E* p = out + (at * s.heads + head + (m + i) % head_count) * d + column;
        for (int64_t v = 0; v < width; v++)
          T::narrow(p + v * kLanes, load(sums.data() + i * kWidth + v * kLanes) * splat(totals[m + i]));
      }
    }
  }
}

}  // namespace shunt
