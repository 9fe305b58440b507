// Parameters by name: types, ranges, defaults, and the words of each refusal.
#include "Host.h"

#include <cmath>
#include <limits>

using namespace kvpc;
using namespace kvpc::test;

namespace {

std::string binding(std::string_view name, const Press::Arguments &arguments) {
  auto press = fake()->press(name);
  EXPECT_TRUE(bool(press));
  return textOf(press->bind(arguments));
}

std::string value(std::string_view name, const Press::Arguments &arguments, size_t index) {
  auto out = fake()->press(name)->bind(arguments);
  return out ? out->argument(index, 0).str() : out.error().text();
}

TEST(Arguments, Budgets) {
  EXPECT_EQ(value("last", {}, 0), "drop(0.5)");
  EXPECT_EQ(value("last", {{"drop", Value::ofFloat(0.25)}}, 0), "drop(0.25)");
  EXPECT_EQ(value("last", {{"compression_ratio", Value::ofFloat(0.25)}}, 0), "drop(0.25)");
  EXPECT_EQ(value("last", {{"drop", Value::ofInt(0)}}, 0), "drop(0.0)");
  EXPECT_EQ(value("last", {{"keep", Value::ofInt(64)}}, 0), "keep(64)");
  EXPECT_EQ(value("last", {{"budget", Value::keep(64)}}, 0), "keep(64)");
  EXPECT_EQ(binding("last", {{"drop", Value::ofFloat(1)}}),
            "`budget` is drop(1.0); need `drop(r)` with 0 <= r < 1 [kvm-parameter]");
  EXPECT_NE(binding("last", {{"drop", Value::ofFloat(-0.1)}}).find("0 <= r < 1"),
            std::string::npos);
  EXPECT_NE(binding("last", {{"drop", Value::ofFloat(std::nan(""))}}).find("NaN"),
            std::string::npos);
  EXPECT_EQ(binding("last", {{"keep", Value::ofInt(0)}}),
            "`budget` is keep(0); need `keep(n)` with n of 1 or more [kvm-parameter]");
  EXPECT_EQ(binding("last", {{"keep", Value::ofFloat(2.5)}}),
            "`keep` is 2.5; need a count, e.g. 1024 [kvm-parameter]");
  EXPECT_NE(binding("last", {{"budget", Value::ofFloat(0.5)}}).find("need a budget"),
            std::string::npos);
  EXPECT_NE(binding("last", {{"drop", Value::ofFloat(0.5)}, {"keep", Value::ofInt(3)}})
                .find("is given twice"),
            std::string::npos);
  EXPECT_EQ(binding("thin", {{"drop", Value::ofFloat(0.5)}}),
            "`thin` has no budget for `drop` to set [kvm-parameter]");
}

TEST(Arguments, Scalars) {
  EXPECT_EQ(value("window", {}, 1), "1.0");
  EXPECT_EQ(value("window", {{"gain", Value::ofInt(3)}}, 1), "3.0");
  EXPECT_EQ(value("window", {{"seed", Value::ofInt(-7)}}, 3), "-7");
  EXPECT_EQ(value("window", {{"seed", Value::ofFloat(7)}}, 3), "7");
  EXPECT_EQ(binding("window", {{"seed", Value::ofFloat(7.5)}}),
            "`seed` is 7.5; need a whole number [kvm-parameter]");
  EXPECT_EQ(binding("window", {{"seed", Value::ofBool(true)}}),
            "`seed` is true; need a whole number [kvm-parameter]");
  EXPECT_EQ(binding("window", {{"gain", Value::ofFloat(11)}}),
            "`gain` is 11.0; need a value in 0..10 [kvm-parameter]");
  EXPECT_NE(binding("window", {{"gain", Value::ofFloat(std::numeric_limits<double>::infinity())}})
                .find("`gain` is inf"),
            std::string::npos);
  EXPECT_EQ(binding("window", {{"gain", Value::ofFloat(std::nan(""))}}),
            "`gain` is NaN; need a number [kvm-parameter]");
  EXPECT_EQ(binding("window", {{"share", Value::ofFloat(1)}}),
            "`share` is 1.0; need a fraction, 0 <= `share` < 1 [kvm-parameter]");
}

TEST(Arguments, Names) {
  EXPECT_EQ(binding("window", {{"gian", Value::ofFloat(1)}}),
            "`window` has no parameter `gian`; it has `budget`, `gain`, `share`, `seed`, `size`; "
            "did you mean `gain`? [kvm-parameter]");
  EXPECT_EQ(binding("window", {{"size", Value::ofInt(8)}}),
            "`size` was fixed to 4 when the module was compiled; compile the press with "
            "`-D size=8` (in Python `defines=`) for another value [kvm-static-parameter]");
  EXPECT_EQ(binding("weighted", {}),
            "`weighted` needs `ratios` (fraction), which has no default; give it [kvm-parameter]");
  EXPECT_NE(binding("weighted", {{"filter", Value::ofFloat(1)}}).find("is a tensor"),
            std::string::npos);
}

TEST(Arguments, PerLayer) {
  auto arguments = parseArguments(R"({"ratios": [0.25, 0.5]})");
  ASSERT_TRUE(bool(arguments));
  auto press = fake()->press("weighted")->bind(*arguments);
  ASSERT_TRUE(bool(press)) << textOf(press);
  EXPECT_EQ(press->argument(0, 1).str(), "0.5");
  EXPECT_NE(
      binding("weighted", *parseArguments(R"({"ratios": [0.25, 1.5]})")).find("`ratios` is 1.5"),
      std::string::npos);
  EXPECT_NE(
      binding("window", *parseArguments(R"({"gain": [1, 2]})")).find("one value, it does not"),
      std::string::npos);
}

TEST(Arguments, AsJson) {
  auto arguments = parseArguments(
      R"({"a": 1, "b": 0.5, "c": true, "d": {"drop": 0.5}, "e": {"keep": 3}, "f": "-inf", "g": "x"})");
  ASSERT_TRUE(bool(arguments));
  std::string all;
  for (auto &[name, value] : *arguments)
    all += name + "=" + value.str() + " ";
  EXPECT_EQ(all, "a=1 b=0.5 c=true d=drop(0.5) e=keep(3) f=-inf g=x ");
  EXPECT_TRUE(bool(parseArguments("")));
  EXPECT_FALSE(bool(parseArguments("[]")));
  EXPECT_FALSE(bool(parseArguments(R"({"a": {"drop": 1, "keep": 2}})")));
  EXPECT_FALSE(bool(parseArguments(R"({"a": [[1]]})")));
}

TEST(Budget, KeptOf) {
  EXPECT_EQ(keptOf(Value::drop(0.5), 7), 3);
  EXPECT_EQ(keptOf(Value::drop(0.9), 5), 1);
  EXPECT_EQ(keptOf(Value::drop(0), 5), 5);
  EXPECT_EQ(keptOf(Value::keep(9), 5), 5);
  EXPECT_EQ(keptOf(Value::keep(3), 0), 0);
  EXPECT_EQ(keptOf(Value::drop(0.1), 10), 9); // int(10 * 0.9) in double
}

} // namespace
