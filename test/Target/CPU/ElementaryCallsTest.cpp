// Elementary functions as math operations, against the C library in a wider type.
#include "Compiled.h"

#include "llvm/Support/FormatVariadic.h"

#include <cmath>
#include <limits>
#include <vector>

using namespace kvpc;
using namespace kvpc::test;

namespace {

/// y[i] = op(x[i], z[i]) for n values, as `lanes` at a time; 1 is a scalar.
std::string program(llvm::StringRef name, llvm::StringRef op, bool two, int lanes,
                    llvm::StringRef element) {
  std::string type = lanes == 1 ? element.str() : llvm::formatv("vector<{0}x{1}>", lanes, element);
  std::string operands = two ? "%a, %b" : "%a";
  return llvm::formatv(R"(
func.func @{0}(%x: !llvm.ptr, %z: !llvm.ptr, %y: !llvm.ptr, %n: i64) attributes {{kvpc.export} {{
  %zero = arith.constant 0 : i64
  %step = arith.constant {2} : i64
  scf.for %i = %zero to %n step %step : i64 {{
    %px = llvm.getelementptr %x[%i] : (!llvm.ptr, i64) -> !llvm.ptr, {5}
    %pz = llvm.getelementptr %z[%i] : (!llvm.ptr, i64) -> !llvm.ptr, {5}
    %py = llvm.getelementptr %y[%i] : (!llvm.ptr, i64) -> !llvm.ptr, {5}
    %a = llvm.load %px : !llvm.ptr -> {3}
    %b = llvm.load %pz : !llvm.ptr -> {3}
    %c = {1} {4} : {3}
    llvm.store %c, %py : {3}, !llvm.ptr
  }
  return
}
)",
                       name, op, lanes, type, operands, element);
}

template <typename T>
using Kernel = void(const T *, const T *, T *, int64_t);

template <typename T>
std::vector<T> arguments(bool positive, double limit) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  std::vector<T> x = {0,  T(-0.0), 1,        -1,        T(0.5), T(1e-30), T(-1e-30), 2,  -2,
                      10, -10,     infinity, -infinity, NAN,    T(1e-42), 88,        100};
  if (positive)
    for (T &v : x)
      v = std::fabs(v);
  for (int i = 0; i < 1000; ++i) {
    double u = std::fmod(i * 0.6180339887498949, 1.0), w = std::exp2(40 * (u - 0.8));
    double v = i % 2 ? u * limit : std::fmin(w, limit);
    x.push_back(T(positive || i % 4 < 2 ? v : -v));
  }
  while (x.size() % 240)
    x.push_back(1);
  return x;
}

/// Wide: the type of the reference.
template <typename T, typename Wide>
void compare(llvm::StringRef op, bool two, const std::vector<T> &x, const std::vector<T> &z,
             Wide (*reference)(Wide, Wide), double relative, llvm::ArrayRef<int> lanes,
             llvm::StringRef element) {
  std::string source;
  for (int lane : lanes)
    source += program("f" + std::to_string(lane), op, two, lane, element);
  Library library(source);
  std::vector<T> first;
  for (int lane : lanes) {
    auto kernel = library.find<Kernel<T>>(("f" + std::to_string(lane)).c_str());
    ASSERT_TRUE(kernel);
    std::vector<T> y(x.size(), T(42));
    kernel(x.data(), z.data(), y.data(), int64_t(x.size()));
    for (size_t i = 0; i < x.size(); ++i) {
      Wide expected = reference(x[i], z[i]);
      if (std::isnan(expected)) {
        EXPECT_TRUE(std::isnan(y[i])) << op.str() << lane << " of " << x[i] << " is " << y[i];
      } else if (T(expected) == y[i]) {
        EXPECT_EQ(std::signbit(expected), std::signbit(y[i])) << op.str() << " of " << x[i];
      } else {
        // Results below the normal numbers may be 0 in f32.
        Wide floor = std::numeric_limits<T>::min();
        EXPECT_LE(std::fabs(y[i] - expected), relative * std::fabs(expected) + floor)
            << op.str() << lane << " of " << x[i] << ", " << z[i] << " is " << y[i] << ", not "
            << double(expected);
      }
    }
    // All forms give the same bits.
    if (first.empty())
      first = y;
    EXPECT_EQ(memcmp(first.data(), y.data(), y.size() * sizeof(T)), 0) << op.str() << lane;
  }
}

#define REFERENCE(NAME, EXPRESSION) +[](Wide x, Wide z) -> Wide { return EXPRESSION; }

TEST(ElementaryCalls, Single) {
  using Wide = double;
  auto check = [](llvm::StringRef op, Wide (*reference)(Wide, Wide), double limit,
                  bool positive = false) {
    auto x = arguments<float>(positive, limit);
    compare<float, Wide>(op, false, x, x, reference, 2.5e-7, {1, 5, 8, 16, 20}, "f32");
  };
  check("math.exp", REFERENCE(exp, std::exp(x)), 87);
  check("math.exp2", REFERENCE(exp2, std::exp2(x)), 125);
  check("math.log", REFERENCE(log, std::log(x)), 1e30);
  check("math.log2", REFERENCE(log2, std::log2(x)), 1e30, true);
  check("math.log1p", REFERENCE(log1p, std::log1p(x)), 1e3, true);
  check("math.expm1", REFERENCE(expm1, std::expm1(x)), 80);
  check("math.tanh", REFERENCE(tanh, std::tanh(x)), 12);
  check("math.erf", REFERENCE(erf, std::erf(x)), 6);
  check("math.sin", REFERENCE(sin, std::sin(x)), 1e6);
  check("math.cos", REFERENCE(cos, std::cos(x)), 1e6);
  check("math.sqrt", REFERENCE(sqrt, std::sqrt(x)), 1e30, true);
  check("math.rsqrt", REFERENCE(rsqrt, 1 / std::sqrt(x)), 1e30, true);
  check("math.floor", REFERENCE(floor, std::floor(x)), 1e9);
  check("math.ceil", REFERENCE(ceil, std::ceil(x)), 1e9);
  check("math.trunc", REFERENCE(trunc, std::trunc(x)), 1e9);
  check("math.round", REFERENCE(round, std::round(x)), 1e9);
  check("math.roundeven", REFERENCE(roundeven, std::nearbyint(x)), 1e9);
  check("math.absf", REFERENCE(abs, std::fabs(x)), 1e9);
}

TEST(ElementaryCalls, SinglePower) {
  using Wide = double;
  auto x = arguments<float>(false, 20), z = arguments<float>(false, 20);
  std::rotate(z.begin(), z.begin() + 7, z.end());
  compare<float, Wide>("math.powf", true, x, z, REFERENCE(pow, std::pow(x, z)), 1e-6,
                       {1, 5, 8, 16, 20}, "f32");
}

TEST(ElementaryCalls, Double) {
  using Wide = long double;
  auto check = [](llvm::StringRef op, Wide (*reference)(Wide, Wide), double limit,
                  bool positive = false) {
    auto x = arguments<double>(positive, limit);
    compare<double, Wide>(op, false, x, x, reference, 2e-15, {1, 4}, "f64");
  };
  check("math.exp", REFERENCE(exp, std::exp(x)), 700);
  check("math.exp2", REFERENCE(exp2, std::exp2(x)), 1000);
  check("math.expm1", REFERENCE(expm1, std::expm1(x)), 700);
  check("math.log", REFERENCE(log, std::log(x)), 1e300);
  check("math.log", REFERENCE(log, std::log(x)), 2, true);
  check("math.log2", REFERENCE(log2, std::log2(x)), 1e30, true);
  check("math.log10", REFERENCE(log10, std::log10(x)), 1e30, true);
  check("math.log1p", REFERENCE(log1p, std::log1p(x)), 1e3, true);
  check("math.log1p", REFERENCE(log1p, std::log1p(x)), 0.999);
  check("math.tanh", REFERENCE(tanh, std::tanh(x)), 25);
  check("math.erf", REFERENCE(erf, std::erf(x)), 6.5);
  check("math.sin", REFERENCE(sin, std::sin(x)), 1e6);
  check("math.cos", REFERENCE(cos, std::cos(x)), 1e6);
  check("math.sqrt", REFERENCE(sqrt, std::sqrt(x)), 1e30, true);
  check("math.rsqrt", REFERENCE(rsqrt, 1 / std::sqrt(x)), 1e30, true);
  check("math.floor", REFERENCE(floor, std::floor(x)), 1e9);
  check("math.roundeven", REFERENCE(roundeven, std::nearbyint(x)), 1e9);
}

TEST(ElementaryCalls, DoublePower) {
  using Wide = long double;
  for (double limit : {3.0, 40.0, 170.0}) {
    auto x = arguments<double>(false, limit), z = arguments<double>(false, limit / 2);
    std::rotate(z.begin(), z.begin() + 7, z.end());
    compare<double, Wide>("math.powf", true, x, z, REFERENCE(pow, std::pow(x, z)), 4e-15, {1, 4},
                          "f64");
    for (double &v : z)
      v = std::nearbyint(v);
    compare<double, Wide>("math.powf", true, x, z, REFERENCE(pow, std::pow(x, z)), 4e-15, {1},
                          "f64");
  }
}

} // namespace
