#include "Data.h"
#include <gtest/gtest.h>

using namespace kvpc::test;

namespace {

TEST(Outer, OneFmaAnEntryThenWhatWasThere) {
  for (auto [rows, columns] : {std::pair<int64_t, int64_t>{1, 1}, {7, 20}, {64, 64}, {80, 33}})
    for (int64_t entries : {0, 1, 5, 128})
      for (bool symmetric : {false, true}) {
        int64_t width = symmetric ? rows : columns, stride = rows > 64 || width > 64 ? 128 : 64;
        std::vector<float> left = scores("normal", entries * stride, 3),
                           right = symmetric ? left : scores("normal", entries * stride, 4);
        Guarded<float> out(rows * width, 0.5f);
        for (bool first : {true, false}) {
          std::vector<float> before = out.first(rows * width);
          kvpc_prim_outer(left.data(), symmetric ? left.data() : right.data(), stride, entries,
                          rows, width, symmetric, first, out.data());
          ASSERT_TRUE(out.intact());
          for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = symmetric ? i : 0; j < width; ++j) {
              float sum = 0;
              for (int64_t t = 0; t < entries; ++t)
                sum = std::fma(left[t * stride + i], right[t * stride + j], sum);
              float wanted = first ? sum : before[i * width + j] + sum;
              ASSERT_TRUE(sameBits(out.data()[i * width + j], wanted)) << i << " " << j;
            }
        }
        if (!symmetric)
          continue;
        kvpc_prim_mirror(out.data(), rows);
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = 0; j < rows; ++j)
            ASSERT_TRUE(sameBits(out.data()[i * rows + j], out.data()[j * rows + i]));
      }
}

} // namespace
