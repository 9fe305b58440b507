//===- Parallel.cpp - threads for hosts that have none ----------------------------------------===//
#include "kvpc/Parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace {

class Pool {
public:
  Pool() {
    unsigned cores = std::max(1u, std::thread::hardware_concurrency());
    for (unsigned n = 1; n < cores; ++n)
      workers.emplace_back([this] { work(); });
  }
  ~Pool() {
    {
      std::lock_guard lock(mutex);
      stopping = true;
    }
    wake.notify_all();
    for (std::thread &worker : workers)
      worker.join();
  }

  int64_t threads() const { return int64_t(workers.size()) + 1; }

  void run(kvpc_body jobBody, void *jobContext, int64_t jobCount) {
    // A thread may not even try a lock that it holds, so `inside` comes first.
    std::unique_lock<std::mutex> use;
    if (!inside && jobCount > 1 && !workers.empty())
      use = std::unique_lock(busy, std::try_to_lock);
    if (!use)
      return jobBody(jobContext, 0, jobCount);
    {
      std::lock_guard lock(mutex);
      body = jobBody;
      context = jobContext;
      count = jobCount;
      next = 0;
      open = true;
      ++generation;
    }
    wake.notify_all();
    takeRanges();
    std::unique_lock lock(mutex);
    open = false; // a worker that is late finds nothing to do, and is not waited for
    done.wait(lock, [this] { return running == 0; });
  }

private:
  void takeRanges() {
    inside = true;
    for (int64_t at; (at = next.fetch_add(1)) < count;)
      body(context, at, at + 1);
    inside = false;
  }

  void work() {
    uint64_t seen = 0;
    std::unique_lock lock(mutex);
    for (;;) {
      wake.wait(lock, [&] { return stopping || generation != seen; });
      if (stopping)
        return;
      seen = generation;
      if (!open)
        continue;
      ++running;
      lock.unlock();
      takeRanges();
      lock.lock();
      if (--running == 0)
        done.notify_one();
    }
  }

  static thread_local bool inside;

  std::mutex busy; // held by the thread whose job it is
  std::mutex mutex;
  std::condition_variable wake, done;
  std::vector<std::thread> workers;
  kvpc_body body = nullptr;
  void *context = nullptr;
  int64_t count = 0;
  std::atomic<int64_t> next{0};
  size_t running = 0; // workers inside the job
  bool open = false;  // whether more may enter
  uint64_t generation = 0;
  bool stopping = false;
};

thread_local bool Pool::inside = false;

Pool &pool() {
  static Pool instance;
  return instance;
}

} // namespace

void kvpc::runtime::parallelFor(void *, kvpc_body body, void *context, int64_t count) {
  if (count > 0)
    pool().run(body, context, count);
}

int64_t kvpc::runtime::parallelThreads() { return pool().threads(); }
