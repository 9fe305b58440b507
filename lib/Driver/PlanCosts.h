//===- PlanCosts.h - extents, bytes and counts of a plan at a given shape ---------------------===//
#ifndef KVPC_DRIVER_PLANCOSTS_H
#define KVPC_DRIVER_PLANCOSTS_H

#include "dialect/IR/Kvplan.h"
#include "llvm/ADT/DenseMap.h"
#include "llvm/ADT/StringSet.h"

#include <map>
#include <optional>
#include <variant>

namespace kvpc::driver {

/// The call that costs are given for. Every row is full.
struct CostShape {
  int64_t batch = 1, heads = 8, groups = 4, tokens = 32768, channels = 128;
  int64_t layers = 1;
  int64_t storageBytes = 2; ///< of one element of keys and values

  double keysBytes() const { return double(batch) * heads * tokens * channels * storageBytes; }
};

/// How much a cache state holds; upper bounds where counts depend on data.
struct StateSize {
  int64_t tokens, channels;
};

/// Evaluates what a plan says about sizes: host scalars with the parameters' defaults, kept counts,
/// extents of axes.
class PlanCosts {
public:
  /// Defaults of `press` for the block arguments of `pipeline`; without one a budget is half.
  PlanCosts(kvplan::PipelineOp pipeline, kvp::PressOp press, const CostShape &shape);

  const CostShape shape;
  /// Of state 0, 1, ...
  const StateSize &state(int64_t number) const { return states.at(number); }
  const StateSize &last() const { return states.rbegin()->second; }

  int64_t extent(kvp::AxisAttr axis) const;
  /// Entries of a tensor over one call, evaluated once for every task of `space`.
  int64_t entries(kvp::NamedTensorType type, kvplan::Space space) const;
  /// What all tasks of `space` together read or write of a buffer.
  int64_t bytes(kvplan::BufferOp buffer, kvplan::Space space) const;
  /// Of a buffer that has room for all rows (and heads).
  int64_t callBytes(kvplan::BufferOp buffer) const;
  /// Of a buffer for one task.
  int64_t taskBytes(kvplan::BufferOp buffer, kvplan::Space space) const;

private:
  struct Amount {
    bool drop = false;
    double value = 0;
  };
  /// A host scalar as a number, or a budget.
  Amount evaluate(mlir::Value value);
  double evaluateMap(kvp::MapOp op);
  Amount defaultOf(mlir::BlockArgument argument);
  void select(kvplan::SelectOp op);
  int64_t budgetOf(const Amount &budget, int64_t n) const;

  kvp::PressOp press;
  std::map<int64_t, StateSize> states;
  /// Tokens of a part, by state of the axis.
  std::map<int64_t, int64_t> partSizes;
  llvm::StringSet<> weightAxes;
  /// What an axis was before it was renamed or sorted.
  llvm::DenseMap<kvp::AxisAttr, kvp::AxisAttr> renamed;
  llvm::DenseMap<mlir::Value, Amount> known;
};

} // namespace kvpc::driver

#endif
