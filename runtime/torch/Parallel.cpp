//===- Parallel.cpp - Torch's threads for modules ---------------------------------------------===//
//
// at::parallel_for is a template over `#pragma omp`: compiled here it would bring a second OpenMP
// runtime with threads of its own, or none at all. Torch links GNU's; its entry point is called
// directly, so that the threads are those that Torch's own operators use. Work is handed out one
// index at a time, which at::parallel_for does not do: heads take unequal time.
//
//===------------------------------------------------------------------------------------------===//
#include "Parallel.h"

#include "kvpc/Parallel.h"

#include <ATen/Parallel.h>
#include <algorithm>
#include <atomic>

// Found among the libraries of libtorch_cpu. Weak: a Torch without OpenMP does not have it.
extern "C" __attribute__((weak)) void GOMP_parallel(void (*body)(void *), void *data,
                                                    unsigned threads, unsigned flags);

namespace {

struct Job {
  kvpc_body body;
  void *context;
  int64_t count;
  std::atomic<int64_t> next{0};
};

void takeRanges(void *data) {
  auto *job = static_cast<Job *>(data);
  for (int64_t at; (at = job->next.fetch_add(1, std::memory_order_relaxed)) < job->count;)
    job->body(job->context, at, at + 1);
}

} // namespace

void kvpc::torch::parallelFor(void *, kvpc_body body, void *context, int64_t count) {
  int64_t threads = std::min<int64_t>(at::get_num_threads(), count);
  if (threads <= 1 || at::in_parallel_region()) {
    if (count > 0)
      body(context, 0, count);
    return;
  }
  if (!GOMP_parallel)
    return kvpc::parallelFor(nullptr, body, context, count);
  Job job{body, context, count};
  GOMP_parallel(takeRanges, &job, unsigned(threads), 0);
}
