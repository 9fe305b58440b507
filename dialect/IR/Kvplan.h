//===- Kvplan.h - the kvplan dialect ----------------------------------------------------------===//
#ifndef KVPC_DIALECT_IR_KVPLAN_H
#define KVPC_DIALECT_IR_KVPLAN_H

#include "dialect/IR/Kvp.h"

#include "dialect/IR/KvplanDialect.h.inc"
#include "dialect/IR/KvplanEnums.h.inc"
#define GET_ATTRDEF_CLASSES
#include "dialect/IR/KvplanAttrs.h.inc"
#define GET_TYPEDEF_CLASSES
#include "dialect/IR/KvplanTypes.h.inc"
#define GET_OP_CLASSES
#include "dialect/IR/KvplanOps.h.inc"

namespace kvpc::kvplan {

/// What is written to a buffer: a tensor with its axes. Null for a contraction's, whose axes are
/// known by their names.
mlir::Value writtenTo(mlir::Value buffer);

/// The buffer that was put in order to fill `buffer`, and what it calls `axis`; themselves where
/// nothing was.
llvm::StringRef axisOf(mlir::Value &buffer, llvm::StringRef axis);

/// Whether a buffer has the queries of one block only, where others have all of them.
bool holdsBlock(BufferOp buffer);

/// The pass of which a buffer holds the entries of one tile, for the thread that works on it. Null
/// for others, among them the block of a fold.
PassOp passOfTile(mlir::Value buffer);

/// Whether an axis of a buffer numbers its entries; the queries of a block are rows inside them.
bool isEntryAxis(BufferOp buffer, kvp::AxisAttr axis);

/// The tensor and axis from which an axis of `tensor` comes, through renames, maps and buffers.
/// `picked`: set where a part was picked on the way, of which the axis may be the slots.
std::pair<mlir::Value, llvm::StringRef> originOf(mlir::Value tensor, llvm::StringRef axis,
                                                 bool *picked = nullptr);

/// The partition that made an axis of `tensor`, as `part` or `slot`.
kvp::PartitionOp partitionOf(mlir::Value tensor, llvm::StringRef axis);

/// A sum of products of which each factor has an axis that the other has not: outer products of
/// rows. Null values where it is another.
struct Outer {
  mlir::Value left, right;
  llvm::StringRef row, column; ///< the axis of the left alone, of the right alone
  bool symmetric;              ///< right is left, by another name
  explicit operator bool() const { return bool(left); }
};
Outer outerOf(mlir::Value product, llvm::StringRef over);

/// Slots of a partition along an axis, and the axis along which its parts run.
struct Slots {
  kvp::PartitionOp partition;
  llvm::StringRef part;
  explicit operator bool() const { return bool(partition); }
};

/// Whether `axis` of `tensor` runs along slots of parts that the tensor has, under whatever names:
/// there are fewer in a short last part. Not those of one part that was picked: kvp-primitives
/// makes a condition of which are there.
Slots slotsAlong(mlir::Value tensor, llvm::StringRef axis);

} // namespace kvpc::kvplan

#endif
