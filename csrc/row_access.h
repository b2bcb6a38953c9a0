// One row of logits: where its elements lie, which thread has which, and what is done to a logit
// before the softmax.
#pragma once

#include "elements.h"
#include "rows.h"

namespace ds_train {

constexpr float kLog2E = 1.44269504088896340736f;

// what a kernel is compiled with; a plain cross-entropy pays for neither
constexpr int kTransform = 1;  // bias, soft cap, or a scale that is not positive
constexpr int kMoments = 2;    // entropy, sum of logits, or a gradient of either

// One row, and what is the same for all its elements.
template <class E, int F> struct Row {
  using Storage = typename E::Storage;
  static constexpr int kWidth = Elements<E>::kPerVector;

  Storage *logits;
  const float *bias, *class_weight;
  int vocab, label;
  int head, vectors;   // elements before the first aligned vector; aligned vectors
  float scale, cap, tanh_scale, k, unit;
  float target;  // u of the label; NaN where there is no such label, which makes the row NaN

  HD Row(const LogitRows &a, int64_t row) {
    logits = static_cast<Storage *>(a.logits) + row * a.stride;
    bias = a.bias;
    class_weight = a.class_weight;
    vocab = static_cast<int>(a.vocab);
    const int64_t wanted = a.labels[row];
    const bool valid = wanted >= 0 && wanted < a.vocab;
    label = valid ? static_cast<int>(wanted) : 0;
    const int past = static_cast<int>(reinterpret_cast<uintptr_t>(logits) % sizeof(Vector));
    head = (static_cast<int>(sizeof(Vector)) - past) % static_cast<int>(sizeof(Vector));
    head /= static_cast<int>(sizeof(Storage));
    head = head < vocab ? head : vocab;
    vectors = (vocab - head) / kWidth;
    scale = a.logit_scale;
    cap = (F & kTransform) != 0 ? a.softcap : 0.0f;
    unit = (F & kTransform) == 0 ? scale : cap != 0.0f ? cap : 1.0f;
    k = unit * kLog2E;
    tanh_scale = cap != 0.0f ? 2.0f * kLog2E / cap : 0.0f;
    float u[1] = {Elements<E>::load_one(logits + label)};
    transform(u, label);
    target = valid ? u[0] : NAN;
  }

  // elements outside the vectors, counted from 0 up to these
  HD int singles() const { return vocab - vectors * kWidth; }
  HD int single_column(int i) const { return i < head ? i : i + vectors * kWidth; }
  HD int vector_column(int v) const { return head + v * kWidth; }
  // which of `parts` threads has a column
  HD int owner(int column, int parts) const {
    if (column < head) return column % parts;
    const int v = (column - head) / kWidth;
    return v < vectors ? v % parts : (column - vectors * kWidth) % parts;
  }

  // logits to u
  template <int W> HD void transform(float (&u)[W], int column) const {
    if constexpr ((F & kTransform) != 0) {
      if (bias) {
        UNROLL
        for (int i = 0; i < W; ++i) u[i] += bias[column + i];
      }
      UNROLL
      for (int i = 0; i < W; ++i) u[i] *= scale;
      if (cap != 0.0f) {
        UNROLL
        for (int i = 0; i < W; ++i) u[i] = squash(u[i]);
      }
    }
  }

  // derivative of z's soft cap
  HD float slope(float u) const {
    return (F & kTransform) != 0 && cap != 0.0f ? fmaf(-u, u, 1.0f) : 1.0f;
  }

  HD float weight_of(int column) const { return class_weight ? class_weight[column] : 1.0f; }

  HD void store(const float (&d)[1], int column) const {
    Elements<E>::store_one(logits + column, d[0]);
  }
  HD void store(const float (&d)[kWidth], int column) const {
    store_vector(logits + column, Elements<E>::pack(d));
  }

 private:
  // tanh(z / cap), to 2e-7 in itself, which is enough unless z is far below the cap
  HD float squash(float z) const {
    if (cap > 64.0f) return tanhf(z / cap);
    return 1.0f - divide_fast(2.0f, 1.0f + exp2_fast(z * tanh_scale));
  }
};

// Calls use(u, column) for all elements that a part has, a vector or one of them at a time; several
// loads are under way before the first is used.
template <class E, int F, class Visit>
HD void visit(const Row<E, F> &row, int part, int parts, const Visit &use) {
  constexpr int kBatch = 4, kWidth = Row<E, F>::kWidth;
  for (int i = part; i < row.singles(); i += parts) {
    const int column = row.single_column(i);
    float u[1] = {Elements<E>::load_one(row.logits + column)};
    row.transform(u, column);
    use(u, column);
  }
  for (int first = part; first < row.vectors; first += kBatch * parts) {
    Vector loaded[kBatch];
    UNROLL
    for (int i = 0; i < kBatch; ++i) {
      const int v = first + i * parts;
      if (v < row.vectors) loaded[i] = load_vector(row.logits + row.vector_column(v));
    }
    UNROLL
    for (int i = 0; i < kBatch; ++i) {
      const int v = first + i * parts;
      if (v >= row.vectors) break;
      float u[kWidth];
      Elements<E>::unpack(loaded[i], u);
      row.transform(u, row.vector_column(v));
      use(u, row.vector_column(v));
    }
  }
}

}  // namespace ds_train
