//===- Interpreter.cpp - selections and scores of a press -------------------------------------===//
#include "lib/Reference/Interpreter.h"

#include "lib/Reference/Evaluation.h"

#include "llvm/ADT/STLExtras.h"

using namespace kvpc;
using namespace kvpc::reference;

static kvp::ReturnOp returnOf(kvp::PressOp press) {
  return mlir::cast<kvp::ReturnOp>(press.getBody().front().getTerminator());
}

llvm::Expected<Kept> kvpc::reference::select(kvp::PressOp press, const Row &row,
                                             llvm::ArrayRef<Argument> arguments, State *state,
                                             const Given &given) {
  Evaluation evaluation(press, row, arguments, state, given);
  // A row without tokens keeps none, whatever is required of the others.
  if (row.length > 0)
    if (llvm::Error error = evaluation.checkRequirements())
      return error;
  mlir::Value left = returnOf(press).getCache();
  if (llvm::Error error = evaluation.demand(left))
    return error;
  const Cache &cache = evaluation.cache(left);
  return Kept{cache.tokens, cache.channels};
}

llvm::Expected<Score> kvpc::reference::score(kvp::PressOp press, const Row &row,
                                             llvm::ArrayRef<Argument> arguments) {
  Given none;
  Evaluation evaluation(press, row, arguments, nullptr, none);
  if (llvm::Error error = evaluation.checkRequirements())
    return error;
  kvp::ReturnOp result = returnOf(press);
  if (!result.getScore())
    return failed("press `%s` has no score: its first stage is a mask",
                  press.getSymName().str().c_str());
  if (llvm::Error error = evaluation.demand(result.getScore()))
    return error;
  llvm::SmallVector<llvm::StringRef> order;
  for (kvp::AxisAttr axis : result.getScore().getType().getAxes())
    order.push_back(axis.getName());
  Score out{evaluation.tensor(result.getScore()).permuted(order), {}};
  out.protect = Tensor(out.values.axes, Element::Bool);
  if (!result.getProtect())
    return out;
  if (llvm::Error error = evaluation.demand(result.getProtect()))
    return error;
  const Tensor &protect = evaluation.tensor(result.getProtect());
  for (auto [i, from] : llvm::enumerate(offsets(out.values.axes, protect)))
    out.protect.bools[i] = protect.bools[from];
  return out;
}
