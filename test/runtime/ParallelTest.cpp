// The runtime's own threads.
#include "kvpc/Parallel.h"

#include <atomic>
#include <gtest/gtest.h>
#include <thread>
#include <vector>

namespace {

struct Counts {
  std::vector<std::atomic<int>> seen;
  explicit Counts(size_t n) : seen(n) {}
};

void count(void *context, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i)
    ++static_cast<Counts *>(context)->seen[size_t(i)];
}

void nested(void *context, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i)
    kvpc::parallelFor(nullptr, count, context, 10);
}

TEST(Parallel, EveryIndexOnce) {
  for (int64_t n : {0, 1, 2, 1000}) {
    Counts counts(size_t(n) + 1);
    kvpc::parallelFor(nullptr, count, &counts, n);
    for (int64_t i = 0; i < n; ++i)
      EXPECT_EQ(counts.seen[size_t(i)], 1);
    EXPECT_EQ(counts.seen[size_t(n)], 0);
  }
}

TEST(Parallel, NestedAndFromManyThreads) {
  Counts counts(10);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int round = 0; round < 100; ++round)
        kvpc::parallelFor(nullptr, nested, &counts, 7);
    });
  for (std::thread &thread : threads)
    thread.join();
  for (auto &seen : counts.seen)
    EXPECT_EQ(seen, 4 * 100 * 7);
}

} // namespace
