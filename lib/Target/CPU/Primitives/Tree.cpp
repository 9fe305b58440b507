//===- Tree.cpp - combining the partials of segments ----------------------===//
//
// Distances 1, 2, 4 ...: segment i takes in segment i + distance. That is the tree over neighbours
// in which the last of an odd number passes up, without moving it.
//
//===----------------------------------------------------------------------===//
#include "Math.h"
#include "Primitives.h"

using namespace kvpc::prim;

/// combine(float *into, const float *from, count or kLanes): at most one vector at a time.
template <typename Combine>
static void tree(float *partials, int64_t segments, int64_t width, Combine combine) {
  for (int64_t distance = 1; distance < segments; distance *= 2)
    for (int64_t s = 0; s + distance < segments; s += 2 * distance) {
      float *into = partials + s * width;
      const float *from = into + distance * width;
      int64_t i = 0;
      for (; i + kLanes <= width; i += kLanes)
        store(into + i, combine(load<Lanes>(into + i), load<Lanes>(from + i)));
      if (i < width) {
        Lanes a = loadFirst<Lanes>(into + i, width - i, 0.0f);
        Lanes b = loadFirst<Lanes>(from + i, width - i, 0.0f);
        storeFirst(into + i, combine(a, b), width - i);
      }
    }
}

extern "C" {

void kvpc_prim_tree_add(float *partials, int64_t segments, int64_t width) {
  tree(partials, segments, width, [](Lanes a, Lanes b) { return a + b; });
}

void kvpc_prim_tree_max(float *partials, int64_t segments, int64_t width) {
  tree(partials, segments, width, [](Lanes a, Lanes b) { return ((a > b) | (a != a)) ? a : b; });
}

void kvpc_prim_tree_min(float *partials, int64_t segments, int64_t width) {
  tree(partials, segments, width, [](Lanes a, Lanes b) { return ((a < b) | (a != a)) ? a : b; });
}

void kvpc_prim_tree_softmax(float *m, float *z, int64_t segments, int64_t width) {
  for (int64_t distance = 1; distance < segments; distance *= 2)
    for (int64_t s = 0; s + distance < segments; s += 2 * distance)
      kvpc_prim_softmax_merge(m + s * width, z + s * width, m + (s + distance) * width,
                              z + (s + distance) * width, width);
}
}
