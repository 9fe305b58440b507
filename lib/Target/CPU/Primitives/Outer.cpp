//===- Outer.cpp - sums of outer products ---------------------------------===//
//
// One number of each of six rows is broadcast against the vectors of some columns, entry after
// entry: the contraction's micro-tile, with entries in the place of channels.
//
//===----------------------------------------------------------------------===//
#include "Panel.h"
#include "Primitives.h"

using namespace kvpc::prim;

namespace {

struct Task {
  const float *left, *right;
  int64_t stride, entries, rows, columns;
  bool symmetric, first;
  float *out;
};

/// Rows i .. i + count - 1 of the columns from j on.
template <int count>
KVPC_INLINE void microTile(const Task &task, int64_t i, int64_t j) {
  Lanes sums[count][kVectors] = {};
  const float *left = task.left + i, *right = task.right + j;
  for (int64_t t = 0; t < task.entries; ++t, left += task.stride, right += task.stride)
#pragma clang loop unroll(full)
    for (int v = 0; v < kVectors; ++v) {
      Lanes column = load<Lanes>(right + v * kLanes);
#pragma clang loop unroll(full)
      for (int r = 0; r < count; ++r)
        sums[r][v] = __builtin_elementwise_fma(Lanes(left[r]), column, sums[r][v]);
    }
#pragma clang loop unroll(full)
  for (int r = 0; r < count; ++r)
#pragma clang loop unroll(full)
    for (int v = 0; v < kVectors; ++v) {
      int64_t rest = most(task.columns - j - v * kLanes, 0);
      float *to = task.out + (i + r) * task.columns + j + v * kLanes;
      Lanes sum = sums[r][v];
      if (rest >= kLanes) {
        if (!task.first)
          sum = load<Lanes>(to) + sum;
        store(to, sum);
      } else if (rest > 0) {
        if (!task.first)
          sum = loadFirst<Lanes>(to, rest, 0.0f) + sum;
        storeFirst(to, sum, rest);
      }
    }
}

} // namespace

extern "C" void kvpc_prim_outer(const float *left, const float *right, int64_t stride,
                                int64_t entries, int64_t rows, int64_t columns, int64_t symmetric,
                                int64_t first, float *out) {
  Task task{left, right, stride, entries, rows, columns, symmetric != 0, first != 0, out};
  for (int64_t j = 0; j < columns; j += kPanelRows) {
    // Of a symmetric sum the rows up to the last of these columns.
    int64_t end = task.symmetric ? least(j + kPanelRows, rows) : rows;
    int64_t i = 0;
    for (; i + kTokens <= end; i += kTokens)
      microTile<kTokens>(task, i, j);
    for (; i < end; ++i)
      microTile<1>(task, i, j);
  }
}

extern "C" void kvpc_prim_mirror(float *matrix, int64_t rows) {
  for (int64_t i = 1; i < rows; ++i)
    for (int64_t j = 0; j < i; ++j)
      matrix[i * rows + j] = matrix[j * rows + i];
}
