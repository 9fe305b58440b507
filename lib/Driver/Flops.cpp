//===- Flops.cpp - operations counted in what a machine's peak counts -------------------------===//
#include "lib/Driver/Flops.h"

#include "dialect/Transforms/Cost.h"

#include "llvm/ADT/DenseSet.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace kvpc;
using namespace kvpc::driver;

int64_t driver::flopsOf(mlir::Operation *op, kvplan::Space space, const PlanCosts &costs) {
  auto entries = [&](mlir::Value value) {
    auto buffer = mlir::dyn_cast<kvplan::BufferType>(value.getType());
    auto type = buffer ? buffer.getTensor() : mlir::dyn_cast<kvp::NamedTensorType>(value.getType());
    return type ? costs.entries(type, space) : 0;
  };
  auto channels = [&](auto stream) { return costs.extent(stream.getType().getAxis("channel")); };
  // A column takes the channels up to its end: with 16 columns to a vector.
  auto form = [](int64_t width) { return width * (width + 16 + 2); };
  return llvm::TypeSwitch<mlir::Operation *, int64_t>(op)
      .Case([&](kvplan::ContractOp o) {
        return 2 * entries(o.getBuffer()) * channels(o.getStream());
      })
      .Case(
          [&](kvplan::FormOp o) { return entries(o.getBuffer()) * form(channels(o.getStream())); })
      .Case([&](kvp::FormOp o) { return entries(o.getResult()) * form(channels(o.getInput())); })
      .Case([&](kvplan::FoldOp o) {
        return entries(o.getValue()) + 2 * entries(o.getBlock()) * channels(o.getStream());
      })
      .Case([&](kvp::DotOp o) {
        return 2 * entries(o.getResult()) * costs.extent(o.getLhs().getType().getAxis(o.getOver()));
      })
      // Difference, exponential, sum or product.
      .Case(
          [&](kvplan::StatisticsOp o) { return (kExponentialFlops + 2) * entries(o.getBuffer()); })
      .Case([&](kvplan::ExponentsOp o) { return (kExponentialFlops + 1) * entries(o.getBuffer()); })
      .Case([&](kvplan::WeightOp o) { return (kExponentialFlops + 2) * entries(o.getResult()); })
      .Case([&](kvp::SoftmaxOp o) { return (kExponentialFlops + 3) * entries(o.getResult()); })
      .Case([&](kvplan::RescaleOp o) { return entries(o.getResult()); })
      .Case<kvp::AvgPoolOp, kvp::MaxPoolOp>(
          [&](auto o) { return static_cast<int64_t>(o.getSize()) * entries(o.getResult()); })
      .Case([&](kvp::ReduceOp o) { return entries(o.getInput()); })
      .Case([&](kvplan::AccumulateOp o) { return entries(o.getValue()); })
      .Case([&](kvp::MapOp o) { return kvpc::flopsOf(o.getFn()) * entries(o.getResult()); })
      .Default([](mlir::Operation *) { return 0; });
}

int64_t driver::flopsOf(kvp::PressOp program, const PlanCosts &costs) {
  int64_t sum = 0;
  llvm::DenseSet<mlir::Operation *> seen;
  auto count = [&](auto &self, mlir::Value value) -> void {
    mlir::Operation *op = value ? value.getDefiningOp() : nullptr;
    // Of what only its extents are asked nothing is computed.
    if (!op || !mlir::isa<kvp::NamedTensorType>(value.getType()) || !seen.insert(op).second)
      return;
    sum += flopsOf(op, kvplan::Space::Batch, costs);
    if (mlir::isa<kvp::IndexOp, kvp::RotaryOp>(op))
      return;
    for (mlir::Value operand : op->getOperands())
      self(self, operand);
  };
  for (mlir::Operation &op : program.getBody().front())
    if (mlir::isa<kvp::TopkOp, kvp::MaskOp, kvp::ReturnOp>(op))
      for (mlir::Value operand : op.getOperands())
        count(count, operand);
  return sum;
}
