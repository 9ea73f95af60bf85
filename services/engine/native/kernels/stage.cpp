// The layers of one stage, and the C functions that Python calls through ctypes.

#include "attention.h"

namespace shunt {
namespace {

int64_t padded(int64_t n) { return (n + kColumns - 1) / kColumns * kColumns; }

template <class T>
struct Stage {
  using E = typename T::E;
  Shape shape;
  std::vector<LayerOf<E>> layers;

  // residual += update (both may be absent), then out = norm(residual)
  void add_and_normalize(E* residual, const float* update, int64_t stride, const float* weight,
                         E* out, int64_t rows, int threads) const {
    const int64_t n = shape.hidden;
    parallel(rows, threads, [&](int64_t r) {
      E* x = residual + r * n;
      if (update)
        for (int64_t i = 0; i < n; i += kLanes)
          T::narrow(x + i, T::widen(x + i) + load(update + r * stride + i));
      if (weight)
        normalize<T>([&](int64_t i) { return T::widen(x + i); }, weight, n,
                     shape.hidden_numbers, shape.epsilon, out + r * n);
    });
  }

  void forward(E* residual, int64_t rows, const std::vector<Sequence>& sequences,
               int threads) const {
    const Shape& s = shape;
    const int64_t d = s.head_dim, attention = s.heads * d;
    const int64_t qkv_size = padded(attention + 2 * s.kv_heads * d), out_size = padded(s.hidden);
    std::vector<E> normed(rows * s.hidden), queries(rows * attention), mixed(rows * attention),
        activated(rows * s.intermediate);
    std::vector<float> qkv(rows * qkv_size), update(rows * out_size);
    const int64_t group = s.heads / s.kv_heads;
    const int64_t most = queries_at_once<T>(d);
    const int64_t tile_heads = std::min(group, most), tile_rows = most / tile_heads;
    struct Tile { int64_t sequence, row, rows; };
    std::vector<Tile> tiles;
    for (size_t i = 0; i < sequences.size(); i++)
      for (int64_t r = 0; r < sequences[i].count; r += tile_rows)
        tiles.push_back({(int64_t)i, r, std::min(tile_rows, sequences[i].count - r)});
    const float* pending = nullptr;
    for (const auto& layer : layers) {
      add_and_normalize(residual, pending, out_size, layer.input_norm, normed.data(), rows, threads);
      linear<T>(normed.data(), rows, s.hidden, layer.qkv, qkv_size, threads,
                StoreRaw{qkv.data(), qkv_size, layer.qkv_bias});
      parallel((int64_t)sequences.size() * s.kv_heads, threads, [&](int64_t i) {
        write_keys_and_values<T>(layer, s, sequences[i / s.kv_heads], qkv.data(), qkv_size,
                                 i % s.kv_heads);
      });
      parallel((int64_t)sequences.size(), threads, [&](int64_t i) {
        const Sequence& q = sequences[i];
        for (int64_t r = 0; r < q.count; r++)
          for (int64_t h = 0; h < s.heads; h++) {
            float* v = qkv.data() + (q.first + r) * qkv_size + h * d;
            rotate<T>(v, layer.q_norm, s, q.start + r);
            for (int64_t c = 0; c < d; c += kLanes)
              T::narrow(queries.data() + ((q.first + r) * s.heads + h) * d + c, load(v + c));
          }
      });
      parallel((int64_t)tiles.size() * s.kv_heads, threads, [&](int64_t i) {
        const Tile& tile = tiles[i / s.kv_heads];
        const int64_t kv_head = i % s.kv_heads;
        for (int64_t h = 0; h < group; h += tile_heads)
          attend<T>(layer, s, sequences[tile.sequence], queries.data(), mixed.data(), kv_head,
                    tile.row, tile.rows, kv_head * group + h, std::min(tile_heads, group - h));
      });
      linear<T>(mixed.data(), rows, attention, layer.output, s.hidden, threads,
                StoreRaw{update.data(), out_size, layer.output_bias});
      add_and_normalize(residual, update.data(), out_size, layer.post_norm, normed.data(), rows,
                        threads);
      linear<T>(normed.data(), rows, s.hidden, layer.gate_up, 2 * s.intermediate, threads,
                StoreSwiGlu<T>{activated.data(), s.intermediate, layer.gate_up_bias});
      linear<T>(activated.data(), rows, s.intermediate, layer.down, s.hidden, threads,
                StoreRaw{update.data(), out_size, layer.down_bias});
      pending = update.data();
    }
    add_and_normalize(residual, pending, out_size, nullptr, nullptr, rows, threads);
  }

