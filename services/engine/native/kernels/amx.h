// The matrix unit (AMX): sixteen rows by sixteen outputs to a tile. Packed weights, keys and values
// lie as it wants them.
//
// The unit adds each row's products in one fixed order, whatever other rows its tile holds, so the
// invariant of vectors.h stands. Its arithmetic is its own: every number of rows goes through it,
// one row too.

#pragma once

#if defined(__AMX_BF16__)
#include "vectors.h"

namespace shunt::amx {

constexpr int64_t kRows = 16;    // rows of a tile
constexpr int64_t kDepth = 32;   // elements that one instruction sums over
constexpr int64_t kChunk = 256;  // rows that pass a weight before the next rows do
constexpr int64_t kTileBytes = 64;
constexpr int64_t kAheadBytes = 4096;

struct alignas(64) Config {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0 to 3 sum, 4 and 5 hold rows of x (`upper` and `lower` of them), 6 and 7 weights.
inline void configure(int64_t upper, int64_t lower, bool wide) {
  Config c;
  const int64_t rows[8] = {upper, upper, wide ? upper : lower, wide ? upper : lower,
                           upper, lower, kRows, kRows};
  for (int i = 0; i < 8; i++) {
    if (!rows[i]) continue;
    c.rows[i] = (uint8_t)rows[i];
    c.row_bytes[i] = kTileBytes;
  }
  _tile_loadconfig(&c);
}

constexpr int64_t kBlockSums = 2 * kRows * kColumns;  // of one part, on the stack

// The parts, added in pairs.
inline F added(const float* sums, int64_t parts) {
  const F a = load(sums);
  if (parts == 1) return a;
  const F pair = a + load(sums + kBlockSums);
  if (parts == 2) return pair;
  return pair + (load(sums + 2 * kBlockSums) + load(sums + 3 * kBlockSums));
}

// The sums of one column block for `count` rows, from registers by way of the stack.
template <class Store>
void put_rows(const float* sums, int64_t parts, int64_t count, int64_t row, int64_t block,
              const Store& put) {
  for (int64_t m = 0; m < count; m++)
    put(row + m, block, added(sums + m * kColumns, parts),
        added(sums + m * kColumns + kLanes, parts));
}

// Tile loads are too sparse for the processor to see a stream in them.
inline void fetch_ahead(const uint16_t* p) {
  const char* ahead = (const char*)p + kAheadBytes;
  for (int64_t i = 0; i < kDepth * kColumns * 2; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T0);
}

// Up to 32 rows of x times one column block.
template <class Store>
void tall(const uint16_t* x, int64_t k, int64_t parts, const uint16_t* w, int64_t upper,
          int64_t lower, int64_t row, int64_t block, bool unread, const Store& put) {
  const int64_t stride = k * 2, width = kColumns * 4;
  alignas(64) float sums[kParts * kBlockSums];
  for (int64_t part = 0; part < parts; part++) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t s = part * (k / parts); s < (part + 1) * (k / parts); s += kDepth) {
      const uint16_t* p = w + s * kColumns;
      if (unread) fetch_ahead(p);
      _tile_loadd(6, p, width);
      _tile_loadd(4, x + s, stride);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, p + kColumns, width);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, x + kRows * k + s, stride);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    float* out = sums + part * kBlockSums;
    _tile_stored(0, out, width);
    _tile_stored(1, out + kLanes, width);
    _tile_stored(2, out + kRows * kColumns, width);
    _tile_stored(3, out + kRows * kColumns + kLanes, width);
  }
  put_rows(sums, parts, upper + lower, row, block, put);
}

// Up to 16 rows of x times two column blocks, or one: few rows wait for weights.
template <class Store>
void wide(const uint16_t* x, int64_t k, int64_t parts, const uint16_t* w, int64_t blocks,
          int64_t rows, int64_t row, int64_t block, const Store& put) {
  const int64_t stride = k * 2, width = kColumns * 4;
  const uint16_t* next = w + (blocks > 1 ? k * kColumns : 0);
  alignas(64) float sums[kParts * kBlockSums];
  for (int64_t part = 0; part < parts; part++) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t s = part * (k / parts); s < (part + 1) * (k / parts); s += kDepth) {
      const uint16_t *p = w + s * kColumns, *q = next + s * kColumns;
      fetch_ahead(p);
      if (blocks > 1) fetch_ahead(q);
      _tile_loadd(4, x + s, stride);
      _tile_loadd(6, p, width);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, p + kColumns, width);
      _tile_dpbf16ps(1, 4, 7);
      if (blocks == 1) continue;
      _tile_loadd(6, q, width);
      _tile_dpbf16ps(2, 4, 6);
      _tile_loadd(7, q + kColumns, width);
      _tile_dpbf16ps(3, 4, 7);
    }
    float* out = sums + part * kBlockSums;
    _tile_stored(0, out, width);
    _tile_stored(1, out + kLanes, width);
    if (blocks == 1) continue;
    _tile_stored(2, out + kRows * kColumns, width);
    _tile_stored(3, out + kRows * kColumns + kLanes, width);
  }
  put_rows(sums, parts, rows, row, block, put);
  if (blocks > 1) put_rows(sums + kRows * kColumns, parts, rows, row, block + 1, put);
}

