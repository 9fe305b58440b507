/*===- HostMath.c - elementary functions of double ------------------------===
 *
 * For the few numbers that a plan computes on the host: budgets, schedules over layers, rotary
 * frequencies. Freestanding, since a module needs no C library, and compiled once for x86-64-v3, so
 * that all levels compute the same bits. Relative error below 1e-14 (measured: a few 1e-16),
 * special values as in C. A power needs the logarithm to about 100 bits; "double-double" numbers
 * are sums of a high and a low part.
 */
#include <stdint.h>

#define EXPORT __attribute__((visibility("hidden")))

static const double kInfinity = __builtin_inf();
static const double kLn2High = 0x1.62e42fefa38p-1, kLn2Low = 0x1.ef35793c7673p-45;
static const double kLog2E = 0x1.71547652b82fep+0;

static inline double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
static inline double nearest(double x) { return __builtin_roundeven(x); }
static inline uint64_t bitsOf(double x) { return __builtin_bit_cast(uint64_t, x); }
static inline double ofBits(uint64_t x) { return __builtin_bit_cast(double, x); }

/* x * 2^n for |n| < 2100. */
static double scale(double x, int64_t n) {
  int64_t half = n / 2;
  return x * ofBits((uint64_t)(1023 + half) << 52) * ofBits((uint64_t)(1023 + n - half) << 52);
}

/* 1 / n! */
static const double kInverseFactorial[] = {1.0,
                                           1.0,
                                           1.0 / 2,
                                           1.0 / 6,
                                           1.0 / 24,
                                           1.0 / 120,
                                           1.0 / 720,
                                           1.0 / 5040,
                                           1.0 / 40320,
                                           1.0 / 362880,
                                           1.0 / 3628800,
                                           1.0 / 39916800,
                                           1.0 / 479001600,
                                           1.0 / 6227020800,
                                           1.0 / 87178291200};

/* e^r - 1 for |r| <= ln 2 / 2: Taylor's series, whose next term is below 1e-18 of the sum. */
static double expm1Reduced(double r) {
  double p = kInverseFactorial[14];
  for (int n = 13; n >= 2; --n)
    p = fma(p, r, kInverseFactorial[n]);
  return fma(p * r, r, r);
}

/* e^(high + low), low being tiny. */
static double expSum(double high, double low) {
  if (high != high)
    return high;
  if (high > 710.0)
    return kInfinity;
  if (high < -746.0)
    return 0.0;
  double n = nearest(high * kLog2E);
  double r = fma(n, -kLn2High, high); /* exact */
  r += fma(n, -kLn2Low, low);
  return scale(1.0 + expm1Reduced(r), (int64_t)n);
}

EXPORT double kvpc_prim_f64_exp(double x) { return expSum(x, 0.0); }

EXPORT double kvpc_prim_f64_exp2(double x) {
  if (x != x)
    return x;
  if (x > 1025.0)
    return kInfinity;
  if (x < -1076.0)
    return 0.0;
  double n = nearest(x);
  return scale(1.0 + expm1Reduced((x - n) * 0x1.62e42fefa39efp-1), (int64_t)n);
}

EXPORT double kvpc_prim_f64_expm1(double x) {
  if (x > -0.34 && x < 0.34)
    return x == 0.0 ? x : expm1Reduced(x);
  return expSum(x, 0.0) - 1.0;
}

typedef struct {
  double high, low;
} DoubleDouble;

/* a + b for |a| >= |b|. */
static inline DoubleDouble sum(double a, double b) {
  double high = a + b;
  return (DoubleDouble){high, b - (high - a)};
}

