//===- Evaluation.cpp - demand-driven evaluation of a press -----------------------------------===//
#include "lib/Reference/Evaluation.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/TypeSwitch.h"

#include <algorithm>

using namespace kvpc;
using namespace kvpc::reference;
using mlir::isa;

Evaluation::Evaluation(kvp::PressOp givenPress, const Row &givenRow,
                       llvm::ArrayRef<Argument> arguments, State *givenState,
                       const Given &overrides)
    : row(givenRow), state(givenState), given(overrides), press(givenPress) {
  mlir::Block &body = press.getBody().front();
  auto untouched = std::make_shared<Cache>();
  std::vector<int64_t> all(row.length);
  for (int64_t i = 0; i < row.length; ++i)
    all[i] = i;
  untouched->tokens.assign(row.heads, all);
  values[body.getArgument(0)] = std::shared_ptr<const Cache>(untouched);
  assert(arguments.size() + 1 == body.getNumArguments());
  for (auto [argument, value] : llvm::zip_equal(body.getArguments().drop_front(), arguments)) {
    if (const Tensor *weight = std::get_if<Tensor>(&value))
      values[argument] = std::make_shared<const Tensor>(*weight);
    else if (const auto *budget = std::get_if<Budget>(&value))
      values[argument] = *budget;
    else if (argument.getType().isF64())
      values[argument] = std::holds_alternative<double>(value)
                             ? std::get<double>(value)
                             : static_cast<double>(std::get<int64_t>(value));
    else if (argument.getType().isInteger(1))
      values[argument] = std::get<int64_t>(value) != 0;
    else
      values[argument] = std::get<int64_t>(value);
  }
}

double Evaluation::number(mlir::Value value) const {
  const Value &v = values.at(value);
  if (const auto *x = std::get_if<double>(&v))
    return *x;
  if (const auto *i = std::get_if<int64_t>(&v))
    return static_cast<double>(*i);
  return std::get<bool>(v);
}

Tensor Evaluation::asTensor(mlir::Value value) const {
  const Value &v = values.at(value);
  if (const auto *shared = std::get_if<Shared>(&v))
    return **shared;
  if (const auto *i = std::get_if<int64_t>(&v))
    return Tensor::ofInts({}, {*i});
  if (const auto *b = std::get_if<bool>(&v))
    return Tensor::ofBools({}, {*b});
  return Tensor::ofFloats({}, {static_cast<float>(std::get<double>(v))});
}

/// Whether the other branch of a `where` can stay uncomputed: a host condition, and the chosen
/// branch has all axes of the result.
static mlir::Value onlyBranch(kvp::MapOp op, bool condition) {
  mlir::Value chosen = op.getOperand(condition ? 1 : 2);
  auto result = mlir::dyn_cast<kvp::NamedTensorType>(op.getResult().getType());
  auto own = mlir::dyn_cast<kvp::NamedTensorType>(chosen.getType());
  if (result && (own ? own.getAxes().size() : 0) != result.getAxes().size())
    return {};
  return chosen;
}

llvm::Error Evaluation::demand(mlir::Value value) {
  if (values.count(value))
    return llvm::Error::success();
  mlir::Operation *op = value.getDefiningOp();
  llvm::SmallVector<mlir::Value> needs(op->getOperands());
  if (isa<kvp::TopkOp, kvp::MaskOp>(op)) {
    needs = needsOf(op);
  } else if (auto map = mlir::dyn_cast<kvp::MapOp>(op);
             map && map.getFn() == kvp::Fn::Where &&
             !isa<kvp::NamedTensorType>(map.getOperand(0).getType())) {
    if (llvm::Error error = demand(map.getOperand(0)))
      return error;
    if (mlir::Value branch = onlyBranch(map, number(map.getOperand(0)) != 0))
      needs = {branch};
  }
  for (mlir::Value need : needs)
    if (llvm::Error error = demand(need))
      return error;
  llvm::Expected<Value> result = execute(op);
  if (!result)
    return result.takeError();
  values[value] = std::move(*result);
  return llvm::Error::success();
}

llvm::Error Evaluation::checkRequirements() {
  for (auto op : press.getBody().getOps<kvp::RequireOp>()) {
    if (llvm::Error error = demand(op.getCondition()))
      return error;
    if (number(op.getCondition()) == 0)
      return failed("%s", op.getMessage().str().c_str());
  }
  return llvm::Error::success();
}

llvm::Expected<Value> Evaluation::execute(mlir::Operation *op) {
  if (auto topkOp = mlir::dyn_cast<kvp::TopkOp>(op))
    return topk(topkOp);
  if (auto maskOp = mlir::dyn_cast<kvp::MaskOp>(op))
    return mask(maskOp);
  return isa<kvp::NamedTensorType>(op->getResult(0).getType()) ? executeTensor(op)
                                                               : executeHost(op);
}

