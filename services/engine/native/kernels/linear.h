// Linears over packed weights, and RMSNorm.
//
// A weight [N, K] lies as [N / 32][K / S][32][S], S = 4 / sizeof(element); gate and up are
// interleaved 16 by 16. Every output is a sum over K, step by step, in equal parts that are added in
// pairs, (p0 + p1) + (p2 + p3): so a rank that has one part of two, or of four, or a pair of them,
// has a sum that the others' are added to in the same order, whatever the number of ranks.

#pragma once

#include "amx.h"
#include "vectors.h"

namespace shunt {

// How the sums of a column block leave the registers. A bias has whole blocks, and may be null.
struct StoreRaw {
  float* out;
  int64_t stride;
  const float* bias;
  void operator()(int64_t row, int64_t block, F a, F b) const {
    float* p = out + row * stride + block * kColumns;
    if (bias) {
      a += load(bias + block * kColumns);
      b += load(bias + block * kColumns + kLanes);
    }
    store(p, a);
    store(p + kLanes, b);
  }
};

struct StoreLogits {
  float* out;
  int64_t stride;
  float divisor, cap;  // no cap: 0
  void operator()(int64_t row, int64_t block, F a, F b) const {
    float* p = out + row * stride + block * kColumns;
    if (divisor != 1.0f) a /= splat(divisor), b /= splat(divisor);
    if (cap) a = capped(a, splat(cap)), b = capped(b, splat(cap));
    store(p, a);
    store(p + kLanes, b);
  }
};

// A gate times what it lets through. SiLU is x / (1 + e^-x), and GELU, by tanh, x / (1 + e^-z) with
// z = 2 sqrt(2 / pi) (x + 0.044715 x^3) (Hendrycks and Gimpel 2016).
template <class T>
struct StoreGated {
  typename T::E* out;
  int64_t stride;
  const float* bias;
  bool gelu;
  void operator()(int64_t row, int64_t block, F gate, F up) const {
    if (bias) {
      gate += load(bias + block * kColumns);
      up += load(bias + block * kColumns + kLanes);
    }
    F z = gate;
    if (gelu) z *= fma(gate * gate, splat(0.0713548162726f), splat(1.5957691216057308f));
    F e = exponential(-select(z < splat(-80.0f), splat(-80.0f), z));
    T::narrow(out + row * stride + block * kLanes, gate / (e + 1.0f) * up);
  }
};

// Weights come from memory a while after they are sent for. Of few rows, each step sends for what
// lies so many bytes ahead where M rows are multiplied by B column blocks; 0: the processor looks
// far enough ahead by itself. Measured on Zen 4, so other levels go without.
template <int M, int B>
constexpr int64_t bytes_ahead() {
#if defined(__AVX512BF16__)
  return B == 4 ? 1152 : M >= 5 ? 6144 : 0;
#else
  return 0;
#endif
}

// Sums over a part of K, from step to step. Where many rows share a weight, `later` is sent for
// meanwhile, a cache line a step.
template <class T, int M, int B, bool Many>
inline void sum_part(const typename T::E* x, int64_t k, const typename T::E* w, int64_t from,
                     int64_t to, [[maybe_unused]] const char* later, F (&acc)[M][2 * B]) {
  const int64_t stride = k * kColumns;
#pragma GCC unroll 16
  for (int m = 0; m < M; m++)
#pragma GCC unroll 8
    for (int v = 0; v < 2 * B; v++) acc[m][v] = F{};
  for (int64_t s = from; s < to; s++) {
    I weight[2 * B];
#if defined(__AVX512BF16__)
    if constexpr (Many) __builtin_prefetch(later + s * kLine, 0, 2);
#endif
#pragma GCC unroll 8
    for (int b = 0; b < B; b++) {
      const typename T::E* p = w + b * stride + s * kColumns * T::kStep;
      if constexpr (constexpr int64_t ahead = bytes_ahead<M, B>(); !Many && ahead > 0) {
        __builtin_prefetch((const char*)p + ahead, 0, 2);
        __builtin_prefetch((const char*)p + ahead + kLine, 0, 2);
      }
      weight[2 * b] = load_step(p);
      weight[2 * b + 1] = load_step(p + kLanes * T::kStep);
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
      I a = splat_step(x + m * k + s * T::kStep);
#pragma GCC unroll 8
      for (int v = 0; v < 2 * B; v++) acc[m][v] = T::dot(acc[m][v], a, weight[v]);
    }
  }
}

template <class T, int M, int B, bool Many, class Store>
void linear_tile(const typename T::E* x, int64_t k, int64_t parts, const typename T::E* w,
                 int64_t row, int64_t block, const char* later, const Store& put) {
  F acc[M][2 * B], held[kParts / 2][M][2 * B];  // held: of one part, of two, waiting for others
  const int64_t steps = k / T::kStep / parts;
  for (int64_t part = 0; part < parts; part++) {
    sum_part<T, M, B, Many>(x, k, w, part * steps, (part + 1) * steps, later, acc);
    int64_t level = 0;
    for (int64_t rest = part; rest & 1; rest >>= 1, level++)
#pragma GCC unroll 16
      for (int m = 0; m < M; m++)
#pragma GCC unroll 8
        for (int v = 0; v < 2 * B; v++) acc[m][v] = held[level][m][v] + acc[m][v];
    if (part + 1 < parts)
#pragma GCC unroll 16
      for (int m = 0; m < M; m++)
#pragma GCC unroll 8
        for (int v = 0; v < 2 * B; v++) held[level][m][v] = acc[m][v];
  }
  for (int m = 0; m < M; m++)
    for (int b = 0; b < B; b++) put(row + m, block + b, acc[m][2 * b], acc[m][2 * b + 1]);
}

// The tile of m rows, m known to the compiler.
template <class T, int B, int M, bool Many, class Store>
void linear_rows(int64_t m, const typename T::E* x, int64_t k, int64_t parts,
                 const typename T::E* w, int64_t row, int64_t block, const char* later,
                 const Store& put) {
  if (m == M) return linear_tile<T, M, B, Many>(x, k, parts, w, row, block, later, put);
  if constexpr (M > 1) linear_rows<T, B, M - 1, Many>(m, x, k, parts, w, row, block, later, put);
}

// Sums over this many elements go through the matrix unit, where there is one.
template <class T>
constexpr bool on_tiles(int64_t depth) {
#if defined(__AMX_BF16__)
  return std::is_same_v<T, Bf16> && depth % amx::kDepth == 0;
#else
  return depth < 0;
#endif
}

// The product of more rows than a tile has: of each chunk, tile after tile passes a column block, or
// two where both stay near. Meanwhile the next ones are sent for.
template <class T, class Store>
void linear_many(const typename T::E* x, int64_t rows, int64_t k, int64_t parts,
                 const typename T::E* w, int64_t blocks, int threads, const Store& put) {
  const int64_t size = k * kColumns, size_bytes = size * (int64_t)sizeof(*w);
  const bool paired = kPairRows > 0 && 2 * size_bytes <= kNear;
  const int64_t group = paired ? 2 : 1, most = paired ? kPairRows : kTile;
  for (int64_t first = 0; first < rows; first += kChunk) {
    const int64_t chunk = std::min(kChunk, rows - first), tiles = (chunk + most - 1) / most;
    parallel((blocks + group - 1) / group, threads, [&](int64_t g) {
      const int64_t block = g * group;
      const auto *weight = w + block * size, *next = weight + group * size;
      for (int64_t tile = 0; tile < tiles; tile++) {
        const int64_t row = first + tile * chunk / tiles;
        const int64_t m = first + (tile + 1) * chunk / tiles - row;
        // A step reads two lines of a column block and sends for one.
        const char* later = (const char*)weight;
        if (tile < 2 * group) later = (const char*)next + tile * size_bytes / 2;
        if constexpr (kPairRows > 0)
          if (paired && block + 1 < blocks) {
            linear_rows<T, 2, kPairRows, true>(m, x + row * k, k, parts, weight, row, block, later,
                                               put);
            continue;
          }
        linear_rows<T, 1, kTile, true>(m, x + row * k, k, parts, weight, row, block, later, put);
      }
    });
  }
}

// x [rows, k] times w, column block by column block; few rows read several blocks at once. K is
// summed in parts.
template <class T, class Store>
void linear(const typename T::E* x, int64_t rows, int64_t k, int64_t parts,
            const typename T::E* w, int64_t columns, int threads, const Store& put) {
#if defined(__AMX_BF16__)
  if constexpr (std::is_same_v<T, Bf16>)
    if (on_tiles<T>(k / parts)) return amx::linear(x, rows, k, parts, w, columns, threads, put);
#endif
  const int64_t blocks = (columns + kColumns - 1) / kColumns, size = k * kColumns;
  if (rows > kTile) return linear_many<T>(x, rows, k, parts, w, blocks, threads, put);
  const int64_t group = rows <= 2 ? 4 : rows <= 3 ? 2 : 1;
  parallel((blocks + group - 1) / group, threads, [&](int64_t g) {
    const int64_t end = std::min(blocks, (g + 1) * group);
    int64_t b = g * group;
    if (end - b == 4)
      return linear_rows<T, 4, 2, false>(rows, x, k, parts, w + b * size, 0, b, nullptr, put);
    if (end - b == 2)
      return linear_rows<T, 2, 3, false>(rows, x, k, parts, w + b * size, 0, b, nullptr, put);
    for (; b < end; b++)
      linear_rows<T, 1, kTile, false>(rows, x, k, parts, w + b * size, 0, b, nullptr, put);
  });
}

// out = x / rms(x) * weight over n elements, read through `at`; the last of them may be padding,
// zeros: `count` are numbers.
template <class T, class At>
void normalize(const At& at, const float* weight, int64_t n, int64_t count, float epsilon,
               typename T::E* out) {
  F squares = {};
  for (int64_t i = 0; i < n; i += kLanes) {
    F v = at(i);
    squares = fma(v, v, squares);
  }
  const F scale = splat(1.0f / __builtin_sqrtf(sum(squares) / (float)count + epsilon));
  for (int64_t i = 0; i < n; i += kLanes) T::narrow(out + i, at(i) * scale * load(weight + i));
}

}  // namespace shunt