/* log(x + low) for x > 0. `low` counts only near 1, where the logarithm is small. */
static DoubleDouble logSum(double x, double low) {
  int64_t exponent = 0;
  if (x < 0x1p-1022) {
    x *= 0x1p54;
    exponent = -54;
  }
  uint64_t bits = bitsOf(x);
  int64_t shift = (int64_t)(bits - 0x3fe6a09e667f3bcdull) >> 52; /* m in [sqrt 1/2, sqrt 2) */
  exponent += shift;
  double m = ofBits(bits - ((uint64_t)shift << 52));
  low = exponent ? 0.0 : low;
  /* log m = 2 atanh(s), s = (m - 1) / (m + 1), with the error of the division kept. */
  DoubleDouble above = sum(m - 1.0, low);
  DoubleDouble below = m > 1.0 ? sum(m, 1.0) : sum(1.0, m);
  below.low += low;
  double s = above.high / below.high;
  double sLow = (fma(-s, below.high, above.high) + (above.low - s * below.low)) / below.high;
  double q = s * s, p = 1.0 / 25;
  for (int n = 23; n >= 3; n -= 2)
    p = fma(p, q, 1.0 / n);
  /* 2 s + 2 sLow + 2 s^3 (1/3 + ...): the third is a hundredth of the first, so double does. */
  DoubleDouble mantissa = sum(2.0 * s, fma(2.0 * s * q, p, 2.0 * sLow));
  if (exponent == 0)
    return mantissa;
  DoubleDouble whole = sum((double)exponent * kLn2High, mantissa.high);
  return sum(whole.high, whole.low + (mantissa.low + (double)exponent * kLn2Low));
}

/* What the logarithms answer outside the positive numbers. */
static double logSpecial(double x) {
  if (x == 0.0)
    return -kInfinity;
  return x < 0.0 ? __builtin_nan("") : x; /* +inf and NaN */
}
static inline int isPositiveFinite(double x) { return x > 0.0 && x < kInfinity; }

EXPORT double kvpc_prim_f64_log(double x) {
  return isPositiveFinite(x) ? logSum(x, 0.0).high : logSpecial(x);
}

EXPORT double kvpc_prim_f64_log2(double x) {
  if (!isPositiveFinite(x))
    return logSpecial(x);
  DoubleDouble l = logSum(x, 0.0);
  return fma(l.high, kLog2E, fma(l.high, 0x1.777d0ffda0d24p-56, l.low * kLog2E));
}

EXPORT double kvpc_prim_f64_log10(double x) {
  if (!isPositiveFinite(x))
    return logSpecial(x);
  DoubleDouble l = logSum(x, 0.0);
  return fma(l.high, 0x1.bcb7b1526e50ep-2,
             fma(l.high, 0x1.95355baaafad3p-57, l.low * 0.4342944819));
}

EXPORT double kvpc_prim_f64_log1p(double x) {
  if (x == 0.0 || !(x > -1.0 && x < kInfinity))
    return x == 0.0 ? x : logSpecial(1.0 + x);
  double high = 1.0 + x;
  double low = x > 1.0 ? 1.0 - (high - x) : x - (high - 1.0);
  return logSum(high, low).high;
}

EXPORT double kvpc_prim_f64_pow(double x, double y) {
  if (y == 0.0 || x == 1.0)
    return 1.0;
  if (x != x || y != y)
    return x + y;
  double magnitude = __builtin_fabs(x);
  int whole = __builtin_trunc(y) == y;
  int odd = whole && __builtin_trunc(y * 0.5) != y * 0.5;
  double sign = odd && bitsOf(x) >> 63 ? -1.0 : 1.0;
  if (__builtin_fabs(y) == kInfinity) {
    if (magnitude == 1.0)
      return 1.0;
    return (magnitude > 1.0) == (y > 0.0) ? kInfinity : 0.0;
  }
  if (magnitude == 0.0 || magnitude == kInfinity)
    return sign * ((magnitude == 0.0) == (y > 0.0) ? 0.0 : kInfinity);
  if (x < 0.0 && !whole)
    return __builtin_nan("");
  DoubleDouble l = logSum(magnitude, 0.0);
  double high = l.high * y;
  if (!(high > -1000.0 && high < 1000.0))
    return sign * (high > 0.0 ? kInfinity : 0.0);
  return sign * expSum(high, fma(l.high, y, -high) + l.low * y);
}

