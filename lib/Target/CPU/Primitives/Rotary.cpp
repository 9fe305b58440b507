//===- Rotary.cpp - tables of the model's rotary embedding ----------------===//
//
// Angles are products in double, brought to a quarter turn about 0 by two fused steps (right to the
// last bit of a double for angles below 2^50), and cosine and sine Taylor's series of double: what
// is rounded to float at the end is the function of the product.
//
//===----------------------------------------------------------------------===//
#include "Math.h"
#include "Primitives.h"

using namespace kvpc::prim;

namespace {

KVPC_INLINE int64_t toInt(double x) { return int64_t(x); }
KVPC_INLINE Longs toInt(Doubles x) { return __builtin_convertvector(x, Longs); }
KVPC_INLINE double choose(bool condition, double a, double b) { return condition ? a : b; }
KVPC_INLINE Doubles choose(Longs condition, Doubles a, Doubles b) { return condition ? a : b; }

/// sin(r) / r and cos(r) of q = r^2, |r| <= pi / 4: the next terms are below 1e-17.
template <typename D>
KVPC_INLINE D sine(D q) {
  D p = D(-1.0 / 1307674368000.0);
  p = fma(p, q, D(1.0 / 6227020800.0));
  p = fma(p, q, D(-1.0 / 39916800.0));
  p = fma(p, q, D(1.0 / 362880.0));
  p = fma(p, q, D(-1.0 / 5040.0));
  p = fma(p, q, D(1.0 / 120.0));
  p = fma(p, q, D(-1.0 / 6.0));
  return fma(p, q, D(1.0));
}
template <typename D>
KVPC_INLINE D cosine(D q) {
  D p = D(1.0 / 20922789888000.0);
  p = fma(p, q, D(-1.0 / 87178291200.0));
  p = fma(p, q, D(1.0 / 479001600.0));
  p = fma(p, q, D(-1.0 / 3628800.0));
  p = fma(p, q, D(1.0 / 40320.0));
  p = fma(p, q, D(-1.0 / 720.0));
  p = fma(p, q, D(1.0 / 24.0));
  p = fma(p, q, D(-0.5));
  return fma(p, q, D(1.0));
}

struct Table {
  int64_t kind;
  double position;
  const double *frequencies;
  int64_t width, interleaved;
  double scaling;

  bool isSine() const { return kind & 1; }
  double scale() const { return kind & 2 ? 1 / scaling : scaling; }
  int64_t half() const { return width / 2; }

  /// The frequency of a channel's pair; 0 past the width.
  double frequency(int64_t channel) const {
    if (channel >= width)
      return 0;
    return frequencies[interleaved ? channel / 2 : channel < half() ? channel : channel - half()];
  }
  /// What the wave of a channel is multiplied by.
  double factor(int64_t channel) const {
    if (channel >= width)
      return isSine() ? 0 : 1;
    bool first = interleaved ? channel % 2 == 0 : channel < half();
    return isSine() && first ? -scale() : scale();
  }

  /// Of the channels from `first` on.
  struct Channels {
    Doubles frequency, factor;
  };
  Channels lanes(int64_t first) const {
    double frequencies[kLanes], factors[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      frequencies[i] = frequency(first + i);
      factors[i] = factor(first + i);
    }
    return {load<Doubles>(frequencies), load<Doubles>(factors)};
  }

  template <typename D, typename L>
  KVPC_ALWAYS_INLINE D wave(D frequency, D factor, L) const {
    D x = D(position) * frequency;
    D n = __builtin_elementwise_roundeven(x * D(0x1.45f306dc9c883p-1));
    D r = fma(-n, D(0x1.921fb54442d18p+0), x);
    r = fma(-n, D(0x1.1a62633145c07p-54), r);
    L quarter = toInt(n) + (isSine() ? 0 : 1);
    D q = r * r;
    D y = choose((quarter & 1) != 0, cosine(q), r * sine(q));
    return choose((quarter & 2) != 0, -y, y) * factor;
  }
};

} // namespace

extern "C" {

float kvpc_prim_rotary(int64_t kind, int64_t position, int64_t channel, const double *frequencies,
                       int64_t width, int64_t interleaved, double scaling) {
  Table table{kind,   double(kind & 2 ? -position : position), frequencies, width, interleaved,
              scaling};
  return float(table.wave(table.frequency(channel), table.factor(channel), int64_t(0)));
}

Lanes kvpc_prim_rotary_v(int64_t kind, int64_t position, int64_t first, const double *frequencies,
                         int64_t width, int64_t interleaved, double scaling) {
  Table table{kind,   double(kind & 2 ? -position : position), frequencies, width, interleaved,
              scaling};
  auto [frequency, factor] = table.lanes(first);
  return toFloat(table.wave(frequency, factor, Longs()));
}

void kvpc_prim_rotary_add(int64_t kind, int64_t position, int64_t channel,
                          const double *frequencies, int64_t width, int64_t interleaved,
                          double scaling, double *sums, int64_t count) {
  Table table{kind,   double(kind & 2 ? -position : position), frequencies, width, interleaved,
              scaling};
  int64_t done = 0;
  for (; done + kLanes <= count; done += kLanes) {
    auto [frequency, factor] = table.lanes(channel + done);
    Doubles wave = table.wave(frequency, factor, Longs());
    store(sums + done, load<Doubles>(sums + done) + wave);
  }
  for (; done < count; ++done)
    sums[done] +=
        table.wave(table.frequency(channel + done), table.factor(channel + done), int64_t(0));
}
}
