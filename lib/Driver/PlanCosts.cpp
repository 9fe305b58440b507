//===- PlanCosts.cpp - extents, bytes and counts of a plan at a given shape -------------------===//
#include "lib/Driver/PlanCosts.h"

#include "lib/Module/Summary.h"
#include "mlir/Dialect/Arith/IR/Arith.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/TypeSwitch.h"

#include <algorithm>

using namespace kvpc;
using namespace kvpc::driver;

/// Whether an axis of this name has an extent of its own, whatever was renamed.
static bool isOwnName(llvm::StringRef name) {
  return llvm::is_contained<llvm::StringRef>(
      {"head", "group", "query", "token", "channel", "part", "slot", "layer", "feature"}, name);
}

PlanCosts::PlanCosts(kvplan::PipelineOp pipeline, kvp::PressOp givenPress,
                     const CostShape &givenShape)
    : shape(givenShape), press(givenPress) {
  states[0] = {shape.tokens, shape.channels};
  for (mlir::Type type : pipeline.getBody().front().getArgumentTypes())
    if (auto weight = mlir::dyn_cast<kvp::NamedTensorType>(type))
      for (kvp::AxisAttr axis : weight.getAxes())
        weightAxes.insert(axis.getName().rtrim('\''));
  pipeline.walk([&](kvp::PartitionOp op) {
    kvp::AxisAttr axis = op.getInput().getType().getAxis(op.getAxis());
    partSizes.try_emplace(axis.getState(), op.getSize());
  });
  auto rename = [&](auto op, llvm::StringRef from) {
    kvp::AxisAttr before = op.getInput().getType().getAxis(from);
    kvp::AxisAttr after = op.getResult().getType().getAxis(op.getTo());
    if (!isOwnName(after.getName()))
      renamed.try_emplace(after, before);
  };
  pipeline.walk([&](kvp::RenameOp op) { rename(op, op.getFrom()); });
  pipeline.walk([&](kvp::SortOp op) { rename(op, op.getAxis()); });
  for (mlir::Operation &op : pipeline.getBody().front()) {
    if (auto selectOp = mlir::dyn_cast<kvplan::SelectOp>(op))
      select(selectOp);
    // How many a condition holds for, nobody knows before: at most all.
    if (auto filter = mlir::dyn_cast<kvplan::FilterOp>(op))
      states[filter.getResult().getType().getState()] =
          states.at(filter.getCache().getType().getState());
  }
}

void PlanCosts::select(kvplan::SelectOp op) {
  StateSize size = states.at(op.getCache().getType().getState());
  if (op.countsData()) { // at most all
    states[op.getResult().getType().getState()] = size;
    return;
  }
  auto count = static_cast<int64_t>(evaluate(op.getCount()).value);
  llvm::StringRef axis = "token";
  for (kvp::AxisAttr own : op.getScore().getType().getTensor().getAxes())
    if (own.getName() != "head")
      axis = own.getName();
  int64_t part = op.getPartSize() ? static_cast<int64_t>(*op.getPartSize()) : 1;
  if (axis == "channel")
    size.channels = std::clamp<int64_t>(count, 1, std::max<int64_t>(size.channels, 1));
  else
    size.tokens = std::min(size.tokens, std::max<int64_t>(count, 1) * part);
  states[op.getResult().getType().getState()] = size;
}

int64_t PlanCosts::extent(kvp::AxisAttr axis) const {
  for (size_t i = 0; i < renamed.size(); ++i) // one may be renamed again
    if (auto before = renamed.find(axis); before != renamed.end())
      axis = before->second;
  llvm::StringRef name = axis.getName().rtrim('\'');
  const StateSize &size = states.at(axis.getState());
  if (axis.isStatic())
    return name == "query" ? std::min(axis.getExtent(), shape.tokens) : axis.getExtent();
  if (name == "head")
    return shape.heads;
  if (name == "group")
    return shape.groups;
  if (name == "layer")
    return shape.layers;
  if (name == "channel")
    return size.channels;
  if (name == "feature")
    return shape.heads * shape.groups * shape.channels;
  if (name == "part") {
    auto part = partSizes.find(axis.getState());
    int64_t tokens = part == partSizes.end() ? 1 : part->second;
    return (size.tokens + tokens - 1) / tokens;
  }
  if (weightAxes.contains(name))
    return shape.channels; // the call says; of that order, like as not
  return size.tokens;      // token, and query of all of a pass
}

int64_t PlanCosts::bytes(kvplan::BufferOp buffer, kvplan::Space space) const {
  kvp::NamedTensorType type = buffer.getResult().getType().getTensor();
  int64_t n = entries(type, space), every = static_cast<int64_t>(buffer.getEvery().value_or(1));
  for (kvp::AxisAttr axis : type.getAxes())
    if (every > 1 && (axis.getName() == "token" || axis.getName() == "part"))
      n = n / std::max<int64_t>(extent(axis), 1) * ((extent(axis) + every - 1) / every);
  mlir::Type element = type.getElementType();
  return n * (element.isInteger(1) ? 1 : element.isInteger(64) ? 8 : 4);
}

int64_t PlanCosts::callBytes(kvplan::BufferOp buffer) const {
  return bytes(buffer, kvplan::Space::Batch);
}

int64_t PlanCosts::taskBytes(kvplan::BufferOp buffer, kvplan::Space space) const {
  int64_t tasks = shape.batch * (space == kvplan::Space::Head ? shape.heads : 1);
  return bytes(buffer, space) / tasks;
}

