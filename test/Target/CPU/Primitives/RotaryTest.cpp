#include "Data.h"
#include "Vector.h"
#include <gtest/gtest.h>

using namespace kvpc::test;

extern "C" kvpc::prim::Lanes kvpc_prim_rotary_v(int64_t kind, int64_t position, int64_t first,
                                                const double *frequencies, int64_t width,
                                                int64_t interleaved, double scaling);

namespace {

const std::vector<double> kFrequencies = {1, 0.7, 0.31622776601683794, 0.1, 1e-3, 1.5e-7};
const int64_t kWidth = 12, kChannels = 20;

double wanted(int64_t kind, int64_t position, int64_t channel, bool interleaved, double scaling) {
  if (channel >= kWidth)
    return kind & 1 ? 0 : 1;
  bool first = interleaved ? channel % 2 == 0 : channel < kWidth / 2;
  double frequency = kFrequencies[interleaved ? channel / 2 : channel % (kWidth / 2)];
  double angle = double(kind & 2 ? -position : position) * frequency;
  double scale = kind & 2 ? 1 / scaling : scaling;
  return scale * (kind & 1 ? (first ? -std::sin(angle) : std::sin(angle)) : std::cos(angle));
}

TEST(Rotary, TheWaveOfTheProductRoundedOnce) {
  for (int64_t position : {0L, 1L, -1L, 77L, -4096L, 100000L, 131071L, 10000000L, -(1L << 40)})
    for (int64_t kind = 0; kind < 4; ++kind)
      for (bool interleaved : {false, true})
        for (int64_t c = 0; c < kChannels; ++c) {
          double x = wanted(kind, position, c, interleaved, 1.2);
          float got =
              kvpc_prim_rotary(kind, position, c, kFrequencies.data(), kWidth, interleaved, 1.2);
          // Half of a unit in the last place of the result, and what double leaves.
          double unit = std::nextafter(std::abs(float(x)), kInf) - std::abs(float(x));
          ASSERT_NEAR(got, x, 0.5 * unit + 4e-16) << position << " " << kind << " " << c;
        }
}

TEST(Rotary, LanesHaveTheBitsOfOne) {
  using kvpc::prim::kLanes;
  for (int64_t position : {0, 5, -300, 123456})
    for (int64_t kind = 0; kind < 4; ++kind)
      for (bool interleaved : {false, true})
        for (int64_t first : {0, 3, 8}) {
          auto lanes = kvpc_prim_rotary_v(kind, position, first, kFrequencies.data(), kWidth,
                                          interleaved, 0.9);
          for (int i = 0; i < kLanes; ++i)
            ASSERT_TRUE(
                sameBits(lanes[i], kvpc_prim_rotary(kind, position, first + i, kFrequencies.data(),
                                                    kWidth, interleaved, 0.9)));
        }
}

TEST(Rotary, SumsAreOfDouble) {
  for (int64_t count : {1, 7, 16, 20}) {
    std::vector<double> sums(count), exact(count);
    for (int64_t position = 100000; position < 100512; ++position) {
      kvpc_prim_rotary_add(1, position, 0, kFrequencies.data(), kWidth, 0, 1.1, sums.data(), count);
      for (int64_t c = 0; c < count; ++c)
        exact[c] += wanted(1, position, c, false, 1.1);
    }
    for (int64_t c = 0; c < count; ++c)
      ASSERT_NEAR(sums[c] / 512, exact[c] / 512, 1e-14) << c;
  }
}

} // namespace