/* fmod of finite numbers that are not negative, y > 0: exact. */
static double remainderOf(double x, double y) {
  if (y < 0x1p-1022) { /* denormal: its exponent says little */
    x = remainderOf(x, y * 0x1p60);
    return remainderOf(x * 0x1p60, y * 0x1p60) * 0x1p-60;
  }
  while (x >= y) {
    int64_t n = (int64_t)(bitsOf(x) >> 52) - (int64_t)(bitsOf(y) >> 52);
    double part = scale(y, n);
    x -= part > x ? scale(y, n - 1) : part;
  }
  return x;
}

/* x less a multiple of y, of y's sign or 0, as % of Python: one rounding. */
EXPORT double kvpc_prim_f64_mod(double x, double y) {
  double dividend = __builtin_fabs(x), divisor = __builtin_fabs(y);
  if (!(dividend < kInfinity) || !(divisor > 0.0))
    return __builtin_nan("");
  double r = divisor == kInfinity ? x : __builtin_copysign(remainderOf(dividend, divisor), x);
  return r != 0.0 && (r < 0.0) != (y < 0.0) ? r + y : r;
}

EXPORT double kvpc_prim_f64_tanh(double x) {
  double a = __builtin_fabs(x), q = x * x;
  if (!(a >= 0.5)) {
    /* Lambert's continued fraction; NaN passes. */
    double f = 19.0;
    for (int n = 17; n >= 1; n -= 2)
      f = n + q / f;
    return x / f;
  }
  return __builtin_copysign(1.0 - 2.0 / (expSum(2.0 * a, 0.0) + 1.0), x);
}

EXPORT double kvpc_prim_f64_erf(double x) {
  double a = __builtin_fabs(x);
  if (a >= 2.5) {
    /* 1 - erfc, by its continued fraction: x + 1/2 / (x + 1 / (x + 3/2 / (x + ...))). */
    double f = a;
    for (int n = 60; n >= 1; --n)
      f = a + 0.5 * n / f;
    double complement = a > 6.0 ? 0.0 : expSum(-a * a, 0.0) / f * 0x1.20dd750429b6dp-1;
    return __builtin_copysign(1.0 - complement, x);
  }
  /* 2 / sqrt(pi) * exp(-x^2) * sum of 2^n x^(2n+1) / (2n+1)!!: no term is negative. */
  double q = x * x, term = 1.0, series = 1.0;
  for (int n = 1; n < 200 && term > 1e-18 * series; ++n) {
    term *= 2.0 * q / (2 * n + 1);
    series += term;
  }
  return 0x1.20dd750429b6dp+0 * x * series * expSum(-q, -fma(x, x, -q));
}

/* r = x - n * pi / 2, |r| <= pi / 4, and n modulo 4. Full accuracy below 2^30. */
static int reduce(double x, double *r) {
  double n = nearest(x * 0x1.45f306dc9c883p-1);
  *r = fma(-n, 0x1.921fb54442d18p+0, x);
  *r = fma(-n, 0x1.1a62633145c07p-54, *r);
  return (int)((int64_t)n & 3);
}

static double sinReduced(double r) {
  double q = r * r, p = 1.0;
  for (int n = 20; n >= 2; n -= 2)
    p = 1.0 - p * q / (n * (n + 1));
  return r * p;
}
static double cosReduced(double r) {
  double q = r * r, p = 1.0;
  for (int n = 19; n >= 1; n -= 2)
    p = 1.0 - p * q / (n * (n + 1));
  return p;
}

static double wave(double x, int quarter) {
  if (x == 0.0 && !quarter)
    return x;
  if (!(__builtin_fabs(x) < 0x1p52))
    return __builtin_nan("");
  double r;
  int n = (reduce(x, &r) + quarter) & 3;
  double y = n & 1 ? cosReduced(r) : sinReduced(r);
  return n & 2 ? -y : y;
}

EXPORT double kvpc_prim_f64_sin(double x) { return wave(x, 0); }
EXPORT double kvpc_prim_f64_cos(double x) { return wave(x, 1); }
