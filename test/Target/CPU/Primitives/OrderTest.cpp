#include "Data.h"
#include <algorithm>
#include <gtest/gtest.h>
#include <numeric>

using namespace kvpc::test;

namespace {

TEST(Order, RankIsTheOrderOfSelection) {
  for (const char *kind : kKinds)
    for (int64_t n : kSizes)
      for (double part : {0.0, 0.2, 1.0})
        for (double inside : {0.0, 0.7, 1.0}) {
          std::vector<float> x = scores(kind, n);
          std::vector<uint8_t> protect = conditions(n, part), where = conditions(n, inside, 4);
          std::vector<int64_t> order(n), expected(n);
          std::iota(order.begin(), order.end(), 0);
          std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
            if (!where[a] || !where[b])
              return (where[a] != 0) != (where[b] != 0) ? where[a] != 0 : a < b;
            if ((protect[a] != 0) != (protect[b] != 0))
              return protect[a] != 0;
            if (above(x[a], x[b]) || above(x[b], x[a]))
              return above(x[a], x[b]);
            return protect[a] ? a > b : a < b;
          });
          for (int64_t i = 0; i < n; ++i)
            expected[order[i]] = i;
          Guarded<int64_t> rank(n, -1);
          Scratch scratch(kvpc_prim_order_scratch(n));
          kvpc_prim_rank(x.data(), part > 0 ? protect.data() : nullptr,
                         inside < 1 ? where.data() : nullptr, n, rank.data(), scratch.data());
          ASSERT_EQ(rank.first(n), expected) << kind << " n " << n;
          ASSERT_TRUE(rank.intact() && scratch.intact());
        }
}

TEST(Order, SortDescends) {
  for (const char *kind : kKinds)
    for (int64_t n : kSizes)
      for (double inside : {0.0, 0.7, 1.0}) {
        std::vector<float> x = scores(kind, n), expected(n, 0.5f);
        std::vector<uint8_t> where = conditions(n, inside, 4);
        std::vector<int64_t> order;
        for (int64_t i = 0; i < n; ++i)
          if (where[i])
            order.push_back(i);
        std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
          return above(x[a], x[b]) || (!above(x[b], x[a]) && a < b);
        });
        for (size_t i = 0; i < order.size(); ++i)
          expected[i] = x[order[i]];
        Scratch scratch(kvpc_prim_order_scratch(n));
        kvpc_prim_sort(x.data(), inside < 1 ? where.data() : nullptr, n, 0.5f, x.data(),
                       scratch.data());
        for (int64_t i = 0; i < n; ++i)
          ASSERT_TRUE(sameBits(x[i], expected[i])) << kind << " n " << n << " at " << i;
      }
}

TEST(Order, CumsumRunsInDouble) {
  for (int64_t n : kSizes) {
    std::vector<float> x = scores("normal", n), out(n);
    std::vector<uint8_t> where = conditions(n, 0.5);
    for (bool all : {true, false}) {
      kvpc_prim_cumsum(x.data(), all ? nullptr : where.data(), n, out.data());
      double sum = 0;
      for (int64_t i = 0; i < n; ++i) {
        bool inside = all || where[i];
        sum += inside ? x[i] : 0;
        ASSERT_EQ(out[i], inside ? float(sum) : 0.0f);
      }
    }
  }
}

TEST(Order, ArgmaxIsTheFirstOfTheLargest) {
  for (const char *kind : kKinds)
    for (int64_t n : kSizes)
      for (bool all : {true, false}) {
        std::vector<float> x = scores(kind, n);
        std::vector<uint8_t> where = conditions(n, 0.5);
        int64_t best = -1;
        for (int64_t i = 0; i < n; ++i)
          if ((all || where[i]) && !std::isnan(x[i]) && (best < 0 || x[i] > x[best]))
            best = i;
        ASSERT_EQ(kvpc_prim_argmax(x.data(), all ? nullptr : where.data(), n),
                  std::max<int64_t>(best, 0))
            << kind << " n " << n;
      }
}

} // namespace
