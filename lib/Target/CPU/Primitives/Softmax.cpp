//===- Softmax.cpp - statistics and weights of softmax over tokens --------===//
//
// Rows on lanes, up to four vectors of them at a time: maximum and sum stay vertical, and four
// independent exps hide each other's latency.
//
//===----------------------------------------------------------------------===//
#include "Math.h"
#include "Primitives.h"

using namespace kvpc::prim;

namespace {

/// `vectors` whole vectors, or one with `count` lanes.
template <int vectors, bool whole>
struct Columns {
  int64_t count;

  KVPC_ALWAYS_INLINE Lanes get(const float *at, int v, float rest = 0.0f) const {
    return whole ? load<Lanes>(at + v * kLanes) : loadFirst<Lanes>(at, count, rest);
  }
  KVPC_ALWAYS_INLINE void put(float *at, int v, Lanes x) const {
    if (whole)
      store(at + v * kLanes, x);
    else
      storeFirst(at, x, count);
  }
};

/// Calls body(Columns, first row) over all rows.
template <typename Body>
KVPC_INLINE void overRows(int64_t rows, Body body) {
  int64_t r = 0;
  for (; r + 4 * kLanes <= rows; r += 4 * kLanes)
    body.template operator()<4>(Columns<4, true>{0}, r);
  for (; r + kLanes <= rows; r += kLanes)
    body.template operator()<1>(Columns<1, true>{0}, r);
  if (r < rows)
    body.template operator()<1>(Columns<1, false>{rows - r}, r);
}

/// NaN in x is left out.
KVPC_INLINE Lanes larger(Lanes x, Lanes m) { return x > m ? x : m; }

/// A reference that -inf may be subtracted from: 0 where nothing but -inf was seen.
KVPC_INLINE Lanes safe(Lanes m) { return m == -kInfinity ? Lanes(0.0f) : m; }

KVPC_INLINE Lanes reciprocal(Lanes z) { return z == 0.0f ? Lanes(0.0f) : 1.0f / z; }

template <bool kept>
KVPC_INLINE void tile(float *x, int64_t tokens, int64_t stride, int64_t rows, float *m, float *z,
                      float *reference) {
  overRows(rows, [=]<int vectors>(auto columns, int64_t r) __attribute__((always_inline)) {
    Lanes old[vectors], now[vectors], zero[vectors], sum[vectors];
    for (int v = 0; v < vectors; ++v)
      old[v] = now[v] = columns.get(m + r, v);
    for (int64_t t = 0; t < tokens; ++t)
      for (int v = 0; v < vectors; ++v)
        now[v] = larger(columns.get(x + t * stride + r, v), now[v]);
    for (int v = 0; v < vectors; ++v) {
      zero[v] = safe(now[v]);
      sum[v] = columns.get(z + r, v) * exp(old[v] - zero[v]);
    }
    for (int64_t t = 0; t < tokens; ++t)
      for (int v = 0; v < vectors; ++v) {
        Lanes logit = columns.get(x + t * stride + r, v), e = exp(logit - zero[v]);
        sum[v] += e;
        if (kept) // -0 tells what is masked from what is only very small
          columns.put(x + t * stride + r, v, logit == -kInfinity ? Lanes(-0.0f) : e);
      }
    for (int v = 0; v < vectors; ++v) {
      columns.put(m + r, v, now[v]);
      columns.put(z + r, v, sum[v]);
      if (kept)
        columns.put(reference + r, v, now[v]);
    }
  });
}

} // namespace

extern "C" {

void kvpc_prim_softmax_begin(float *m, float *z, int64_t rows) {
  overRows(rows, [=]<int vectors>(auto columns, int64_t r) __attribute__((always_inline)) {
    for (int v = 0; v < vectors; ++v) {
      columns.put(m + r, v, Lanes(-kInfinity));
      columns.put(z + r, v, Lanes(0.0f));
    }
  });
}

void kvpc_prim_softmax_tile(const float *x, int64_t tokens, int64_t row_stride, int64_t rows,
                            float *m, float *z) {
  tile<false>(const_cast<float *>(x), tokens, row_stride, rows, m, z, nullptr);
}

void kvpc_prim_softmax_tile_store(float *x, int64_t tokens, int64_t row_stride, int64_t rows,
                                  float *m, float *z, float *reference) {
  tile<true>(x, tokens, row_stride, rows, m, z, reference);
}

void kvpc_prim_softmax_exponents(float *x, int64_t tokens, int64_t row_stride, int64_t rows,
                                 const float *reference) {
  overRows(rows, [=]<int vectors>(auto columns, int64_t r) __attribute__((always_inline)) {
    Lanes zero[vectors];
    for (int v = 0; v < vectors; ++v)
      zero[v] = safe(columns.get(reference + r, v));
    for (int64_t t = 0; t < tokens; ++t)
      for (int v = 0; v < vectors; ++v) {
        Lanes logit = columns.get(x + t * row_stride + r, v), e = exp(logit - zero[v]);
        columns.put(x + t * row_stride + r, v, logit == -kInfinity ? Lanes(-0.0f) : e);
      }
  });
}

void kvpc_prim_softmax_merge(float *m, float *z, const float *m2, const float *z2, int64_t rows) {
  overRows(rows, [=]<int vectors>(auto columns, int64_t r) __attribute__((always_inline)) {
    for (int v = 0; v < vectors; ++v) {
      Lanes a = columns.get(m + r, v), b = columns.get(m2 + r, v), both = larger(b, a);
      Lanes left = columns.get(z + r, v) * exp(a - safe(both));
      Lanes right = columns.get(z2 + r, v) * exp(b - safe(both));
      columns.put(m + r, v, both);
      columns.put(z + r, v, left + right);
    }
  });
}

void kvpc_prim_softmax_weights(float *x, int64_t tokens, int64_t row_stride, int64_t rows,
                               const float *m, const float *z) {
  overRows(rows, [=]<int vectors>(auto columns, int64_t r) __attribute__((always_inline)) {
    Lanes zero[vectors], factor[vectors];
    for (int v = 0; v < vectors; ++v) {
      zero[v] = safe(columns.get(m + r, v));
      factor[v] = reciprocal(columns.get(z + r, v));
    }
    for (int64_t t = 0; t < tokens; ++t)
      for (int v = 0; v < vectors; ++v) {
        Lanes logit = columns.get(x + t * row_stride + r, v);
        Lanes w = exp(logit - zero[v]) * factor[v];
        columns.put(x + t * row_stride + r, v, logit == -kInfinity ? Lanes(0.0f) : w);
      }
  });
}

void kvpc_prim_softmax_factors(const float *reference, const float *m, const float *z, int64_t rows,
                               float *w) {
  overRows(rows, [=]<int vectors>(auto columns, int64_t r) __attribute__((always_inline)) {
    for (int v = 0; v < vectors; ++v) {
      Lanes c = columns.get(reference + r, v), all = columns.get(m + r, v);
      Lanes factor = exp(c - safe(all)) * reciprocal(columns.get(z + r, v));
      columns.put(w + r, v, c == -kInfinity ? Lanes(0.0f) : factor);
    }
  });
}
}
