// The selection primitive through the runtime. Its rules are tested with the primitives.
#include "kvpc/Select.h"
#include "Host.h"
#include "kvpc/Parallel.h"

#include <cmath>

using namespace kvpc;
using namespace kvpc::test;

namespace {

TEST(Select, RowsOfOtherLengths) {
  const float scores[] = {3, 1, 4, 1, 5, 9, NAN, NAN, 2, 2, 2, -INFINITY};
  const int64_t start[] = {0, 2}, length[] = {6, 4};
  SelectCall call;
  call.scores = scores;
  call.rows = 2;
  call.tokens = call.stride = 6;
  call.start = start;
  call.length = length;
  call.budget = Value::drop(0.5);
  ASSERT_EQ(textOf(select(call)), "ok");
  EXPECT_EQ(call.kept, 3);
  int64_t out[6], counts[2];
  call.out = out;
  call.counts = counts;
  ASSERT_EQ(textOf(select(call)), "ok");
  EXPECT_EQ(std::vector<int64_t>(out, out + 6), (std::vector<int64_t>{2, 4, 5, 2, 3, -1}));
  EXPECT_EQ(counts[0], 3);
  EXPECT_EQ(counts[1], 2);
}

TEST(Select, Protected) {
  const float scores[] = {9, 8, 7, 6};
  const uint8_t isProtected[] = {0, 0, 0, 1};
  int64_t out[2];
  SelectCall call;
  call.scores = scores;
  call.isProtected = isProtected;
  call.rows = 1;
  call.tokens = call.stride = 4;
  call.budget = Value::keep(2);
  call.out = out;
  ASSERT_EQ(textOf(select(call)), "ok");
  EXPECT_EQ(out[0], 0);
  EXPECT_EQ(out[1], 3);
}

TEST(Select, SharesOfTheRowsChangeNothing) {
  constexpr int64_t rows = 7, tokens = 300;
  std::vector<float> scores(rows * tokens);
  for (size_t i = 0; i < scores.size(); ++i)
    scores[i] = float(i * 7919 % 101);
  std::vector<int64_t> wanted;
  for (int64_t threads : {1, 2, 3, 20}) {
    SelectCall call;
    call.scores = scores.data();
    call.rows = rows;
    call.tokens = call.stride = tokens;
    call.budget = Value::keep(100);
    std::vector<int64_t> out(rows * 100), counts(rows);
    call.out = out.data();
    call.counts = counts.data();
    call.threads = threads;
    call.parallelFor = threads > 1 ? parallelFor : nullptr;
    ASSERT_EQ(textOf(select(call)), "ok");
    EXPECT_EQ(counts, std::vector<int64_t>(rows, 100));
    if (wanted.empty())
      wanted = out;
    EXPECT_EQ(out, wanted) << threads;
  }
}

TEST(Select, Refusals) {
  SelectCall call;
  call.rows = 1;
  call.tokens = 0;
  call.budget = Value::keep(1);
  EXPECT_NE(textOf(select(call)).find("scores have 0 entries"), std::string::npos);
  call.tokens = 4;
  call.budget = Value::keep(0);
  EXPECT_NE(textOf(select(call)).find("`keep` is 0"), std::string::npos);
  call.budget = Value::drop(std::nan(""));
  EXPECT_NE(textOf(select(call)).find("`drop` is nan"), std::string::npos);
  call.budget = Value();
  EXPECT_NE(textOf(select(call)).find("no budget"), std::string::npos);
}

} // namespace
