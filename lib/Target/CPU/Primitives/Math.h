//===- Math.h - elementary functions of float and of vectors ---------------===//
//
// Every function is one template over float and Lanes: no branches, the same operations and hence
// the same bits for both. Coefficients are minimax fits (those of exp, log and erf are N. Juffa's);
// the errors in brackets were measured against double over all or many arguments.
//
//===----------------------------------------------------------------------===//
#ifndef KVPC_TARGET_CPU_PRIMITIVES_MATH_H
#define KVPC_TARGET_CPU_PRIMITIVES_MATH_H

#include "Vector.h"

namespace kvpc::prim {

constexpr float kInfinity = __builtin_inff();

template <typename F>
struct FormsOf;
template <>
struct FormsOf<float> {
  typedef uint32_t Word;
  typedef double Double;
  typedef uint64_t LongWord;
};
template <>
struct FormsOf<Lanes> {
  typedef Words Word;
  typedef Doubles Double;
  typedef LongWords LongWord;
};

KVPC_INLINE double toDouble(float x) { return x; }
KVPC_INLINE Doubles toDouble(Lanes x) { return __builtin_convertvector(x, Doubles); }
KVPC_INLINE float toFloat(double x) { return float(x); }
KVPC_INLINE Lanes toFloat(Doubles x) { return __builtin_convertvector(x, Lanes); }
KVPC_INLINE float signedToFloat(uint32_t x) { return float(int32_t(x)); }
KVPC_INLINE Lanes signedToFloat(Words x) {
  return __builtin_convertvector(__builtin_convertvector(x, Ints), Lanes);
}
KVPC_INLINE double signedToDouble(uint64_t x) { return double(int64_t(x)); }
KVPC_INLINE Doubles signedToDouble(LongWords x) {
  return __builtin_convertvector(__builtin_convertvector(x, Longs), Doubles);
}
KVPC_INLINE bool widen(bool x) { return x; }
KVPC_INLINE Longs widen(Ints x) { return __builtin_convertvector(x, Longs); }

template <typename F>
KVPC_INLINE F fma(F a, F b, F c) {
  return __builtin_elementwise_fma(a, b, c);
}
template <typename F>
KVPC_INLINE F magnitude(F x) {
  return __builtin_elementwise_abs(x);
}
template <typename F>
KVPC_INLINE F withSign(F x, F sign) {
  using W = typename FormsOf<F>::Word;
  W bits =
      (__builtin_bit_cast(W, x) & W(0x7fffffffu)) | (__builtin_bit_cast(W, sign) & W(0x80000000u));
  return __builtin_bit_cast(F, bits);
}

/// p = e^r for |r| <= ln 2 / 2.
template <typename F>
KVPC_INLINE F expReduced(F r) {
  F p = F(0x1.694000p-10f);
  p = fma(p, r, F(0x1.125edcp-7f));
  p = fma(p, r, F(0x1.555b5ap-5f));
  p = fma(p, r, F(0x1.555450p-3f));
  p = fma(p, r, F(0x1.fffff6p-2f));
  p = fma(p, r, F(1.0f));
  return fma(p, r, F(1.0f));
}

/// Adding 1.5 * 2^23 leaves the nearest integer in the low bits; the same for double.
constexpr float kRound = 12582912.0f;
constexpr double kRoundDouble = 6755399441055744.0;

/// p * 2^n, n in the low bits of `rounded`, for results that are normal numbers.
template <typename F>
KVPC_INLINE F scaleBy(F p, F rounded) {
  using W = typename FormsOf<F>::Word;
  return __builtin_bit_cast(F, __builtin_bit_cast(W, p) + (__builtin_bit_cast(W, rounded) << 23));
}

/// [0.9 ulp] 0 where the result is below the smallest normal number.
template <typename F>
KVPC_INLINE F exp(F x) {
  F rounded = fma(x, F(0x1.715476p+0f), F(kRound)), n = rounded - F(kRound);
  F r = fma(n, F(-0x1.62e400p-1f), x);
  r = fma(n, F(-0x1.7f7d1cp-20f), r);
  F y = scaleBy(expReduced(r), rounded);
  y = x > F(88.72283f) ? F(kInfinity) : y;
  y = x < F(-87.33654f) ? F(0.0f) : y;
  return x != x ? x : y;
}

/// [0.9 ulp]
template <typename F>
KVPC_INLINE F exp2(F x) {
  F rounded = x + F(kRound), n = rounded - F(kRound);
  F y = scaleBy(expReduced((x - n) * F(0x1.62e430p-1f)), rounded);
  y = x >= F(128.0f) ? F(kInfinity) : y;
  y = x < F(-126.0f) ? F(0.0f) : y;
  return x != x ? x : y;
}

/// [0.9 ulp]
template <typename F>
KVPC_INLINE F log(F x) {
  using W = typename FormsOf<F>::Word;
  auto small = x < F(0x1p-126f);
  F a = small ? x * F(8388608.0f) : x, i = small ? F(-23.0f) : F(0.0f);
  W exponent = (__builtin_bit_cast(W, a) - W(0x3f2aaaabu)) & W(0xff800000u);
  F f = __builtin_bit_cast(F, __builtin_bit_cast(W, a) - exponent) - F(1.0f), s = f * f;
  i = fma(signedToFloat(exponent), F(0x1p-23f), i);
  F r = fma(F(-0.130187988f), f, F(0.140889585f));
  F t = fma(F(-0.121489584f), f, F(0.139809534f));
  r = fma(r, s, t);
  r = fma(r, f, F(-0.166845024f));
  r = fma(r, f, F(0.200121149f));
  r = fma(r, f, F(-0.249996364f));
  r = fma(r, f, F(0.333331943f));
  r = fma(r, f, F(-0.5f));
  r = fma(r, s, f);
  r = fma(i, F(0.693147182f), r);
  r = x == F(kInfinity) ? x : r;
  r = x == F(0.0f) ? F(-kInfinity) : r;
  r = x < F(0.0f) ? F(__builtin_nanf("")) : r;
  return x != x ? x : r;
}

/// [1.3 ulp]
template <typename F>
KVPC_INLINE F tanh(F x) {
  F a = magnitude(x), s = x * x;
  F large = F(1.0f) - F(2.0f) / (exp(a + a) + F(1.0f));
  F p = F(-0x1.825856p-8f);
  p = fma(p, s, F(0x1.54b8a0p-6f));
  p = fma(p, s, F(-0x1.b898dep-5f));
  p = fma(p, s, F(0x1.1109aep-3f));
  p = fma(p, s, F(-0x1.55553ep-2f));
  F small = fma(p * s, x, x);
  return withSign(a < F(0.6f) ? small : large, x);
}

/// [2.1 ulp] 0 below about -88.7.
template <typename F>
KVPC_INLINE F sigmoid(F x) {
  return F(1.0f) / (F(1.0f) + exp(-x));
}

/// [1.0 ulp]
template <typename F>
KVPC_INLINE F erf(F x) {
  F t = magnitude(x), s = x * x;
  t = t > F(4.0f) ? F(4.0f) : t;
  F l = fma(F(-1.72853470e-5f), t, F(3.83197126e-4f)), s4 = t * t;
  F u = fma(F(-3.88396438e-3f), t, F(2.42546219e-2f));
  l = fma(l, s4, u);
  l = fma(l, t, F(-1.06777877e-1f));
  l = fma(l, t, F(-6.34846687e-1f));
  l = fma(l, t, F(-1.28717512e-1f));
  l = fma(l, t, -t);
  F large = withSign(F(1.0f) - exp(l), x);
  F r = F(-5.96761703e-4f);
  r = fma(r, s, F(4.99119423e-3f));
  r = fma(r, s, F(-2.67681349e-2f));
  r = fma(r, s, F(1.12819925e-1f));
  r = fma(r, s, F(-3.76125336e-1f));
  r = fma(r, s, F(1.28379166e-1f));
  r = fma(r, x, x);
  r = t > F(0.927734375f) ? large : r;
  return x != x ? x : r;
}

template <typename F>
KVPC_INLINE F gelu(F x) { // of -inf: NaN, as torch's
  return x * F(0.5f) * (F(1.0f) + erf(x * F(0.707106781f)));
}

/// log2 |x| to about 1e-14, with numbers in place of infinities so that 0 * y is 0.
template <typename F, typename D = typename FormsOf<F>::Double>
KVPC_INLINE D logTwo(F x) {
  using L = typename FormsOf<F>::LongWord;
  F a = magnitude(x);
  L b = __builtin_bit_cast(L, toDouble(a));
  L exponent = (b - L(0x3fe6a09e667f3bcdull)) & L(0xfff0000000000000ull);
  D m = __builtin_bit_cast(D, b - exponent), s = (m - D(1.0)) / (m + D(1.0)), q = s * s;
  D p = D(1.0 / 15);
  p = fma(p, q, D(1.0 / 13));
  p = fma(p, q, D(1.0 / 11));
  p = fma(p, q, D(1.0 / 9));
  p = fma(p, q, D(1.0 / 7));
  p = fma(p, q, D(1.0 / 5));
  p = fma(p, q, D(1.0 / 3));
  p = fma(p, q, D(1.0));
  // The exponent stands in the upper 12 bits.
  D whole = signedToDouble(exponent) * D(0x1p-52);
  D y = fma(p * s, D(2.8853900817779268), whole); // 2 / ln 2
  y = widen(a == F(kInfinity)) ? D(1e300) : y;
  return widen(a == F(0.0f)) ? D(-1e300) : y;
}

/// [0.6 ulp] As the C library's powf, denormal results included.
template <typename F>
KVPC_INLINE F pow(F x, F y) {
  using D = typename FormsOf<F>::Double;
  using L = typename FormsOf<F>::LongWord;
  D e = logTwo(x) * toDouble(y);
  e = e > D(400.0) ? D(400.0) : e;
  e = e < D(-400.0) ? D(-400.0) : e;
  D rounded = e + D(kRoundDouble), r = (e - (rounded - D(kRoundDouble))) * D(0.6931471805599453);
  D p = D(1.0 / 39916800);
  p = fma(p, r, D(1.0 / 3628800));
  p = fma(p, r, D(1.0 / 362880));
  p = fma(p, r, D(1.0 / 40320));
  p = fma(p, r, D(1.0 / 5040));
  p = fma(p, r, D(1.0 / 720));
  p = fma(p, r, D(1.0 / 120));
  p = fma(p, r, D(1.0 / 24));
  p = fma(p, r, D(1.0 / 6));
  p = fma(p, r, D(0.5));
  p = fma(p, r, D(1.0));
  p = fma(p, r, D(1.0));
  F z = toFloat(
      __builtin_bit_cast(D, __builtin_bit_cast(L, p) + (__builtin_bit_cast(L, rounded) << 52)));

  // A negative base (or -0): odd exponents give its sign, broken ones NaN.
  using W = typename FormsOf<F>::Word;
  F half = y * F(0.5f);
  auto whole = __builtin_elementwise_trunc(y) == y;
  auto odd = whole & (__builtin_elementwise_trunc(half) != half);
  auto negative = (__builtin_bit_cast(W, x) & W(0x80000000u)) != W(0u);
  z = (odd & negative) ? -z : z;
  z = ((x < F(0.0f)) & (x != F(-kInfinity)) & !whole) ? F(__builtin_nanf("")) : z;
  z = ((x != x) | (y != y)) ? x + y : z;
  // One to any power; minus one to an infinite one.
  z = ((x == F(1.0f)) | ((x == F(-1.0f)) & (magnitude(y) == F(kInfinity)))) ? F(1.0f) : z;
  return y == F(0.0f) ? F(1.0f) : z;
}

KVPC_INLINE bool allBelow(double x, double limit) { return x < limit; }
KVPC_INLINE bool allBelow(Doubles x, double limit) {
  bool all = true;
  for (unsigned i = 0; i < sizeof(Doubles) / sizeof(double); ++i)
    all &= x[i] < limit;
  return all;
}

/// [0.5 ulp] x less a multiple of y, of y's sign or 0, as % of Python and torch.remainder.
template <typename F>
KVPC_INLINE F mod(F x, F y) {
  using D = typename FormsOf<F>::Double;
  D r = toDouble(x), d = toDouble(y);
  // What a turn leaves is exact in double, and its quotient by d at most 2^-52 of the turn's: of
  // the quotients of two floats, below 2^277, the seventh turn leaves nothing.
  for (int turn = 0; turn < 7; ++turn) {
    D q = __builtin_elementwise_trunc(r / d);
    r = q == D(0.0) ? r : fma(-q, d, r); // also where d is infinite
    if (allBelow(magnitude(q), 0x1p52))
      break;
  }
  auto other = (r < D(0.0)) != (d < D(0.0));
  return toFloat(((r != D(0.0)) & other) ? r + d : r);
}

} // namespace kvpc::prim

#endif
