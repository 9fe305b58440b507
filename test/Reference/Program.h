//===- Program.h - kvp text in, numbers out ---------------------------------------------------===//
#ifndef KVPC_TEST_REFERENCE_PROGRAM_H
#define KVPC_TEST_REFERENCE_PROGRAM_H

#include "lib/Reference/Interpreter.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/MLIRContext.h"
#include "mlir/Parser/Parser.h"
#include "gtest/gtest.h"

#include <cmath>
#include <limits>

namespace kvpc::test {

using namespace kvpc::reference;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// One press. `body` stands between the block's arguments (`%cache`, then `arguments`) and a
/// return of `%left` (`%cache` unless the body makes it) with the score `%s`, if `type` is given.
class Program {
public:
  Program(std::string body, std::string type = "", std::string arguments = "",
          std::string left = "%cache : !kvp.cache<0>") {
    context.loadDialect<kvp::KvpDialect, mlir::arith::ArithDialect>();
    auto [value, cacheType] = llvm::StringRef(left).split(" : ");
    std::string text = "kvp.press @p kind \"press\" parameters [] {\n^bb0(%cache: !kvp.cache<0>" +
                       (arguments.empty() ? "" : ", " + arguments) + "):\n" + body +
                       "\n  kvp.return " + value.str();
    if (!type.empty())
      text += " score %s : " + type;
    text += " : " + cacheType.str() + "\n}\n";
    module = mlir::parseSourceString<mlir::ModuleOp>(text, &context);
    EXPECT_TRUE(bool(module)) << text;
  }

  kvp::PressOp press() { return *module->getOps<kvp::PressOp>().begin(); }

  /// The score's numbers.
  std::vector<float> score(const Row &row, std::vector<Argument> arguments = {}) {
    auto result = reference::score(press(), row, arguments);
    if (!result) {
      ADD_FAILURE() << llvm::toString(result.takeError());
      return {};
    }
    axes = result->values.axes;
    return result->values.floats;
  }

  Kept select(const Row &row, std::vector<Argument> arguments = {}, State *state = nullptr,
              const Given &given = {}) {
    auto result = reference::select(press(), row, arguments, state, given);
    if (!result) {
      ADD_FAILURE() << llvm::toString(result.takeError());
      return {};
    }
    return *result;
  }

  std::string error(const Row &row, std::vector<Argument> arguments = {}, State *state = nullptr) {
    auto result = reference::select(press(), row, arguments, state);
    if (result)
      return "no error";
    return llvm::toString(result.takeError());
  }

  /// Of the last score.
  Axes axes;

private:
  mlir::MLIRContext context;
  mlir::OwningOpRef<mlir::ModuleOp> module;
};

/// A row whose keys hold `keys` over [head, token, channel]; values are the same, negated.
inline Row rowOf(int64_t heads, int64_t tokens, int64_t channels, std::vector<float> keys) {
  Row row;
  row.length = row.seen = tokens;
  row.heads = heads;
  row.channels = channels;
  row.scale = 0.5;
  Axes axes{{"head", heads}, {"token", tokens}, {"channel", channels}};
  std::vector<float> values = keys;
  for (float &x : values)
    x = -x;
  row.keys = Tensor::ofFloats(axes, std::move(keys));
  row.values = Tensor::ofFloats(axes, std::move(values));
  return row;
}

/// One head and one channel: `line` is what [token] holds.
inline Row lineOf(std::vector<float> line) {
  int64_t n = line.size();
  return rowOf(1, n, 1, std::move(line));
}

inline void expectNear(const std::vector<float> &got, const std::vector<float> &want,
                       float tolerance = 1e-6f) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(want[i]))
      EXPECT_TRUE(std::isnan(got[i])) << "at " << i << ": " << got[i];
    else if (std::isinf(want[i]))
      EXPECT_EQ(got[i], want[i]) << "at " << i;
    else
      EXPECT_NEAR(got[i], want[i], tolerance) << "at " << i;
  }
}

/// The type of the values of a line.
inline const std::string kType = "!kvp.tensor<[token], f32>";

/// `%x`: [token] of the only head and channel.
inline const std::string kLine = R"(
  %keys = kvp.input keys of %cache : !kvp.cache<0> -> !kvp.tensor<[head, token, channel], f32>
  %x = kvp.reduce sum %keys over ["head", "channel"]
    : !kvp.tensor<[head, token, channel], f32> -> !kvp.tensor<[token], f32>
)";

} // namespace kvpc::test

#endif