//===------------------------------------------------------------------------------------------===//
// Host scalars and budgets
//===------------------------------------------------------------------------------------------===//

int64_t Budget::of(int64_t n) const {
  if (n <= 0)
    return 0;
  double kept = drop ? n * (1 - *drop) : static_cast<double>(std::min(keep, n));
  return std::clamp<int64_t>(kvp::floatToInt(kvp::Fn::Int, kept), 1, n);
}

double Budget::share(int64_t n) const { return drop ? n * (1 - *drop) : static_cast<double>(keep); }

llvm::Expected<Value> Evaluation::executeHost(mlir::Operation *op) {
  using Result = llvm::Expected<Value>;
  return llvm::TypeSwitch<mlir::Operation *, Result>(op)
      .Case([&](mlir::arith::ConstantOp constant) -> Result {
        mlir::Type type = constant.getType();
        if (auto x = mlir::dyn_cast<mlir::FloatAttr>(constant.getValue()))
          return x.getValueAsDouble();
        auto i = mlir::cast<mlir::IntegerAttr>(constant.getValue());
        return type.isInteger(1) ? Value(!i.getValue().isZero()) : Value(i.getInt());
      })
      .Case([&](kvp::DimOp dim) -> Result {
        const Cache &left = cache(dim.getCache());
        switch (dim.getDim()) {
        case kvp::Dim::Length:
          return head ? static_cast<int64_t>(left.tokens[*head].size()) : left.length();
        case kvp::Dim::Seen:
          return row.seen;
        case kvp::Dim::Layer:
          return row.layer;
        case kvp::Dim::Layers:
          return row.layers;
        case kvp::Dim::Heads:
          return row.heads;
        case kvp::Dim::Groups:
          return row.groups;
        case kvp::Dim::Channels:
          return left.channels ? static_cast<int64_t>((*left.channels)[0].size()) : row.channels;
        }
        llvm_unreachable("all dimensions are covered");
      })
      .Case([&](kvp::ExtentOp extent) -> Result {
        return extentOf(extent.getLike(), extent.getAxis());
      })
      .Case([&](kvp::ScaleOp) -> Result { return row.scale; })
      .Case([&](kvp::BudgetOp budget) -> Result {
        if (budget.getAmount().getType().isF64())
          return Budget{number(budget.getAmount())};
        return Budget{std::nullopt, integer(budget.getAmount())};
      })
      .Case([&](kvp::BudgetOfOp budget) -> Result {
        return std::get<Budget>(values.at(budget.getBudget())).of(integer(budget.getN()));
      })
      .Case([&](kvp::BudgetShareOp budget) -> Result {
        return std::get<Budget>(values.at(budget.getBudget())).share(integer(budget.getN()));
      })
      .Case([&](kvp::BudgetIsDropOp budget) -> Result {
        return std::get<Budget>(values.at(budget.getBudget())).drop.has_value();
      })
      .Case([&](kvp::MapOp mapOp) -> Result { return hostMap(mapOp); })
      .Default([&](mlir::Operation *other) -> Result {
        return failed("the reference does not know `%s`",
                      other->getName().getStringRef().str().c_str());
      });
}

/// Doubles stay doubles between host scalars.
llvm::Expected<Value> Evaluation::hostMap(kvp::MapOp op) {
  kvp::Fn fn = op.getFn();
  mlir::Type type = op.getResult().getType();
  if (fn == kvp::Fn::Where) {
    mlir::Value chosen = op.getOperand(number(op.getOperand(0)) != 0 ? 1 : 2);
    return type.isF64() ? Value(number(chosen)) : values.at(chosen);
  }
  auto numbers = llvm::map_to_vector(op.getOperands(), [&](mlir::Value v) { return number(v); });
  bool floats = llvm::any_of(op.getOperandTypes(), [](mlir::Type t) { return t.isF64(); });
  if (type.isF64())
    return kvp::evaluateFloat(fn, numbers);
  if (type.isInteger(64) && floats)
    return kvp::floatToInt(fn, numbers[0]);
  if (type.isInteger(1) && floats)
    return kvp::evaluateCompare(fn, numbers[0], numbers[1]);
  // Integers and conditions alone: as entries of tensors.
  auto operands = llvm::map_to_vector(op.getOperands(), [&](mlir::Value v) { return asTensor(v); });
  auto pointers = llvm::map_to_vector(operands, [](const Tensor &t) { return &t; });
  Tensor out = map(fn, pointers, type.isInteger(1) ? Element::Bool : Element::Int);
  return type.isInteger(1) ? Value(out.bools[0] != 0) : Value(out.ints[0]);
}