int64_t PlanCosts::entries(kvp::NamedTensorType type, kvplan::Space space) const {
  int64_t n = shape.batch;
  bool heads = type.hasAxis("head");
  if (space == kvplan::Space::Head && !heads)
    n *= shape.heads;
  for (kvp::AxisAttr axis : type.getAxes())
    n *= extent(axis);
  return n;
}

//===------------------------------------------------------------------------------------------===//
// Host scalars
//===------------------------------------------------------------------------------------------===//

int64_t PlanCosts::budgetOf(const Amount &budget, int64_t n) const {
  double kept = budget.drop ? n * (1 - budget.value) : budget.value;
  return std::clamp<int64_t>(static_cast<int64_t>(std::min<double>(kept, n)), 1,
                             std::max<int64_t>(n, 1));
}

/// Block arguments stand in the order of the header: scalars, then weights.
PlanCosts::Amount PlanCosts::defaultOf(mlir::BlockArgument argument) {
  PressSummary summary = summarize(press);
  size_t index = argument.getArgNumber() - 1;
  bool budget = mlir::isa<kvp::BudgetType>(argument.getType());
  Amount half{budget, 0.5};
  if (index >= summary.runtime.size())
    return half;
  for (auto parameter : press.getParameters().getAsRange<mlir::DictionaryAttr>()) {
    if (parameter.getAs<mlir::StringAttr>("name").getValue() != summary.runtime[index])
      continue;
    mlir::Attribute value = parameter.get("default");
    if (auto fields = mlir::dyn_cast_or_null<mlir::DictionaryAttr>(value)) {
      if (auto drop = fields.getAs<mlir::FloatAttr>("drop"))
        return {true, drop.getValueAsDouble()};
      if (auto keep = fields.getAs<mlir::IntegerAttr>("keep"))
        return {false, static_cast<double>(keep.getInt())};
    }
    if (auto number = mlir::dyn_cast_or_null<mlir::FloatAttr>(value))
      return {false, number.getValueAsDouble()};
    if (auto number = mlir::dyn_cast_or_null<mlir::IntegerAttr>(value))
      return {false, static_cast<double>(number.getInt())};
  }
  return half;
}

double PlanCosts::evaluateMap(kvp::MapOp op) {
  kvp::Fn fn = op.getFn();
  auto x = llvm::map_to_vector(op.getOperands(), [&](mlir::Value v) { return evaluate(v).value; });
  switch (fn) {
  case kvp::Fn::And:
    return x[0] != 0 && x[1] != 0;
  case kvp::Fn::Or:
    return x[0] != 0 || x[1] != 0;
  case kvp::Fn::Not:
    return x[0] == 0;
  case kvp::Fn::Where:
    return x[0] != 0 ? x[1] : x[2];
  case kvp::Fn::Lt:
  case kvp::Fn::Le:
  case kvp::Fn::Eq:
  case kvp::Fn::Ne:
    return kvp::evaluateCompare(fn, x[0], x[1]);
  case kvp::Fn::Floor:
  case kvp::Fn::Round:
  case kvp::Fn::Int:
    return static_cast<double>(kvp::floatToInt(fn, x[0]));
  default:
    return kvp::evaluateFloat(fn, x);
  }
}

PlanCosts::Amount PlanCosts::evaluate(mlir::Value value) {
  if (auto it = known.find(value); it != known.end())
    return it->second;
  mlir::Operation *op = value.getDefiningOp();
  Amount out;
  if (!op) {
    out = defaultOf(mlir::cast<mlir::BlockArgument>(value));
  } else {
    llvm::TypeSwitch<mlir::Operation *>(op)
        .Case([&](mlir::arith::ConstantOp constant) {
          if (auto number = mlir::dyn_cast<mlir::FloatAttr>(constant.getValue()))
            out.value = number.getValueAsDouble();
          else
            out.value =
                mlir::cast<mlir::IntegerAttr>(constant.getValue()).getValue().getSExtValue();
        })
        .Case([&](kvp::DimOp dim) {
          const StateSize &size = states.at(dim.getCache().getType().getState());
          switch (dim.getDim()) {
          case kvp::Dim::Length:
            out.value = size.tokens;
            break;
          case kvp::Dim::Seen:
            out.value = shape.tokens;
            break;
          case kvp::Dim::Layer:
            out.value = 0;
            break;
          case kvp::Dim::Layers:
            out.value = shape.layers;
            break;
          case kvp::Dim::Heads:
            out.value = shape.heads;
            break;
          case kvp::Dim::Groups:
            out.value = shape.groups;
            break;
          case kvp::Dim::Channels:
            out.value = size.channels;
            break;
          }
        })
        .Case([&](kvp::ExtentOp o) {
          out.value = extent(o.getLike().getType().getAxis(o.getAxis()));
        })
        .Case([&](kvp::ScaleOp) { out.value = 1; })
        .Case([&](kvp::BudgetOp o) {
          out = {o.getAmount().getType().isF64(), evaluate(o.getAmount()).value};
        })
        .Case([&](kvp::BudgetOfOp o) {
          out.value = budgetOf(evaluate(o.getBudget()), evaluate(o.getN()).value);
        })
        .Case([&](kvp::BudgetShareOp o) {
          Amount budget = evaluate(o.getBudget());
          out.value = budget.drop ? evaluate(o.getN()).value * (1 - budget.value) : budget.value;
        })
        .Case([&](kvp::BudgetIsDropOp o) { out.value = evaluate(o.getBudget()).drop; })
        .Case([&](kvp::MapOp o) { out.value = evaluateMap(o); });
  }
  known[value] = out;
  return out;
}
