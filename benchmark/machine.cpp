// What this machine reaches: bandwidth of memory and multiply-adds a second. Compiled by machine.py
// for the machine it runs on; each function does its work on `threads` threads and returns seconds.
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <immintrin.h>
#include <thread>
#include <vector>

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
using Vector = __m512;
Vector madd(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
Vector all(float x) { return _mm512_set1_ps(x); }
constexpr int accumulators = 24;
#else
using Vector = __m256;
Vector madd(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
Vector all(float x) { return _mm256_set1_ps(x); }
constexpr int accumulators = 12;
#endif
constexpr int lanes = sizeof(Vector) / sizeof(float);

volatile float sink;

} // namespace

/// `bytes` from `from`, summed.
extern "C" double machine_read(const float *from, int64_t bytes, int threads) {
  return timed(threads, [=](int thread) {
    int64_t share = bytes / threads / 4096 * 1024;
    const float *at = from + thread * share;
    Vector sum[8];
    for (Vector &one : sum)
      one = all(0);
    for (int64_t n = 0; n < share; n += 8 * lanes)
      for (int k = 0; k < 8; ++k) {
        Vector x;
        std::memcpy(&x, at + n + k * lanes, sizeof x);
        sum[k] += x;
      }
    Vector total = all(0);
    for (Vector one : sum)
      total += one;
    sink = total[0];
  });
}

/// Zeros to `to`, past the caches.
extern "C" double machine_write(float *to, int64_t bytes, int threads) {
  return timed(threads, [=](int thread) {
    int64_t share = bytes / threads / 4096 * 1024;
    __m256 zero = _mm256_setzero_ps();
    for (int64_t n = 0; n < share; n += 8)
      _mm256_stream_ps(to + thread * share + n, zero);
    _mm_sfence();
  });
}

/// From `from` to `to`, past the caches.
extern "C" double machine_copy(const float *from, float *to, int64_t bytes, int threads) {
  return timed(threads, [=](int thread) {
    int64_t share = bytes / threads / 4096 * 1024;
    for (int64_t n = thread * share; n < (thread + 1) * share; n += 8)
      _mm256_stream_ps(to + n, _mm256_loadu_ps(from + n));
    _mm_sfence();
  });
}

/// Multiply-adds in registers; *flops becomes how many operations that was, a multiply and an add
/// counting as two.
extern "C" double machine_fma(int64_t rounds, int threads, double *flops) {
  *flops = 2.0 * lanes * accumulators * double(rounds) * threads;
  return timed(threads, [=](int) {
    Vector sum[accumulators];
    for (Vector &one : sum)
      one = all(0.5F);
    Vector factor = all(0.999F), term = all(0.001F);
    for (int64_t n = 0; n < rounds; ++n) {
      for (Vector &one : sum)
        one = madd(one, factor, term);
      asm volatile("" : "+x"(factor)); // NOLINT: keeps the loop from being computed beforehand
    }
    Vector total = all(0);
    for (Vector one : sum)
      total += one;
    sink = total[0];
  });
}

#ifdef __AVX512BF16__
/// The same of dot products of bf16 pairs.
extern "C" double machine_bf16(int64_t rounds, int threads, double *flops) {
  *flops = 4.0 * lanes * accumulators * double(rounds) * threads;
  return timed(threads, [=](int) {
    Vector sum[accumulators];
    for (Vector &one : sum)
      one = all(0.5F);
    auto pairs = (__m512bh)_mm512_set1_epi16(0x3c00);
    for (int64_t n = 0; n < rounds; ++n) {
      for (Vector &one : sum)
        one = _mm512_dpbf16_ps(one, pairs, pairs);
      asm volatile("" : "+v"(pairs));
    }
    Vector total = all(0);
    for (Vector one : sum)
      total += one;
    sink = total[0];
  });
}
#endif
