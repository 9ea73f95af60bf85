// The layers of one stage, and the C functions that Python calls through ctypes.

#include "attention.h"
#include "ranks.h"

namespace shunt {
namespace {

int64_t padded(int64_t n) { return (n + kColumns - 1) / kColumns * kColumns; }

// The asked rows of sequences whose rows lie in order, as if there were no others: runs of them are
// sequences.
std::vector<Sequence> only(const std::vector<Sequence>& sequences,
                           const std::vector<int64_t>& asked) {
  std::vector<Sequence> found;
  size_t next = 0;
  for (const Sequence& q : sequences)
    while (next < asked.size() && asked[next] < q.first + q.count) {
      const size_t first = next++;
      while (next < asked.size() && asked[next] < q.first + q.count &&
             asked[next] == asked[next - 1] + 1)
        next++;
      found.push_back({(int64_t)first, (int64_t)(next - first), q.start + asked[first] - q.first,
                       q.table});
    }
  return found;
}

template <class T>
struct Stage {
  using E = typename T::E;
  Shape shape;
  Ranks* ranks;  // null where the stage is whole
  std::vector<LayerOf<E>> layers;

  // residual += norm(update), unscaled and as it is unless the model says otherwise, then
  // out = norm(residual); every part but the residual may be absent
  void add_and_normalize(E* residual, float* update, int64_t stride, const float* update_norm,
                         const float* weight, E* out, int64_t rows, int threads) const {
    const int64_t n = shape.hidden, count = shape.hidden_numbers;
    const F scale = splat(shape.residual_scale);
    parallel(rows, threads, [&](int64_t r) {
      E* x = residual + r * n;
      float* added = update + r * stride;
      if (update && update_norm)
        normalize<Fp32>([&](int64_t i) { return load(added + i); }, update_norm, n, count,
                        shape.epsilon, added);
      if (update)
        for (int64_t i = 0; i < n; i += kLanes)
          T::narrow(x + i, fma(load(added + i), scale, T::widen(x + i)));
      if (out && weight)
        normalize<T>([&](int64_t i) { return T::widen(x + i); }, weight, n, count, shape.epsilon,
                     out + r * n);
      else if (out)
        std::memcpy(out + r * n, x, n * sizeof(E));
    });
  }

  // Heads [rows, stride] from v on, each row's normed all together.
  void normalize_heads(float* v, int64_t heads, const float* norm, int64_t stride, int64_t rows,
                       int threads) const {
    parallel(rows, threads, [&](int64_t r) {
      float* row = v + r * stride;
      normalize<Fp32>([&](int64_t i) { return load(row + i); }, norm, heads * shape.head_dim,
                      heads * shape.head_numbers, shape.epsilon, row);
    });
  }

  // x [rows, k] times w: with those of the other ranks, where this one has a slice of K.
  void sum_up(const E* x, int64_t rows, int64_t k, const E* w, const float* bias, float* out,
              int threads) const {
    const int64_t stride = padded(shape.hidden);
    if (!ranks) {
      linear<T>(x, rows, k, shape.parts, w, shape.hidden, threads, StoreRaw{out, stride, bias});
      return;
    }
    const int64_t area = ranks->area_bytes / (int64_t)sizeof(float), most = area / stride;
    for (int64_t first = 0; first < rows; first += most) {
      const int64_t count = std::min(most, rows - first);
      linear<T>(x + first * k, count, k, shape.parts, w, shape.hidden, threads,
                StoreRaw{(float*)ranks->own(), stride, nullptr});
      const float* sums = (const float*)ranks->meet();
      parallel(count, threads, [&](int64_t r) {
        for (int64_t i = 0; i < stride; i += kLanes) {
          const float* p = sums + r * stride + i;
          F sum = load(p) + load(p + area);
          if (ranks->size == 4) sum += load(p + 2 * area) + load(p + 3 * area);
          if (bias) sum += load(bias + i);
          store(out + (first + r) * stride + i, sum);
        }
      });
    }
  }

  // Queries [rows, qkv stride] of qkv, normed and rotated, to [rows, heads, head_dim].
  void turn_queries(const LayerOf<E>& layer, const std::vector<Sequence>& sequences, float* qkv,
                    int64_t stride, E* queries, int threads) const {
    const int64_t d = shape.head_dim;
    parallel((int64_t)sequences.size(), threads, [&](int64_t i) {
      const Sequence& q = sequences[i];
      for (int64_t r = 0; r < q.count; r++)
        for (int64_t h = 0; h < shape.heads; h++) {
          float* v = qkv + (q.first + r) * stride + h * d;
          rotate<T>(v, layer.q_norm, layer.rope, shape, q.start + r);
          for (int64_t c = 0; c < d; c += kLanes)
            T::narrow(queries + ((q.first + r) * shape.heads + h) * d + c, load(v + c));
        }
    });
  }

