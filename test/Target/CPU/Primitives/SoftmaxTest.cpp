#include "Data.h"
#include <gtest/gtest.h>

using namespace kvpc::test;

namespace {

struct Statistics {
  std::vector<float> m, z;
  explicit Statistics(int64_t rows) : m(rows), z(rows) {
    kvpc_prim_softmax_begin(m.data(), z.data(), rows);
  }
};

/// x[token][row], some entries masked.
std::vector<float> logits(int64_t tokens, int64_t stride, double masked, unsigned seed) {
  std::vector<float> x = scores("normal", tokens * stride, seed);
  std::vector<uint8_t> mask = conditions(tokens * stride, masked, seed + 1);
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = mask[i] ? -kInf : x[i] * 10;
  return x;
}

const int64_t kRows[] = {1, 3, 4, 7, 8, 15, 16, 17, 32, 40, 63, 64, 65, 130};

TEST(Softmax, StatisticsAndWeightsOfTiles) {
  for (int64_t rows : kRows)
    for (double masked : {0.0, 0.3, 0.99})
      for (int64_t tile : {1, 7, 126}) {
        const int64_t tokens = 300;
        int64_t stride = rows + rows % 5;
        std::vector<float> x = logits(tokens, stride, masked, unsigned(rows));
        Statistics s(rows);
        for (int64_t t = 0; t < tokens; t += tile)
          kvpc_prim_softmax_tile(&x[t * stride], std::min(tile, tokens - t), stride, rows,
                                 s.m.data(), s.z.data());
        std::vector<float> w = x;
        kvpc_prim_softmax_weights(w.data(), tokens, stride, rows, s.m.data(), s.z.data());
        for (int64_t r = 0; r < stride; ++r) {
          float m = -kInf;
          double z = 0;
          for (int64_t t = 0; t < tokens; ++t)
            m = std::max(m, x[t * stride + r]);
          for (int64_t t = 0; t < tokens && m > -kInf; ++t)
            z += std::exp(double(x[t * stride + r]) - m);
          if (r < rows) {
            ASSERT_EQ(s.m[r], m);
            ASSERT_NEAR(s.z[r], z, 3e-6 * z);
          }
          for (int64_t t = 0; t < tokens; ++t) {
            float from = x[t * stride + r], got = w[t * stride + r];
            if (r >= rows)
              ASSERT_TRUE(sameBits(got, from));
            else if (from == -kInf)
              ASSERT_TRUE(sameBits(got, 0.0f));
            else
              ASSERT_NEAR(got, std::exp(double(from) - m) / z, 4e-6);
          }
        }
      }
}

TEST(Softmax, StoredTilesGiveTheSameStatisticsAndWeights) {
  const int64_t tokens = 130, tile = 50;
  for (int64_t rows : kRows) {
    std::vector<float> x = logits(tokens, rows, 0.2, 3), e = x, sums(tokens), w(rows);
    Statistics s(rows), stored(rows);
    std::vector<float> reference(3 * rows);
    for (int64_t t = 0; t < tokens; t += tile) {
      int64_t n = std::min(tile, tokens - t);
      kvpc_prim_softmax_tile(&x[t * rows], n, rows, rows, s.m.data(), s.z.data());
      kvpc_prim_softmax_tile_store(&e[t * rows], n, rows, rows, stored.m.data(), stored.z.data(),
                                   &reference[t / tile * rows]);
    }
    ASSERT_EQ(std::memcmp(s.m.data(), stored.m.data(), rows * 4), 0);
    ASSERT_EQ(std::memcmp(s.z.data(), stored.z.data(), rows * 4), 0);
    std::vector<float> again = x;
    for (int64_t t = 0; t < tokens; t += tile)
      kvpc_prim_softmax_exponents(&again[t * rows], std::min(tile, tokens - t), rows, rows,
                                  &reference[t / tile * rows]);
    ASSERT_EQ(std::memcmp(again.data(), e.data(), e.size() * 4), 0);
    std::vector<float> weights = x;
    kvpc_prim_softmax_weights(weights.data(), tokens, rows, rows, s.m.data(), s.z.data());
    for (int64_t t = 0; t < tokens; t += tile) {
      kvpc_prim_softmax_factors(&reference[t / tile * rows], s.m.data(), s.z.data(), rows,
                                w.data());
      int64_t n = std::min(tile, tokens - t);
      for (int64_t i = 0; i < n * rows; ++i)
        sums[t + i / rows] += e[t * rows + i] * w[i % rows];
    }
    for (int64_t t = 0; t < tokens; ++t) {
      double sum = 0;
      for (int64_t r = 0; r < rows; ++r)
        sum += weights[t * rows + r];
      ASSERT_NEAR(sums[t], sum, 1e-5 * (sum + 1e-3));
    }
  }
}

TEST(Softmax, MaskedTokensChangeNoBit) {
  for (int64_t rows : {5, 64}) {
    std::vector<float> x = logits(40, rows, 0.0, 11), with;
    for (int64_t t = 0; t < 40; ++t) {
      with.insert(with.end(), x.begin() + t * rows, x.begin() + (t + 1) * rows);
      with.insert(with.end(), rows, -kInf);
    }
    Statistics a(rows), b(rows);
    kvpc_prim_softmax_tile(x.data(), 40, rows, rows, a.m.data(), a.z.data());
    kvpc_prim_softmax_tile(with.data(), 80, rows, rows, b.m.data(), b.z.data());
    EXPECT_EQ(a.m, b.m);
    EXPECT_EQ(a.z, b.z);
  }
}

TEST(Softmax, RowsOfNothingAndNanAndInfinity) {
  for (int64_t rows : {4, 8, 64}) {
    std::vector<float> x(3 * rows, 1.0f);
    for (int64_t t = 0; t < 3; ++t)
      x[t * rows] = -kInf; // row 0: nothing but masked
    x[rows + 1] = kNan;
    x[rows + 2] = kInf;
    Statistics s(rows), other(rows);
    kvpc_prim_softmax_tile(x.data(), 3, rows, rows, s.m.data(), s.z.data());
    kvpc_prim_softmax_merge(s.m.data(), s.z.data(), other.m.data(), other.z.data(), rows);
    kvpc_prim_softmax_merge(other.m.data(), other.z.data(), s.m.data(), s.z.data(), rows);
    for (const Statistics &now : {s, other}) {
      EXPECT_EQ(now.m[0], -kInf);
      EXPECT_EQ(now.z[0], 0.0f);
      EXPECT_TRUE(std::isnan(now.z[1]));
      EXPECT_TRUE(std::isnan(now.z[2]));
      EXPECT_EQ(now.m[3], 1.0f);
      EXPECT_EQ(now.z[3], 3.0f);
    }
    kvpc_prim_softmax_weights(x.data(), 3, rows, rows, s.m.data(), s.z.data());
    for (int64_t t = 0; t < 3; ++t) {
      EXPECT_TRUE(sameBits(x[t * rows], 0.0f));
      EXPECT_TRUE(std::isnan(x[t * rows + 1]));
      EXPECT_TRUE(std::isnan(x[t * rows + 2]));
      EXPECT_FLOAT_EQ(x[t * rows + 3], 1.0f / 3);
    }
    std::vector<float> none(rows, -kInf), w(rows);
    kvpc_prim_softmax_factors(none.data(), s.m.data(), s.z.data(), rows, w.data());
    for (int64_t r = 0; r < rows; ++r)
      EXPECT_TRUE(sameBits(w[r], 0.0f));
  }
}

} // namespace

TEST(Softmax, StoredTilesTellMaskedFromVerySmall) {
  for (int64_t rows : kRows) {
    std::vector<float> x(3 * rows), m(rows), z(rows), reference(rows);
    for (int64_t r = 0; r < rows; ++r)
      x[r] = -kInf, x[rows + r] = -1000, x[2 * rows + r] = 0;
    kvpc_prim_softmax_begin(m.data(), z.data(), rows);
    std::vector<float> again = x;
    kvpc_prim_softmax_tile_store(x.data(), 3, rows, rows, m.data(), z.data(), reference.data());
    kvpc_prim_softmax_exponents(again.data(), 3, rows, rows, reference.data());
    ASSERT_EQ(std::memcmp(again.data(), x.data(), x.size() * 4), 0);
    for (int64_t r = 0; r < rows; ++r) {
      EXPECT_TRUE(sameBits(x[r], -0.0f));
      EXPECT_TRUE(sameBits(x[rows + r], 0.0f));
      EXPECT_EQ(x[2 * rows + r], 1);
    }
  }
}
