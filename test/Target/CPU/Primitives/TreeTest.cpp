#include "Data.h"
#include <gtest/gtest.h>

using namespace kvpc::test;

namespace {

/// The tree as it is defined: neighbours in pairs, an odd one passes up.
template <typename Combine>
std::vector<float> byNeighbours(std::vector<std::vector<float>> level, Combine combine) {
  while (level.size() > 1) {
    std::vector<std::vector<float>> next;
    for (size_t i = 0; i + 1 < level.size(); i += 2) {
      next.push_back(level[i]);
      for (size_t c = 0; c < level[i].size(); ++c)
        next.back()[c] = combine(level[i][c], level[i + 1][c]);
    }
    if (level.size() % 2)
      next.push_back(level.back());
    level = next;
  }
  return level[0];
}

template <typename Combine>
void expectTree(void (*tree)(float *, int64_t, int64_t), Combine combine) {
  for (const char *kind : {"normal", "special"})
    for (int64_t segments : {1, 2, 3, 5, 6, 7, 64, 65})
      for (int64_t width : {0, 1, 7, 8, 33, 64}) {
        std::vector<float> data = scores(kind, segments * width);
        std::vector<std::vector<float>> level(segments);
        for (int64_t s = 0; s < segments; ++s)
          level[s].assign(data.begin() + s * width, data.begin() + (s + 1) * width);
        std::vector<float> expected = byNeighbours(level, combine);
        tree(data.data(), segments, width);
        for (int64_t i = 0; i < width; ++i)
          ASSERT_TRUE(sameBits(data[i], expected[i]) ||
                      (std::isnan(data[i]) && std::isnan(expected[i])))
              << segments << " segments, width " << width;
      }
}

TEST(Tree, SumMaximumMinimum) {
  expectTree(kvpc_prim_tree_add, [](float a, float b) { return a + b; });
  expectTree(kvpc_prim_tree_max, [](float a, float b) { return a > b || a != a ? a : b; });
  expectTree(kvpc_prim_tree_min, [](float a, float b) { return a < b || a != a ? a : b; });
  float untouched = 3;
  kvpc_prim_tree_add(&untouched, 0, 1);
  EXPECT_EQ(untouched, 3.0f);
}

TEST(Tree, SoftmaxPairsAreThoseOfTheWholeRow) {
  const int64_t width = 21, tokens = 9;
  for (int64_t segments : {1, 2, 3, 7, 64}) {
    std::vector<float> x = scores("normal", segments * tokens * width), m(segments * width),
                       z(segments * width), wholeM(width), wholeZ(width);
    for (int64_t t = 0; t < segments * tokens; ++t)
      x[t * width] = -kInf; // row 0 is all masked
    kvpc_prim_softmax_begin(m.data(), z.data(), segments * width);
    kvpc_prim_softmax_begin(wholeM.data(), wholeZ.data(), width);
    for (int64_t s = 0; s < segments; ++s)
      kvpc_prim_softmax_tile(&x[s * tokens * width], tokens, width, width, &m[s * width],
                             &z[s * width]);
    kvpc_prim_softmax_tile(x.data(), segments * tokens, width, width, wholeM.data(), wholeZ.data());
    kvpc_prim_tree_softmax(m.data(), z.data(), segments, width);
    EXPECT_EQ(z[0], 0.0f);
    for (int64_t i = 0; i < width; ++i) {
      ASSERT_EQ(m[i], wholeM[i]);
      ASSERT_NEAR(z[i], wholeZ[i], 2e-6 * wholeZ[i]);
    }
  }
}

} // namespace
