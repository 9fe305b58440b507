//===- KvpFold.cpp - scalar semantics of kvp functions, and folding of host scalars -----------===//
#include "dialect/IR/Kvp.h"
#include "mlir/IR/Builders.h"
#include <cmath>
#include <limits>

using namespace mlir;
using namespace kvpc::kvp;

double kvpc::kvp::evaluateFloat(Fn fn, ArrayRef<double> x) {
  switch (fn) {
  case Fn::Add:
    return x[0] + x[1];
  case Fn::Sub:
    return x[0] - x[1];
  case Fn::Mul:
    return x[0] * x[1];
  case Fn::Div:
    return x[0] / x[1];
  case Fn::Pow:
    return std::pow(x[0], x[1]);
  case Fn::Mod: {
    double r = std::fmod(x[0], x[1]);
    return r != 0 && (r < 0) != (x[1] < 0) ? r + x[1] : r;
  }
  case Fn::Minimum: // a NaN on either side is the result
    return std::isnan(x[0]) || x[0] < x[1] ? x[0] : x[1];
  case Fn::Maximum:
    return std::isnan(x[0]) || x[0] > x[1] ? x[0] : x[1];
  case Fn::Neg:
    return -x[0];
  case Fn::Abs:
    return std::fabs(x[0]);
  case Fn::Exp:
    return std::exp(x[0]);
  case Fn::Log:
    return std::log(x[0]);
  case Fn::Sqrt:
    return std::sqrt(x[0]);
  case Fn::Rsqrt:
    return 1 / std::sqrt(x[0]);
  case Fn::Tanh:
    return std::tanh(x[0]);
  case Fn::Sigmoid:
    return 1 / (1 + std::exp(-x[0]));
  case Fn::Gelu: // the exact form, torch's default
    return 0.5 * x[0] * (1 + std::erf(x[0] * M_SQRT1_2));
  case Fn::Relu:
    return std::isnan(x[0]) || x[0] > 0 ? x[0] : 0;
  case Fn::Float:
    return x[0];
  default:
    llvm_unreachable("not a function of floats");
  }
}

int64_t kvpc::kvp::evaluateInt(Fn fn, ArrayRef<int64_t> x) {
  auto wrap = [](uint64_t v) { return static_cast<int64_t>(v); }; // defined overflow
  uint64_t a = x[0], b = x.size() > 1 ? x[1] : 0;
  switch (fn) {
  case Fn::Add:
    return wrap(a + b);
  case Fn::Sub:
    return wrap(a - b);
  case Fn::Mul:
    return wrap(a * b);
  case Fn::Pow: {
    if (x[1] < 0)
      return x[0] == 1 ? 1 : x[0] == -1 ? (x[1] % 2 ? -1 : 1) : 0;
    uint64_t r = 1;
    for (int64_t e = x[1]; e; e >>= 1, a *= a)
      if (e & 1)
        r *= a;
    return wrap(r);
  }
  case Fn::Mod: {
    if (x[1] == 0 || x[1] == -1)
      return 0;
    int64_t r = x[0] % x[1];
    return r != 0 && (r < 0) != (x[1] < 0) ? r + x[1] : r;
  }
  case Fn::Minimum:
    return std::min(x[0], x[1]);
  case Fn::Maximum:
    return std::max(x[0], x[1]);
  case Fn::Neg:
    return wrap(0 - a);
  case Fn::Abs:
    return x[0] < 0 ? wrap(0 - a) : x[0];
  case Fn::Relu:
    return std::max<int64_t>(x[0], 0);
  case Fn::Floor:
  case Fn::Round:
  case Fn::Int:
    return x[0];
  default:
    llvm_unreachable("not a function of integers");
  }
}

