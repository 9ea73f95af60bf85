// Sixteen lanes of fp32, and the two element types that stages compute in.
//
// Invariant: the result of a row depends on nothing but its own inputs and its own context. Rows
// share loads, never sums: every sum runs in one fixed order, whatever the number of rows, the
// cut of a sequence or the number of threads. Multiply-adds are spelled out and contraction is
// off, so the compiler has no choice that could change a bit.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace shunt {

constexpr int64_t kLanes = 16;
constexpr int64_t kBlock = 16;    // positions in a KV block
constexpr int64_t kColumns = 32;  // outputs in a column block of a packed weight
constexpr int64_t kChunk = 96;    // rows that pass a weight before the next rows do
constexpr int64_t kParts = 4;     // most parts of a sum: 1, 2 or 4
constexpr int64_t kLine = 64;     // bytes of a cache line
constexpr int64_t kNear = 1 << 19;  // bytes that a core keeps near it while rows pass them
#if defined(__AVX512F__)
constexpr int64_t kTile = 12;     // most rows that share the load of a weight
constexpr int64_t kPairRows = 6;  // the same of two column blocks at once
constexpr int64_t kQueries = 12;  // most (row, head) pairs that share the load of a key
constexpr int64_t kFourRows = 6;  // the same of keys of four KV blocks at once
constexpr int64_t kMixed = 6;     // most of them that share the load of a value
#else  // half as many registers, each half as wide
constexpr int64_t kTile = 3;
constexpr int64_t kPairRows = 0;
constexpr int64_t kQueries = 4;
constexpr int64_t kFourRows = 1;
constexpr int64_t kMixed = 2;
#endif

constexpr int64_t kSoftened = 4;  // rows of scores whose exponentials are taken at once
constexpr int64_t kTiledQueries = 32;  // the same on the matrix unit, for keys
constexpr int64_t kMixedAtOnce = 16;   // and for values

typedef float F __attribute__((vector_size(64), aligned(4)));
typedef int32_t I __attribute__((vector_size(64), aligned(4)));
typedef uint16_t H __attribute__((vector_size(32), aligned(2)));

inline F splat(float x) { return F{} + x; }
inline F load(const float* p) { F v; std::memcpy(&v, p, 64); return v; }
inline void store(float* p, F v) { std::memcpy(p, &v, 64); }

inline I lanes() { return I{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }

inline F fma(F a, F b, F c) {
#if defined(__AVX512F__)
  return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
  F r;
  for (int i = 0; i < kLanes; i++) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return r;
#endif
}

inline F select(I mask, F a, F b) {
#if defined(__AVX512F__)
  return mask ? a : b;
#else
  return (F)((mask & (I)a) | (~mask & (I)b));
#endif
}
inline F larger(F a, F b) { return select(a > b, a, b); }

inline float sum(F v) {
  float x[kLanes];
  std::memcpy(x, &v, 64);
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; i++) x[i] += x[i + width];
  return x[0];
}

inline float maximum(F v) {
  float m = v[0];
  for (int i = 1; i < kLanes; i++) m = v[i] > m ? v[i] : m;
  return m;
}

// e^x for x <= 88, 0 below -87: Cephes' expf on sixteen lanes.
inline F exponential(F x) {
  const F shift = splat(12582912.0f);
  F clamped = larger(x, splat(-87.0f));
  F n = (fma(clamped, splat(1.44269504088896341f), shift)) - shift;
  F r = fma(n, splat(-0.693359375f), clamped);
  r = fma(n, splat(2.12194440e-4f), r);
  F p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r) + 1.0f;
  I exponent = (__builtin_convertvector(n, I) + 127) << 23;
  return select(x < splat(-87.0f), F{}, p * (F)exponent);
}

// cap * tanh(x / cap)
inline F capped(F x, F cap) {
  const F limit = splat(40.0f);
  F y = x / cap;
  y = select(y > limit, limit, select(y < -limit, -limit, y));
  return cap - (cap + cap) / (exponential(y + y) + 1.0f);
}

// bfloat16: two elements to a step; a step multiplies pairs and adds both products.
struct Bf16 {
  using E = uint16_t;
  static constexpr int64_t kStep = 2;
  static F widen(const E* p) {
    H h;
    std::memcpy(&h, p, 32);
    return (F)(__builtin_convertvector(h, I) << 16);
  }
  static void narrow(E* p, F v) {
#if defined(__AVX512BF16__)
    auto h = _mm512_cvtneps_pbh((__m512)v);
    std::memcpy(p, &h, 32);
#else
    I bits = (I)v;
    bits += ((bits >> 16) & 1) + 0x7fff;
    H h = __builtin_convertvector((bits >> 16) & 0xffff, H);
    std::memcpy(p, &h, 32);
#endif
  }
  static F dot(F acc, I a, I b) {
#if defined(__AVX512BF16__)
    return (F)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#else
    const I high = I{} + (int32_t)0xffff0000;
    acc = fma((F)(a << 16), (F)(b << 16), acc);
    return fma((F)(a & high), (F)(b & high), acc);
#endif
  }
};

struct Fp32 {
  using E = float;
  static constexpr int64_t kStep = 1;
  static F widen(const E* p) { return load(p); }
  static void narrow(E* p, F v) { store(p, v); }
  static F dot(F acc, I a, I b) { return fma((F)a, (F)b, acc); }
};

inline I load_step(const void* p) { I v; std::memcpy(&v, p, 64); return v; }
inline I splat_step(const void* p) { int32_t x; std::memcpy(&x, p, 4); return I{} + x; }

template <class Work>
void parallel(int64_t count, int threads, const Work& work) {
  if (threads <= 1 || count <= 1) {
    for (int64_t i = 0; i < count; i++) work(i);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < count; i++) work(i);
}

}  // namespace shunt
