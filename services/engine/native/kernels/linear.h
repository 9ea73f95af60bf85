// Linears over packed weights, and RMSNorm.
//
// A weight [N, K] lies as [N / 32][K / S][32][S], S = 4 / sizeof(element); gate and up are
// interleaved 16 by 16. Every output is one sum over K, step by step.

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

template <class T>
struct StoreSwiGlu {
  typename T::E* out;
  int64_t stride;
  const float* bias;
  void operator()(int64_t row, int64_t block, F gate, F up) const {
    if (bias) {
      gate += load(bias + block * kColumns);
      up += load(bias + block * kColumns + kLanes);
    }
    F e = exponential(-select(gate < splat(-80.0f), splat(-80.0f), gate));
    T::narrow(out + row * stride + block * kLanes, gate / (e + 1.0f) * up);
  }
};

template <class T, int M, int B, class Store>
void linear_tile(const typename T::E* x, int64_t k, const typename T::E* w, int64_t row,
                 int64_t block, const Store& put) {
  F acc[M][2 * B] = {};
  const int64_t steps = k / T::kStep, stride = k * kColumns;
  for (int64_t s = 0; s < steps; s++) {
    I weight[2 * B];
#pragma GCC unroll 8
    for (int b = 0; b < B; b++) {
      const typename T::E* p = w + b * stride + s * kColumns * T::kStep;
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
  for (int m = 0; m < M; m++)
    for (int b = 0; b < B; b++) put(row + m, block + b, acc[m][2 * b], acc[m][2 * b + 1]);
}

// The tile of m rows, m known to the compiler.
template <class T, int B, int M = kTile, class Store>
void linear_rows(int64_t m, const typename T::E* x, int64_t k, const typename T::E* w, int64_t row,
                 int64_t block, const Store& put) {
  if (m == M) return linear_tile<T, M, B>(x, k, w, row, block, put);
  if constexpr (M > 1) linear_rows<T, B, M - 1>(m, x, k, w, row, block, put);
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

// x [rows, k] times w, column block by column block; few rows read several blocks at once.
template <class T, class Store>
void linear(const typename T::E* x, int64_t rows, int64_t k, const typename T::E* w,
            int64_t columns, int threads, const Store& put) {
#if defined(__AMX_BF16__)
  if constexpr (std::is_same_v<T, Bf16>)
    if (on_tiles<T>(k)) return amx::linear(x, rows, k, w, columns, threads, put);
#endif
  const int64_t blocks = (columns + kColumns - 1) / kColumns;
  const int64_t group = rows <= 2 ? 4 : rows <= 3 ? 2 : 1;
  for (int64_t first = 0; first < rows; first += kChunk) {
    const int64_t chunk = std::min(kChunk, rows - first);
    const int64_t tiles = (chunk + kTile - 1) / kTile, height = (chunk + tiles - 1) / tiles;
    parallel((blocks + group - 1) / group, threads, [&](int64_t g) {
      const int64_t end = std::min(blocks, (g + 1) * group);
      for (int64_t r = first; r < first + chunk; r += height) {
        const int64_t m = std::min(height, first + chunk - r);
        int64_t b = g * group;
        const auto* weight = w + b * k * kColumns;
        if (end - b == 4) return linear_rows<T, 4, 2>(m, x + r * k, k, weight, r, b, put);
        if (end - b == 2) return linear_rows<T, 2, 3>(m, x + r * k, k, weight, r, b, put);
        for (; b < end; b++)
          linear_rows<T, 1>(m, x + r * k, k, w + b * k * kColumns, r, b, put);
      }
    });
  }
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
