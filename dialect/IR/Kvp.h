//===- Kvp.h - the kvp dialect ----------------------------------------------------------------===//
#ifndef KVPC_DIALECT_IR_KVP_H
#define KVPC_DIALECT_IR_KVP_H

#include "mlir/Bytecode/BytecodeOpInterface.h"
#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/IR/BuiltinTypes.h"
#include "mlir/IR/Dialect.h"
#include "mlir/IR/OpDefinition.h"
#include "mlir/IR/OpImplementation.h"
#include "mlir/IR/SymbolTable.h"
#include "mlir/Interfaces/InferTypeOpInterface.h"
#include "mlir/Interfaces/SideEffectInterfaces.h"

#include "dialect/IR/KvpDialect.h.inc"
#include "dialect/IR/KvpEnums.h.inc"
#define GET_ATTRDEF_CLASSES
#include "dialect/IR/KvpAttrs.h.inc"
#define GET_TYPEDEF_CLASSES
#include "dialect/IR/KvpTypes.h.inc"
#define GET_OP_CLASSES
#include "dialect/IR/KvpOps.h.inc"

namespace kvpc::kvp {

/// Emits an error about a type rule; may be null where only success matters.
using EmitError = llvm::function_ref<mlir::InFlightDiagnostic()>;

/// Axes of `a` and `b` united by name in order of first appearance. Fails if a shared axis differs
/// in cache state or static extent.
mlir::FailureOr<llvm::SmallVector<AxisAttr>>
uniteAxes(llvm::ArrayRef<AxisAttr> a, llvm::ArrayRef<AxisAttr> b, EmitError emitError = nullptr);

/// Result type of `fn` on tensors and host scalars; null and an error where it has none.
mlir::Type inferMapType(mlir::MLIRContext *context, Fn fn, mlir::TypeRange operands,
                        EmitError emitError = nullptr);

/// The same tensor with its axes in the order head, group, query, part, slot, token, channel,
/// feature, others by name. Results of kvp operations have it, so that equal axes are equal types.
NamedTensorType inCanonicalOrder(NamedTensorType type);

/// Whether the axis numbers entries of the cache (and so has a state): token, channel, part, slot.
bool isCacheAxis(llvm::StringRef name);

/// Whether rows can be long along the axis, so that sweeps go over it: token, part, and query where
/// a program has all of a pass.
bool isEntryAxis(AxisAttr axis);

/// Whether the axis numbers all queries of a pass.
bool isAllQueries(AxisAttr axis);

/// The type of a value over axes; null of others.
inline NamedTensorType tensorOf(mlir::Value v) {
  return llvm::dyn_cast<NamedTensorType>(v.getType());
}

/// Names in an array of string attributes.
llvm::SmallVector<llvm::StringRef> axisNames(mlir::ArrayAttr names);

/// Host semantics of `fn`, shared by folding, the reference interpreter and tests.
double evaluateFloat(Fn fn, llvm::ArrayRef<double> operands);
int64_t evaluateInt(Fn fn, llvm::ArrayRef<int64_t> operands);
/// floor, round and int of a float: saturating, 0 for NaN.
int64_t floatToInt(Fn fn, double x);
bool evaluateCompare(Fn fn, double a, double b);

} // namespace kvpc::kvp

#endif
