//===- Emitter.h - shorthand for the scalar and vector code of a kernel -----------------------===//
//
// All integers are i64, all memory is !llvm.ptr with byte offsets: kernels have no memrefs and no
// index type. Constants fold on the way.
//
//===------------------------------------------------------------------------------------------===//
#ifndef KVPC_DIALECT_CONVERSION_EMITTER_H
#define KVPC_DIALECT_CONVERSION_EMITTER_H

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/ImplicitLocOpBuilder.h"
#include <functional>

namespace kvpc::codegen {

/// Storage of an element in memory.
enum class Storage { F32, BF16, F16, I64, I32, Byte };
int64_t bytesOf(Storage storage);

class Emitter : public mlir::ImplicitLocOpBuilder {
public:
  Emitter(mlir::ModuleOp module, unsigned lanes);

  unsigned lanes() const { return width; }
  mlir::ModuleOp getModule() const { return module; }

  mlir::Type i1() { return getI1Type(); }
  mlir::Type i32() { return getI32Type(); }
  mlir::Type i64() { return getI64Type(); }
  mlir::Type f32() { return getF32Type(); }
  mlir::Type f64() { return getF64Type(); }
  mlir::Type ptr() { return mlir::LLVM::LLVMPointerType::get(getContext()); }
  mlir::VectorType vec(mlir::Type element) { return mlir::VectorType::get({width}, element); }

  mlir::Value constant(int64_t value);
  mlir::Value constantF32(double value);
  mlir::Value constantF64(double value);
  mlir::Value constantBool(bool value);
  /// The constant in `type`: scalar or vector of f32, f64, i64 or i1.
  mlir::Value constantOf(mlir::Type type, double value);

  mlir::Value add(mlir::Value a, mlir::Value b);
  mlir::Value sub(mlir::Value a, mlir::Value b);
  mlir::Value mul(mlir::Value a, mlir::Value b);
  mlir::Value add(mlir::Value a, int64_t b) { return add(a, constant(b)); }
  mlir::Value mul(mlir::Value a, int64_t b) { return mul(a, constant(b)); }
  /// Quotient rounded down, rounded up and rest of values that are not negative; b > 0.
  mlir::Value div(mlir::Value a, mlir::Value b);
  mlir::Value rem(mlir::Value a, mlir::Value b);
  mlir::Value ceilDiv(mlir::Value a, mlir::Value b);
  mlir::Value roundUp(mlir::Value a, int64_t b);
  mlir::Value min(mlir::Value a, mlir::Value b);
  mlir::Value max(mlir::Value a, mlir::Value b);
  mlir::Value cmp(mlir::arith::CmpIPredicate predicate, mlir::Value a, mlir::Value b);
  mlir::Value less(mlir::Value a, mlir::Value b) {
    return cmp(mlir::arith::CmpIPredicate::slt, a, b);
  }
  mlir::Value select(mlir::Value condition, mlir::Value a, mlir::Value b);
  /// Conjunction; either may be null, which is true.
  mlir::Value both(mlir::Value a, mlir::Value b);

  bool isVector(mlir::Value v) { return llvm::isa<mlir::VectorType>(v.getType()); }
  /// A scalar on all lanes; a vector as it is.
  mlir::Value spread(mlir::Value v);
  /// 0, 1, ... on i64 lanes.
  mlir::Value iota();
  /// Lanes i with i < count.
  mlir::Value lanesBelow(mlir::Value count);

  /// Address base + bytes.
  mlir::Value at(mlir::Value base, mlir::Value bytes);
  mlir::Value at(mlir::Value base, int64_t bytes);
  mlir::Value loadScalar(mlir::Type type, mlir::Value address);
  void storeScalar(mlir::Value value, mlir::Value address);
  mlir::Value loadI64(mlir::Value base, int64_t bytes) {
    return loadScalar(i64(), at(base, bytes));
  }
  mlir::Value loadPtr(mlir::Value base, int64_t bytes) {
    return loadScalar(ptr(), at(base, bytes));
  }
  mlir::Value isNull(mlir::Value pointer);

  /// One element as f32, i64 or i1.
  mlir::Value load(Storage storage, mlir::Value address);
  /// `lanes` neighbouring elements; lanes outside `mask` (null: all) are not touched and read as 0.
  mlir::Value loadVector(Storage storage, mlir::Value address, mlir::Value mask);
  /// Elements at base + offsets[lane] elements.
  mlir::Value gather(Storage storage, mlir::Value base, mlir::Value offsets, mlir::Value mask);
  void store(Storage storage, mlir::Value value, mlir::Value address);
  void storeVector(Storage storage, mlir::Value value, mlir::Value address, mlir::Value mask);

  /// f32 or i64, scalar or vector.
  mlir::Value toFloat(mlir::Value v);

  /// for (i = from; i < to; i += step) body(i).
  void loop(mlir::Value from, mlir::Value to, int64_t step,
            llvm::function_ref<void(mlir::Value)> body);
  /// The same with values carried around.
  llvm::SmallVector<mlir::Value>
  loop(mlir::Value from, mlir::Value to, int64_t step, mlir::ValueRange init,
       llvm::function_ref<llvm::SmallVector<mlir::Value>(mlir::Value, mlir::ValueRange)> body);
  void when(mlir::Value condition, llvm::function_ref<void()> then,
            llvm::function_ref<void()> otherwise = nullptr);
  mlir::Value choose(mlir::Value condition, llvm::function_ref<mlir::Value()> then,
                     llvm::function_ref<mlir::Value()> otherwise);

  /// Calls `name`, declaring it first: primitives and functions of this module.
  mlir::Value call(llvm::StringRef name, mlir::Type result, mlir::ValueRange arguments);
  void call(llvm::StringRef name, mlir::ValueRange arguments);

  /// Called with true before and false after the body of a loop or branch is built.
  std::function<void(bool)> onRegion;

private:
  mlir::ModuleOp module;
  unsigned width;

  void region(llvm::function_ref<void()> build);

  mlir::Value finishLoad(Storage storage, mlir::Value raw);
  mlir::Type rawType(Storage storage);
  mlir::Value toRaw(Storage storage, mlir::Value value);
};

} // namespace kvpc::codegen

#endif