  void attend_all(const LayerOf<E>& layer, const std::vector<Sequence>& sequences,
                  const E* queries, E* mixed, int threads) const {
    const int64_t group = shape.heads / shape.kv_heads;
    const int64_t most = queries_at_once<T>(shape.head_dim);
    const int64_t tile_heads = std::min(group, most), tile_rows = most / tile_heads;
    struct Tile { int64_t sequence, row, rows; };
    std::vector<Tile> tiles;
    for (size_t i = 0; i < sequences.size(); i++)
      for (int64_t r = 0; r < sequences[i].count; r += tile_rows)
        tiles.push_back({(int64_t)i, r, std::min(tile_rows, sequences[i].count - r)});
    parallel((int64_t)tiles.size() * shape.kv_heads, threads, [&](int64_t i) {
      const Tile& tile = tiles[i / shape.kv_heads];
      const int64_t kv_head = i % shape.kv_heads;
      for (int64_t h = 0; h < group; h += tile_heads)
        attend<T>(layer, shape, sequences[tile.sequence], queries, mixed, kv_head, tile.row,
                  tile.rows, kv_head * group + h, std::min(tile_heads, group - h));
    });
  }

  // Rows [rows, hidden] through the layers, in place. Of the last layer the `asked` rows alone come
  // out, in front, where there are fewer of them: the others leave keys and values there.
  void forward(E* residual, int64_t rows, std::vector<Sequence> sequences,
               const std::vector<int64_t>& asked, int threads) const {
    const Shape& s = shape;
    const int64_t d = s.head_dim, attention = s.heads * d;
    const int64_t qkv_size = padded(attention + 2 * s.kv_heads * d), out_size = padded(s.hidden);
    std::vector<E> normed(rows * s.hidden), queries(rows * attention), mixed(rows * attention),
        activated(rows * s.intermediate);
    std::vector<float> qkv(rows * qkv_size), update(rows * out_size);
    float* pending = nullptr;
    const float* pending_norm = nullptr;
    auto project = [&](const LayerOf<E>& layer, int64_t from, int64_t to) {
      linear<T>(normed.data(), rows, s.hidden, 1, layer.qkv + from * s.hidden, to - from, threads,
                StoreRaw{qkv.data() + from, qkv_size, layer.qkv_bias ? layer.qkv_bias + from : nullptr});
    };
    for (const auto& layer : layers) {
      const bool narrows = &layer == &layers.back() && (int64_t)asked.size() < rows;
      add_and_normalize(residual, pending, out_size, pending_norm, layer.input_norm, normed.data(),
                        rows, threads);
      project(layer, narrows ? attention / kColumns * kColumns : 0, qkv_size);
      if (s.whole_norms)
        normalize_heads(qkv.data() + attention, s.kv_heads, layer.k_norm, qkv_size, rows, threads);
      parallel((int64_t)sequences.size() * s.kv_heads, threads, [&](int64_t i) {
        write_keys_and_values<T>(layer, s, sequences[i / s.kv_heads], qkv.data(), qkv_size,
                                 i % s.kv_heads);
      });
      if (narrows) {
        sequences = only(sequences, asked);
        rows = (int64_t)asked.size();
        if (!rows) return;
        for (int64_t r = 0; r < rows; r++)
          for (E* x : {residual, normed.data()})
            std::memmove(x + r * s.hidden, x + asked[r] * s.hidden, s.hidden * sizeof(E));
        project(layer, 0, padded(attention));
      }
      if (s.whole_norms)
        normalize_heads(qkv.data(), s.heads, layer.q_norm, qkv_size, rows, threads);
      turn_queries(layer, sequences, qkv.data(), qkv_size, queries.data(), threads);
      attend_all(layer, sequences, queries.data(), mixed.data(), threads);
      sum_up(mixed.data(), rows, attention, layer.output, layer.output_bias, update.data(),
             threads);
      add_and_normalize(residual, update.data(), out_size, layer.attention_post_norm,
                        layer.mlp_norm, normed.data(), rows, threads);
      linear<T>(normed.data(), rows, s.hidden, 1, layer.gate_up, 2 * s.intermediate, threads,
                StoreGated<T>{activated.data(), s.intermediate, layer.gate_up_bias, s.gelu});
      sum_up(activated.data(), rows, s.intermediate, layer.down, layer.down_bias, update.data(),
             threads);
      pending = update.data();
      pending_norm = layer.mlp_post_norm;
    }
    add_and_normalize(residual, pending, out_size, pending_norm, nullptr, nullptr, rows, threads);
  }