int64_t kvpc::kvp::floatToInt(Fn fn, double x) {
  double r = fn == Fn::Floor ? std::floor(x) : fn == Fn::Round ? std::nearbyint(x) : std::trunc(x);
  if (std::isnan(r))
    return 0;
  if (r >= 0x1p63)
    return std::numeric_limits<int64_t>::max();
  if (r < -0x1p63)
    return std::numeric_limits<int64_t>::min();
  return static_cast<int64_t>(r);
}

bool kvpc::kvp::evaluateCompare(Fn fn, double a, double b) {
  switch (fn) {
  case Fn::Lt:
    return a < b;
  case Fn::Le:
    return a <= b;
  case Fn::Eq:
    return a == b;
  case Fn::Ne:
    return a != b;
  default:
    llvm_unreachable("not a comparison");
  }
}

static double asDouble(Attribute a) {
  if (auto f = dyn_cast<FloatAttr>(a))
    return f.getValueAsDouble();
  auto i = cast<IntegerAttr>(a);
  return i.getType().isInteger(1) ? i.getValue().getBoolValue() : i.getInt();
}

/// x where the function leaves its operand as it is: x * 1, x / 1, x - 0, x ** 1, --x.
static Value neutral(MapOp op, ArrayRef<Attribute> in) {
  auto is = [&](unsigned i, double c) { return in[i] && asDouble(in[i]) == c; };
  switch (op.getFn()) {
  case Fn::Mul:
    return is(1, 1) ? op.getOperand(0) : is(0, 1) ? op.getOperand(1) : Value();
  case Fn::Div:
  case Fn::Pow:
    return is(1, 1) ? op.getOperand(0) : Value();
  case Fn::Sub:
    return is(1, 0) ? op.getOperand(0) : Value();
  case Fn::Neg: {
    auto inner = op.getOperand(0).getDefiningOp<MapOp>();
    return inner && inner.getFn() == Fn::Neg ? inner.getOperand(0) : Value();
  }
  default:
    return {};
  }
}

OpFoldResult MapOp::fold(FoldAdaptor adaptor) {
  Type type = getResult().getType();
  ArrayRef<Attribute> in = adaptor.getOperands();
  Fn fn = getFn();
  if (Value same = neutral(*this, in); same && same.getType() == type)
    return same;
  if (fn == Fn::Where && !isa<NamedTensorType>(getOperand(0).getType()) && in[0]) {
    Value chosen = getOperand(asDouble(in[0]) != 0 ? 1 : 2);
    if (chosen.getType() == type)
      return chosen;
  }
  if (isa<NamedTensorType>(type) || llvm::any_of(in, [](Attribute a) { return !a; }))
    return {};
  bool ints = llvm::all_of(in, [](Attribute a) {
    return isa<IntegerAttr>(a) && !cast<IntegerAttr>(a).getType().isInteger(1);
  });
  Builder b(getContext());
  switch (fn) {
  case Fn::And:
    return b.getBoolAttr(asDouble(in[0]) && asDouble(in[1]));
  case Fn::Or:
    return b.getBoolAttr(asDouble(in[0]) || asDouble(in[1]));
  case Fn::Not:
    return b.getBoolAttr(!asDouble(in[0]));
  case Fn::Lt:
  case Fn::Le:
  case Fn::Eq:
  case Fn::Ne:
    return b.getBoolAttr(evaluateCompare(fn, asDouble(in[0]), asDouble(in[1])));
  case Fn::Where: {
    Attribute chosen = asDouble(in[0]) != 0 ? in[1] : in[2];
    return type.isF64() ? b.getF64FloatAttr(asDouble(chosen)) : OpFoldResult(chosen);
  }
  default:
    break;
  }
  if (type.isInteger(64)) {
    if (!ints)
      return b.getI64IntegerAttr(floatToInt(fn, asDouble(in[0])));
    auto v = llvm::map_to_vector(in, [](Attribute a) { return cast<IntegerAttr>(a).getInt(); });
    return b.getI64IntegerAttr(evaluateInt(fn, v));
  }
  return b.getF64FloatAttr(evaluateFloat(fn, llvm::map_to_vector(in, asDouble)));
}
