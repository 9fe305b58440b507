#include "Data.h"
#include <gtest/gtest.h>
#include <numeric>

using namespace kvpc::test;

namespace {

std::vector<int32_t> someOf(int64_t n, double part, unsigned seed) {
  std::vector<uint8_t> chosen = conditions(n, part, seed);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < n; ++i)
    if (chosen[i])
      ids.push_back(int32_t(i));
  return ids;
}

std::vector<uint8_t> noise(int64_t n) {
  std::mt19937 engine(3);
  std::vector<uint8_t> out(n);
  for (uint8_t &x : out)
    x = uint8_t(engine());
  return out;
}

TEST(Gather, RowsWithAnyStrideAndWidth) {
  for (int64_t n : {0, 1, 7, 65, 1000})
    for (double part : {0.1, 0.5, 0.95, 1.0})
      for (int64_t row : {2, 14, 16, 64, 100, 128, 256, 512, 1036})
        for (int64_t gap : {0, 32, 6}) {
          std::vector<int32_t> ids = someOf(n, part, unsigned(row));
          int64_t count = ids.size(), src = row + gap, dst = row + gap / 3;
          std::vector<uint8_t> from = noise(n * src);
          for (bool streaming : {false, true}) {
            std::vector<uint8_t> expected(count * dst + 64, 0x5a);
            std::vector<uint8_t> memory(count * dst + 128, 0x5a);
            uint8_t *to = memory.data() + (64 - uintptr_t(memory.data()) % 64) % 64;
            for (int64_t i = 0; i < count; ++i)
              std::memcpy(&expected[i * dst], &from[ids[i] * src], row);
            kvpc_prim_gather_rows(from.data(), src, to, dst, ids.data(), count, row, streaming);
            ASSERT_TRUE(std::equal(expected.begin(), expected.end(), to))
                << "n " << n << " row " << row << " gap " << gap << " streaming " << streaming;
          }
        }
}

TEST(Gather, InPlaceWithEqualAndWithNarrowerRows) {
  for (int64_t n : {1, 7, 65, 1000})
    for (double part : {0.1, 0.5, 1.0})
      for (int64_t row : {2, 6, 32, 100, 256, 512})
        for (int64_t src : {row, row + 2, row + 64}) {
          std::vector<int32_t> ids = someOf(n, part, unsigned(src));
          std::vector<uint8_t> data = noise(n * src), expected = data;
          for (int64_t dst : {src, row}) {
            std::vector<uint8_t> out = data;
            kvpc_prim_gather_rows(out.data(), src, out.data(), dst, ids.data(), ids.size(), row, 0);
            for (size_t i = 0; i < ids.size(); ++i)
              ASSERT_EQ(std::memcmp(&out[i * dst], &data[ids[i] * src], row), 0)
                  << "row " << row << " strides " << src << ", " << dst << " at " << i;
          }
        }
}

void expectChannels(int64_t n, int64_t channels, int64_t bytes, double part, bool allRows,
                    bool inPlace) {
  std::vector<int32_t> ids = allRows ? std::vector<int32_t>(n) : someOf(n, 0.5, 9);
  if (allRows)
    std::iota(ids.begin(), ids.end(), 0);
  std::vector<int32_t> kept = someOf(channels, part, unsigned(channels));
  int64_t width = kept.size(), src = channels * bytes, dst = width * bytes;
  std::vector<uint8_t> data = noise(n * src);
  for (int64_t stride : {dst, src}) {
    std::vector<uint8_t> in = data;
    Guarded<uint8_t> apart(ids.size() * stride, 0x77);
    uint8_t *out = inPlace ? in.data() : apart.data();
    kvpc_prim_gather_rows_channels(in.data(), src, out, stride, allRows ? nullptr : ids.data(),
                                   ids.size(), kept.data(), width, bytes);
    for (size_t i = 0; i < ids.size(); ++i) {
      for (int64_t c = 0; c < width; ++c)
        ASSERT_EQ(
            std::memcmp(out + i * stride + c * bytes, &data[ids[i] * src + kept[c] * bytes], bytes),
            0)
            << "row " << i << " channel " << c << " of " << channels << " bytes " << bytes;
      if (!inPlace)
        for (int64_t b = dst; b < stride; ++b)
          ASSERT_EQ(out[i * stride + b], 0x77);
    }
    ASSERT_TRUE(apart.intact());
  }
}

TEST(Gather, ChannelsOfRows) {
  for (int64_t n : {1, 2, 65, 300})
    for (int64_t channels : {1, 7, 8, 64, 80, 128, 2100})
      for (int64_t bytes : {2, 4})
        for (double part : {0.1, 0.5, 0.97, 1.0})
          for (bool allRows : {false, true})
            for (bool inPlace : {false, true}) {
              expectChannels(n, channels, bytes, part, allRows, inPlace);
              if (HasFatalFailure())
                return;
            }
}

TEST(Gather, ZeroRowsAndTokens) {
  for (int64_t row : {0, 2, 32, 77, 512})
    for (int64_t gap : {0, 5}) {
      Guarded<uint8_t> out(5 * (row + gap), 0x77);
      kvpc_prim_zero_rows(out.data(), row + gap, 5, row);
      for (int64_t i = 0; i < 5 * (row + gap); ++i)
        ASSERT_EQ(out[i], i % (row + gap) < row ? 0 : 0x77);
      ASSERT_TRUE(out.intact());
    }
  std::vector<int32_t> ids = {0, 3, 4};
  std::vector<int64_t> tokens(5);
  kvpc_prim_tokens_out(ids.data(), 3, 10, tokens.data(), 5);
  EXPECT_EQ(tokens, (std::vector<int64_t>{10, 13, 14, -1, -1}));
  kvpc_prim_tokens_out(nullptr, 2, 7, tokens.data(), 3);
  EXPECT_EQ(tokens[0], 7);
  EXPECT_EQ(tokens[1], 8);
  EXPECT_EQ(tokens[2], -1);
}

} // namespace
