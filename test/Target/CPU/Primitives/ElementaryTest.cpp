#include "Data.h"
#include "Vector.h"
#include <gtest/gtest.h>

using namespace kvpc::test;
using kvpc::prim::Lanes, kvpc::prim::kLanes;

#define VECTOR_FORM(NAME) Lanes kvpc_prim_##NAME##_v(Lanes)
extern "C" {
VECTOR_FORM(exp);
VECTOR_FORM(exp2);
VECTOR_FORM(log);
VECTOR_FORM(tanh);
VECTOR_FORM(sigmoid);
VECTOR_FORM(erf);
VECTOR_FORM(gelu);
Lanes kvpc_prim_pow_v(Lanes, Lanes);
Lanes kvpc_prim_mod_v(Lanes, Lanes);
}

namespace {

float fromBits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

/// Distance to `exact` in units of the last place of a float of its size.
double ulps(float got, double exact) {
  if (std::isnan(exact))
    return std::isnan(got) ? 0 : 1e9;
  if (float(exact) == got)
    return 0;
  if (std::isinf(got) || std::isinf(float(exact)))
    return 1e9;
  double unit = std::ldexp(1.0, std::max(std::ilogb(exact), -126) - 23);
  return std::abs(got - exact) / unit;
}

struct Function {
  const char *name;
  float (*scalar)(float);
  Lanes (*vector)(Lanes);
  double (*exact)(double);
  double bound;
};

double exactSigmoid(double x) { return 1 / (1 + std::exp(-x)); }

const Function kFunctions[] = {
    {"exp", kvpc_prim_exp, kvpc_prim_exp_v, [](double x) { return std::exp(x); }, 1.0},
    {"exp2", kvpc_prim_exp2, kvpc_prim_exp2_v, [](double x) { return std::exp2(x); }, 1.0},
    {"log", kvpc_prim_log, kvpc_prim_log_v, [](double x) { return std::log(x); }, 1.0},
    {"tanh", kvpc_prim_tanh, kvpc_prim_tanh_v, [](double x) { return std::tanh(x); }, 1.4},
    {"sigmoid", kvpc_prim_sigmoid, kvpc_prim_sigmoid_v, exactSigmoid, 2.15},
    {"erf", kvpc_prim_erf, kvpc_prim_erf_v, [](double x) { return std::erf(x); }, 1.1},
};

TEST(Elementary, WithinTheBoundAndTheSameAsTheVectorForm) {
  for (const Function &f : kFunctions) {
    double worst = 0;
    float worstAt = 0;
    Lanes batch = 0.0f, result = 0.0f;
    for (uint64_t bits = 0; bits < (1ull << 32); bits += 1021 * kLanes) {
      for (int i = 0; i < kLanes; ++i)
        batch[i] = fromBits(uint32_t(bits + 1021 * i));
      result = f.vector(batch);
      for (int i = 0; i < kLanes; ++i) {
        float x = batch[i], got = f.scalar(x);
        if (!std::isnan(got))
          ASSERT_TRUE(sameBits(got, result[i])) << f.name << " " << x;
        double exact = f.exact(x);
        // Results below the smallest normal number are 0.
        if (std::abs(exact) < 0x1p-126 && std::abs(got) <= 0x1p-126)
          continue;
        double error = ulps(got, exact);
        if (error > worst)
          worst = error, worstAt = x;
      }
    }
    EXPECT_LE(worst, f.bound) << f.name << " at " << worstAt;
    RecordProperty(f.name, std::to_string(worst));
  }
}

TEST(Elementary, ExactWhereItMatters) {
  EXPECT_EQ(kvpc_prim_exp(0), 1.0f);
  EXPECT_EQ(kvpc_prim_exp(-kInf), 0.0f);
  EXPECT_EQ(kvpc_prim_exp(kInf), kInf);
  EXPECT_EQ(kvpc_prim_exp(89), kInf);
  EXPECT_EQ(kvpc_prim_exp(-1000), 0.0f);
  for (int i = -126; i < 128; ++i)
    EXPECT_EQ(kvpc_prim_exp2(float(i)), std::ldexp(1.0f, i));
  EXPECT_EQ(kvpc_prim_exp2(-kInf), 0.0f);
  EXPECT_EQ(kvpc_prim_log(0), -kInf);
  EXPECT_EQ(kvpc_prim_log(1), 0.0f);
  EXPECT_EQ(kvpc_prim_log(kInf), kInf);
  EXPECT_TRUE(std::isnan(kvpc_prim_log(-1)));
  EXPECT_TRUE(sameBits(kvpc_prim_tanh(-0.0f), -0.0f));
  EXPECT_TRUE(sameBits(kvpc_prim_erf(-0.0f), -0.0f));
  EXPECT_EQ(kvpc_prim_tanh(kInf), 1.0f);
  EXPECT_EQ(kvpc_prim_tanh(-kInf), -1.0f);
  EXPECT_EQ(kvpc_prim_sigmoid(0), 0.5f);
  EXPECT_EQ(kvpc_prim_sigmoid(kInf), 1.0f);
  EXPECT_EQ(kvpc_prim_sigmoid(-kInf), 0.0f);
  EXPECT_EQ(kvpc_prim_erf(kInf), 1.0f);
  EXPECT_EQ(kvpc_prim_erf(-kInf), -1.0f);
  EXPECT_EQ(kvpc_prim_gelu(0), 0.0f);
  EXPECT_EQ(kvpc_prim_gelu(kInf), kInf);
  EXPECT_TRUE(std::isnan(kvpc_prim_gelu(-kInf))); // as torch's
  for (const Function &f : kFunctions)
    EXPECT_TRUE(std::isnan(f.scalar(kNan))) << f.name;
  EXPECT_TRUE(std::isnan(kvpc_prim_gelu(kNan)));
}

TEST(Elementary, GeluIsTorchs) {
  for (float x = -9; x < 9; x += 0.00137f) {
    double exact = 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    ASSERT_NEAR(kvpc_prim_gelu(x), exact, 2e-7 * std::max(1.0f, std::abs(x))) << x;
    ASSERT_TRUE(sameBits(kvpc_prim_gelu_v(Lanes(x))[0], kvpc_prim_gelu(x)));
  }
}

/// As torch.remainder: exact before it is made of the divisor's sign.
float remainderOf(float x, float y) {
  float r = std::fmod(x, y);
  return r != 0 && (r < 0) != (y < 0) ? r + y : r;
}

TEST(Elementary, Mod) {
  std::vector<float> special = {0.0f,  -0.0f, 1.0f,   -1.0f, 7.5f,  0.1f,    -0.7f,      kInf,
                                -kInf, kNan,  1e-45f, 3e38f, 1e20f, -1e-40f, 16777217.0f};
  auto check = [](float x, float y) {
    float got = kvpc_prim_mod(x, y), expected = remainderOf(x, y);
    ASSERT_TRUE(got == expected || (std::isnan(got) && std::isnan(expected)))
        << x << " % " << y << ": " << got << " for " << expected;
    Lanes lanes = kvpc_prim_mod_v(Lanes(x), Lanes(y));
    ASSERT_TRUE(std::isnan(got) ? std::isnan(lanes[0]) : sameBits(lanes[kLanes - 1], got))
        << x << " % " << y;
  };
  for (float x : special)
    for (float y : special)
      check(x, y);
  std::mt19937 engine(2);
  for (int i = 0; i < 300000; ++i)
    check(fromBits(engine()), fromBits(engine()));
  for (int i = 0; i < 100000; ++i) // whole quotients, and nearly so
    check(float(i % 317) * (0.1f + float(i % 7)), 0.1f + float(i % 7));
}

TEST(Elementary, PowIsTheCLibrarys) {
  std::vector<float> special = {0.0f, -0.0f,  1.0f,  -1.0f,      2.0f,        -2.0f,
                                0.5f, -0.5f,  3.0f,  -3.0f,      kInf,        -kInf,
                                kNan, 1e-45f, 3e38f, -1e-40f,    16777216.0f, -16777217.0f,
                                2.5f, -2.5f,  1e9f,  8388609.0f, 1.0000001f};
  for (float x : special)
    for (float y : special) {
      float got = kvpc_prim_pow(x, y), expected = std::pow(x, y);
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(got)) << x << " ** " << y;
        continue;
      }
      ASSERT_EQ(std::signbit(got), std::signbit(expected)) << x << " ** " << y;
      ASSERT_LE(ulps(got, std::pow(double(x), double(y))), 0.6) << x << " ** " << y;
    }
  std::mt19937 engine(1);
  double worst = 0;
  for (int i = 0; i < 300000; ++i) {
    float x = fromBits(engine() & 0x7fffffff);
    float y = std::uniform_real_distribution<float>(-4, 4)(engine);
    if (std::isnan(x))
      continue;
    float got = kvpc_prim_pow(x, y);
    worst = std::max(worst, ulps(got, std::pow(double(x), double(y))));
    ASSERT_TRUE(sameBits(kvpc_prim_pow_v(Lanes(x), Lanes(y))[kLanes - 1], got));
  }
  EXPECT_LE(worst, 0.6);
}

} // namespace