  // logits [rows, padded(vocabulary)], fp32
  void head(const E* hidden, int64_t rows, const float* norm, const E* weight, int64_t vocabulary,
            float divisor, float cap, float* logits, int threads) const {
    std::vector<E> normed(rows * shape.hidden);
    add_and_normalize(const_cast<E*>(hidden), nullptr, 0, nullptr, norm, normed.data(), rows,
                      threads);
    linear<T>(normed.data(), rows, shape.hidden, 1, weight, vocabulary, threads,
              StoreLogits{logits, padded(vocabulary), divisor, cap});
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
                          (const float*)p[3], (const float*)p[4], (const float*)p[5],
                          (const float*)p[6], (const E*)p[7], (const E*)p[8], (const E*)p[9],
                          (const E*)p[10], (E*)p[11], (E*)p[12], (const float*)p[13],
                          (const float*)p[14], (const float*)p[15], (const float*)p[16], window});
}

}  // namespace

extern "C" {

// shape: hidden, heads, kv_heads, head_dim, intermediate, padded to whole lanes; hidden and head_dim
// without the padding; parts; whether the gate is GELU, and whether q_norm and k_norm are of all
// heads. numbers: epsilon, scale and cap of scores, scale of what is added to the residual. ranks:
// null, or of shunt_ranks_new: then shape and weights are those of this rank's slice.
void* shunt_stage_new(int bf16, const int64_t* shape, const float* numbers, void* ranks) {
  const shunt::Shape s{shape[0],   shape[1],   shape[2],   shape[3],      shape[4],
                       shape[5],   shape[6],   shape[7],   numbers[0],    numbers[1],
                       numbers[2], numbers[3], shape[8] != 0, shape[9] != 0};
  auto* met = (shunt::Ranks*)ranks;
  return new Handle{bf16 != 0, {s, met, {}}, {s, met, {}}};
}

void shunt_stage_free(void* handle) { delete (Handle*)handle; }

// pointers: input_norm, mlp_norm, attention_post_norm, mlp_post_norm, q_norm, k_norm, rope, qkv,
// output, gate_up, down, keys, values, and the biases of qkv, output, gate_up, down
void shunt_stage_add_layer(void* handle, void* const* pointers, int64_t window) {
  auto* h = (Handle*)handle;
  h->bf16 ? add_layer(h->narrow, pointers, window) : add_layer(h->wide, pointers, window);
}

// sequences, in the order of their rows: four numbers each: first row, rows, position of the first
// row, offset in tables. asked: the rows to compute to the end, in order; the results of these alone
// are in front then.
void shunt_stage_forward(void* handle, void* hidden, int64_t rows, const int64_t* sequences,
                         int64_t sequence_count, const int32_t* tables, const int64_t* asked,
                         int64_t asked_count, int threads) {
  auto* h = (Handle*)handle;
  std::vector<shunt::Sequence> list;
  for (int64_t i = 0; i < sequence_count; i++) {
    const int64_t* q = sequences + 4 * i;
    list.push_back({q[0], q[1], q[2], tables + q[3]});
  }
  const std::vector<int64_t> kept(asked, asked + asked_count);
  h->bf16 ? h->narrow.forward((uint16_t*)hidden, rows, list, kept, threads)
          : h->wide.forward((float*)hidden, rows, list, kept, threads);
}

// logits: [rows, vocabulary rounded up to 32], divided, then capped unless cap is 0
void shunt_stage_head(void* handle, const void* hidden, int64_t rows, const float* norm,
                      const void* weight, int64_t vocabulary, float divisor, float cap,
                      float* logits, int threads) {
  auto* h = (Handle*)handle;
  h->bf16 ? h->narrow.head((const uint16_t*)hidden, rows, norm, (const uint16_t*)weight,
                           vocabulary, divisor, cap, logits, threads)
          : h->wide.head((const float*)hidden, rows, norm, (const float*)weight, vocabulary,
                         divisor, cap, logits, threads);
}

int64_t shunt_ranks_memory_bytes(int64_t size, int64_t area_bytes) {
  return shunt::Ranks::memory_bytes(size, area_bytes);
}

// memory: zeros at first, shared by all ranks; area_bytes: a multiple of 64
void* shunt_ranks_new(void* memory, int64_t rank, int64_t size, int64_t area_bytes) {
  return new shunt::Ranks(memory, rank, size, area_bytes);
}

void shunt_ranks_free(void* ranks) { delete (shunt::Ranks*)ranks; }

// mine: [rows, width] bytes; all: [rows][ranks][width]
void shunt_ranks_gather(void* ranks, const void* mine, int64_t rows, int64_t width, void* all) {
  shunt::gather(*(shunt::Ranks*)ranks, (const char*)mine, rows, width, (char*)all);
}

}  // extern "C"
