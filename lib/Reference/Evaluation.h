//===- Evaluation.h - values of one evaluation of a press -------------------------------------===//
#ifndef KVPC_REFERENCE_EVALUATION_H
#define KVPC_REFERENCE_EVALUATION_H

#include "lib/Reference/Interpreter.h"

#include "llvm/ADT/DenseMap.h"

namespace kvpc::reference {

/// The cache after some selections: what is left, in the row's numbering.
struct Cache {
  Sets tokens;
  std::optional<Sets> channels;

  /// Entries of the fullest head.
  int64_t length() const;
  /// Which entries a head has, over [head, token]; null where all heads have the same number.
  std::shared_ptr<const Tensor> present() const;
};

using Shared = std::shared_ptr<const Tensor>;
using Value = std::variant<int64_t, double, bool, Budget, Shared, std::shared_ptr<const Cache>>;

/// Demand-driven evaluation with memory. Errors are those a host can cause.
class Evaluation {
public:
  Evaluation(kvp::PressOp press, const Row &row, llvm::ArrayRef<Argument> arguments, State *state,
             const Given &given);

  /// Computes the value and what it needs.
  llvm::Error demand(mlir::Value value);
  /// Refuses where a `require` does not hold.
  llvm::Error checkRequirements();

  // Values that were demanded.
  const Tensor &tensor(mlir::Value value) const { return *std::get<Shared>(values.at(value)); }
  const Cache &cache(mlir::Value value) const {
    return *std::get<std::shared_ptr<const Cache>>(values.at(value));
  }
  int64_t integer(mlir::Value value) const { return std::get<int64_t>(values.at(value)); }
  double number(mlir::Value value) const;
  /// A tensor, or a host scalar as a tensor without axes.
  Tensor asTensor(mlir::Value value) const;

private:
  llvm::Expected<Value> execute(mlir::Operation *op);
  llvm::Expected<Value> executeHost(mlir::Operation *op);
  llvm::Expected<Value> hostMap(kvp::MapOp op);
  // Tensors.cpp
  llvm::Expected<Value> executeTensor(mlir::Operation *op);
  llvm::Error checkExtents(mlir::Operation *op) const;
  int64_t extentOf(mlir::Value value, llvm::StringRef axis) const;
  llvm::Error leaveOutSlots(mlir::Operation *op, Tensor &result);
  void leaveOutPlaces(mlir::Operation *op, Tensor &result);
  Tensor tensorMap(kvp::MapOp op) const;
  llvm::Expected<Tensor> turn(mlir::Operation *op) const;

  // Inputs.cpp
  llvm::Expected<Tensor> input(kvp::InputOp op);
  llvm::Expected<Tensor> keysOf(const Cache &cache, bool unrotated);
  llvm::Expected<Tensor> queriesOf(kvp::InputOp op, const Cache &cache);
  llvm::Expected<Tensor> originalPositions(const Cache &cache, bool perHead);
  llvm::Expected<Tensor> causal(kvp::CausalOp op);
  llvm::Expected<Tensor> uniformOf(kvp::UniformOp op);

  // Selections.cpp
  llvm::Expected<Value> topk(kvp::TopkOp op);
  llvm::Expected<Value> mask(kvp::MaskOp op);
  llvm::Error eachHead(mlir::Operation *selection, const Cache &cache,
                       llvm::function_ref<llvm::Error(const Evaluation &, int64_t)> see);
  /// The entries of one head, and how many of them it keeps by itself.
  struct Contest {
    std::vector<float> scores;
    std::vector<uint8_t> shield;
    int64_t count = 0;
  };
  llvm::Expected<Contest> contest(kvp::TopkOp op, int64_t head) const;
  llvm::Expected<Sets> chooseJointly(kvp::TopkOp op, const Cache &cache);
  Cut partsOf(kvp::TopkOp op) const;
  /// What one head keeps, by the values that this evaluation has.
  llvm::Expected<std::vector<int64_t>> choose(kvp::TopkOp op, int64_t head) const;
  std::vector<int64_t> choose(kvp::MaskOp op, int64_t head) const;
  template <typename Op>
  llvm::Expected<Sets> chooseAll(Op op, const Cache &cache);
  /// Where the layer follows another: that one's choice, demanding nothing but the cache.
  llvm::Expected<std::optional<Sets>> followed(mlir::Operation *op, const Cache &cache,
                                               int64_t entries);
  Cache narrowed(const Cache &cache, const Sets &chosen, bool channels) const;
  /// 0 for the first selection of the program.
  int64_t selectionNumber(mlir::Operation *op) const;

  /// Another evaluation that sees the same caches and parameters as one head does.
  Evaluation asSeenBy(int64_t head) const;

  const Row &row;
  /// Where heads have different numbers of entries, `length` is that of a head.
  std::optional<int64_t> head;
  State *state;
  const Given &given;
  kvp::PressOp press;
  llvm::DenseMap<mlir::Value, Value> values;
  /// Operands of a selection that are to be evaluated.
  llvm::SmallVector<mlir::Value> needsOf(mlir::Operation *selection) const;
};

/// Whether `op` takes the choice of an earlier layer.
bool follows(mlir::Operation *op, int64_t layer);

template <typename... Ts>
llvm::Error failed(const char *format, Ts &&...values) {
  return llvm::createStringError(llvm::inconvertibleErrorCode(), format,
                                 std::forward<Ts>(values)...);
}

} // namespace kvpc::reference

#endif
