// What this machine reaches: bandwidth of memory and multiply-adds a second. Compiled by machine.py
// for the machine it runs on; each function does its work on `threads` threads and returns seconds.
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

double timed(int threads, const std::function<void(int)> &work) {
  auto start = std::chrono::steady_clock::now();
  std::vector<std::thread> others;
  for (int n = 1; n < threads; ++n)
    others.emplace_back(work, n);
  work(0);
  for (std::thread &other : others)
    other.join();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

#ifdef __AVX512F__
constexpr int lanes = 16, accumulators = 24;
#else
constexpr int lanes = 8, accumulators = 12;
#endif
using Vector = float __attribute__((vector_size(lanes * sizeof(float))));

volatile float sink;

} // namespace

/// `bytes` from `from`, summed.
extern "C" double machine_read(const float *from, int64_t bytes, int threads) {
  return timed(threads, [=](int thread) {
    int64_t share = bytes / threads / 4096 * 1024;
    const float *at = from + thread * share;
    Vector sum[8] = {};
    for (int64_t n = 0; n < share; n += 8 * lanes)
      for (int k = 0; k < 8; ++k) {
        Vector x;
        std::memcpy(&x, at + n + k * lanes, sizeof x);
        sum[k] += x;
      }
    Vector total = {};
    for (const Vector &one : sum)
      total += one;
    sink = total[0];
  });
}

/// Zeros to `to`, past the caches.
extern "C" double machine_write(float *to, int64_t bytes, int threads) {
  return timed(threads, [=](int thread) {
    int64_t share = bytes / threads / 4096 * 1024;
    auto *at = reinterpret_cast<Vector *>(to + thread * share);
    for (int64_t n = 0; n < share / lanes; ++n)
      __builtin_nontemporal_store(Vector{}, at + n);
  });
}

/// From `from` to `to`, past the caches.
extern "C" double machine_copy(const float *from, float *to, int64_t bytes, int threads) {
  return timed(threads, [=](int thread) {
    int64_t share = bytes / threads / 4096 * 1024;
    auto *in = reinterpret_cast<const Vector *>(from + thread * share);
    auto *out = reinterpret_cast<Vector *>(to + thread * share);
    for (int64_t n = 0; n < share / lanes; ++n)
      __builtin_nontemporal_store(in[n], out + n);
  });
}

/// Multiply-adds in registers; *flops becomes how many operations that was, a multiply and an add
/// counting as two.
extern "C" double machine_fma(int64_t rounds, int threads, double *flops) {
  *flops = 2.0 * lanes * accumulators * double(rounds) * threads;
  return timed(threads, [=](int) {
    Vector sum[accumulators];
    for (int k = 0; k < accumulators; ++k)
      sum[k] = Vector{} + float(k); // alike, they could be computed as one
    Vector factor = Vector{} + 0.999F, term = Vector{} + 0.001F;
    for (int64_t n = 0; n < rounds; ++n)
      for (Vector &one : sum)
        one = one * factor + term;
    Vector total = {};
    for (const Vector &one : sum)
      total += one;
    sink = total[0];
  });
}

#ifdef __AVX512BF16__
/// The same of dot products of bf16 pairs.
extern "C" double machine_bf16(int64_t rounds, int threads, double *flops) {
  *flops = 4.0 * lanes * accumulators * double(rounds) * threads;
  return timed(threads, [=](int) {
    __m512 sum[accumulators];
    for (int k = 0; k < accumulators; ++k)
      sum[k] = _mm512_set1_ps(float(k));
    auto pairs = (__m512bh)_mm512_set1_epi16(0x3c00);
    for (int64_t n = 0; n < rounds; ++n)
      for (__m512 &one : sum)
        one = _mm512_dpbf16_ps(one, pairs, pairs);
    Vector total = {};
    for (const Vector &one : sum)
      total += one;
    sink = total[0];
  });
}
#endif