// x [rows, k] times w; each part of k is a multiple of kDepth.
template <class Store>
void linear(const uint16_t* x, int64_t rows, int64_t k, int64_t parts, const uint16_t* w,
            int64_t columns, int threads, const Store& put) {
  const int64_t blocks = (columns + kColumns - 1) / kColumns;
  for (int64_t first = 0; first < rows; first += kChunk) {
    const int64_t last = std::min(rows, first + kChunk), count = last - first;
    if (count <= kRows) {
      parallel((blocks + 1) / 2, threads, [&](int64_t g) {
        configure(count, 0, true);
        wide(x + first * k, k, parts, w + 2 * g * k * kColumns, std::min<int64_t>(2, blocks - 2 * g),
             count, first, 2 * g, put);
      });
      continue;
    }
    parallel(blocks, threads, [&](int64_t b) {
      int64_t upper = 0, lower = 0;
      for (int64_t r = first; r < last; r += 2 * kRows) {
        const int64_t above = std::min(kRows, last - r), below = std::min(kRows, last - r - above);
        if (above != upper || below != lower) configure(upper = above, lower = below, below == 0);
        if (below)
          tall(x + r * k, k, parts, w + b * k * kColumns, above, below, r, b, r == first, put);
        else
          wide(x + r * k, k, parts, w + b * k * kColumns, 1, above, r, b, put);
      }
    });
  }
  _tile_release();
}

// scores[m][16 blocks] = q[m] . keys, for `count` vectors q [count, d], d a multiple of kDepth.
inline void score(const uint16_t* q, int64_t count, const uint16_t* keys, const int32_t* table,
                  int64_t page, int64_t blocks, int64_t d, float* scores, int64_t stride) {
  const int64_t upper = std::min(kRows, count), lower = count - upper;
  const uint16_t* below = q + kRows * d;
  configure(upper, lower, lower == 0);
  for (int64_t b = 0; b < blocks; b += 2) {
    const bool two = b + 1 < blocks;
    const uint16_t *first = keys + table[b] * page, *second = keys + table[b + two] * page;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t i = 0; i < d; i += kDepth) {
      _tile_loadd(4, q + i, d * 2);
      _tile_loadd(6, first + i * kBlock, kTileBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, second + i * kBlock, kTileBytes);
      _tile_dpbf16ps(1, 4, 7);
      if (!lower) continue;
      _tile_loadd(5, below + i, d * 2);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    float* out = scores + b * kBlock;
    _tile_stored(0, out, stride * 4);
    if (two) _tile_stored(1, out + kBlock, stride * 4);
    if (!lower) continue;
    _tile_stored(2, out + kRows * stride, stride * 4);
    if (two) _tile_stored(3, out + kRows * stride + kBlock, stride * 4);
  }
  _tile_release();
}

// sums[m][64] = weights[m] . values from `column` on, for up to 16 rows of weights [count, stride]
// and `width` (1 to 4) times 16 columns.
inline void mix(const uint16_t* weights, int64_t stride, int64_t count, const uint16_t* values,
                const int32_t* table, int64_t page, int64_t blocks, int64_t d, int64_t column,
                int64_t width, float* sums) {
  Config c;
  for (int i = 0; i < 5; i++) {
    c.rows[i] = (uint8_t)count;
    c.row_bytes[i] = i < 4 ? kTileBytes : kBlock * 2;
  }
  c.rows[6] = c.rows[7] = kBlock / 2;
  c.row_bytes[6] = c.row_bytes[7] = kTileBytes;
  _tile_loadconfig(&c);
  for (int64_t b = 0; b < blocks; b++) {
    const uint16_t* p = values + table[b] * page + column * 2;
    _tile_loadd(4, weights + b * kBlock, stride * 2);
    _tile_loadd(6, p, d * 4);
    _tile_dpbf16ps(0, 4, 6);
    if (width == 1) continue;
    _tile_loadd(7, p + 2 * kLanes, d * 4);
    _tile_dpbf16ps(1, 4, 7);
    if (width == 2) continue;
    _tile_loadd(6, p + 4 * kLanes, d * 4);
    _tile_dpbf16ps(2, 4, 6);
    if (width == 3) continue;
    _tile_loadd(7, p + 6 * kLanes, d * 4);
    _tile_dpbf16ps(3, 4, 7);
  }
  const int64_t bytes = 4 * kLanes * 4;
  _tile_stored(0, sums, bytes);
  _tile_stored(1, sums + kLanes, bytes);
  _tile_stored(2, sums + 2 * kLanes, bytes);
  _tile_stored(3, sums + 3 * kLanes, bytes);
  _tile_release();
}

}  // namespace shunt::amx
#endif