  // logits [rows, padded(vocabulary)], fp32 as summed
  void head(const E* hidden, int64_t rows, const float* norm, const E* weight, int64_t vocabulary,
            float* logits, int threads) const {
    std::vector<E> normed(rows * shape.hidden);
    add_and_normalize(const_cast<E*>(hidden), nullptr, 0, norm, normed.data(), rows, threads);
    linear<T>(normed.data(), rows, shape.hidden, weight, vocabulary, threads,
              StoreRaw{logits, padded(vocabulary), nullptr});
  }
};

}  // namespace
}  // namespace shunt

using shunt::Bf16;
using shunt::Fp32;

namespace {

struct Handle {
  bool bf16;
  shunt::Stage<Bf16> narrow;
  shunt::Stage<Fp32> wide;
};

template <class T>
void add_layer(shunt::Stage<T>& stage, void* const* p, int64_t window) {
  using E = typename T::E;
  stage.layers.push_back({(const float*)p[0], (const float*)p[1], (const float*)p[2],
                          (const float*)p[3], (const E*)p[4], (const E*)p[5], (const E*)p[6],
                          (const E*)p[7], (E*)p[8], (E*)p[9], (const float*)p[10],
                          (const float*)p[11], (const float*)p[12], (const float*)p[13], window});
}

}  // namespace

extern "C" {

// shape: hidden, heads, kv_heads, head_dim, intermediate, padded to whole lanes; hidden and head_dim
// without the padding
void* shunt_stage_new(int bf16, const int64_t* shape, float epsilon, float scale,
                      const float* rope) {
  const shunt::Shape s{shape[0], shape[1], shape[2], shape[3],  shape[4],
                       shape[5], shape[6], epsilon,  scale,     rope};
  return new Handle{bf16 != 0, {s, {}}, {s, {}}};
}

void shunt_stage_free(void* handle) { delete (Handle*)handle; }

// pointers: input_norm, post_norm, q_norm, k_norm, qkv, output, gate_up, down, keys, values, and the
// biases of qkv, output, gate_up, down
void shunt_stage_add_layer(void* handle, void* const* pointers, int64_t window) {
  auto* h = (Handle*)handle;
  h->bf16 ? add_layer(h->narrow, pointers, window) : add_layer(h->wide, pointers, window);
}

// sequences: four numbers each: first row, rows, position of the first row, offset in tables
void shunt_stage_forward(void* handle, void* hidden, int64_t rows, const int64_t* sequences,
                         int64_t sequence_count, const int32_t* tables, int threads) {
  auto* h = (Handle*)handle;
  std::vector<shunt::Sequence> list;
  for (int64_t i = 0; i < sequence_count; i++) {
    const int64_t* q = sequences + 4 * i;
    list.push_back({q[0], q[1], q[2], tables + q[3]});
  }
  h->bf16 ? h->narrow.forward((uint16_t*)hidden, rows, list, threads)
          : h->wide.forward((float*)hidden, rows, list, threads);
}

// logits: [rows, vocabulary rounded up to 32]
void shunt_stage_head(void* handle, const void* hidden, int64_t rows, const float* norm,
                      const void* weight, int64_t vocabulary, float* logits, int threads) {
  auto* h = (Handle*)handle;
  h->bf16 ? h->narrow.head((const uint16_t*)hidden, rows, norm, (const uint16_t*)weight,
                           vocabulary, logits, threads)
          : h->wide.head((const float*)hidden, rows, norm, (const float*)weight, vocabulary,
                         logits, threads);
}

}  // extern "C"
