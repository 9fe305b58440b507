//===- Emitter.cpp - shorthand for the scalar and vector code of a kernel ---------------------===//
#include "dialect/Conversion/Emitter.h"

#include "mlir/Dialect/Vector/IR/VectorOps.h"

using namespace mlir;
using namespace kvpc::codegen;

int64_t kvpc::codegen::bytesOf(Storage storage) {
  switch (storage) {
  case Storage::I64:
    return 8;
  case Storage::F32:
  case Storage::I32:
    return 4;
  case Storage::BF16:
  case Storage::F16:
    return 2;
  case Storage::Byte:
    return 1;
  }
  llvm_unreachable("storage");
}

Emitter::Emitter(ModuleOp module, unsigned lanes)
    : ImplicitLocOpBuilder(ImplicitLocOpBuilder::atBlockEnd(module.getLoc(), module.getBody())),
      module(module), width(lanes) {}

Value Emitter::constant(int64_t value) {
  return arith::ConstantOp::create(*this, getI64IntegerAttr(value));
}
Value Emitter::constantF32(double value) {
  return arith::ConstantOp::create(*this, getF32FloatAttr(static_cast<float>(value)));
}
Value Emitter::constantF64(double value) {
  return arith::ConstantOp::create(*this, getF64FloatAttr(value));
}
Value Emitter::constantBool(bool value) {
  return arith::ConstantOp::create(*this, getBoolAttr(value));
}

Value Emitter::constantOf(Type type, double value) {
  if (auto vector = dyn_cast<VectorType>(type))
    return spread(constantOf(vector.getElementType(), value));
  if (type.isF32())
    return constantF32(value);
  if (type.isF64())
    return constantF64(value);
  return type.isInteger(1) ? constantBool(value != 0) : constant(static_cast<int64_t>(value));
}

Value Emitter::add(Value a, Value b) { return createOrFold<arith::AddIOp>(a, b); }
Value Emitter::sub(Value a, Value b) { return createOrFold<arith::SubIOp>(a, b); }
Value Emitter::mul(Value a, Value b) { return createOrFold<arith::MulIOp>(a, b); }
Value Emitter::div(Value a, Value b) { return createOrFold<arith::DivUIOp>(a, b); }
Value Emitter::rem(Value a, Value b) { return createOrFold<arith::RemUIOp>(a, b); }
Value Emitter::ceilDiv(Value a, Value b) { return div(add(a, sub(b, constant(1))), b); }
Value Emitter::roundUp(Value a, int64_t b) { return mul(ceilDiv(a, constant(b)), b); }
Value Emitter::min(Value a, Value b) { return createOrFold<arith::MinSIOp>(a, b); }
Value Emitter::max(Value a, Value b) { return createOrFold<arith::MaxSIOp>(a, b); }
Value Emitter::cmp(arith::CmpIPredicate predicate, Value a, Value b) {
  return createOrFold<arith::CmpIOp>(predicate, a, b);
}

Value Emitter::select(Value condition, Value a, Value b) {
  if (isVector(condition) || isVector(a) || isVector(b)) {
    a = spread(a);
    b = spread(b);
  }
  return createOrFold<arith::SelectOp>(condition, a, b);
}

Value Emitter::both(Value a, Value b) {
  if (!a || !b)
    return a ? a : b;
  if (isVector(a) || isVector(b)) {
    a = spread(a);
    b = spread(b);
  }
  return createOrFold<arith::AndIOp>(a, b);
}

Value Emitter::spread(Value v) {
  if (isVector(v))
    return v;
  return createOrFold<vector::BroadcastOp>(vec(v.getType()), v);
}

Value Emitter::iota() {
  auto values = llvm::to_vector(llvm::seq<int64_t>(0, width));
  return arith::ConstantOp::create(*this, DenseIntElementsAttr::get(vec(i64()), values));
}

Value Emitter::lanesBelow(Value count) {
  return cmp(arith::CmpIPredicate::slt, iota(), spread(count));
}

Value Emitter::at(Value base, Value bytes) {
  if (auto c = getConstantIntValue(bytes); c && *c == 0)
    return base;
  return LLVM::GEPOp::create(*this, ptr(), getI8Type(), base, ArrayRef<LLVM::GEPArg>{bytes});
}

Value Emitter::at(Value base, int64_t bytes) {
  if (bytes == 0)
    return base;
  return LLVM::GEPOp::create(*this, ptr(), getI8Type(), base,
                             ArrayRef<LLVM::GEPArg>{static_cast<int32_t>(bytes)});
}

Value Emitter::loadScalar(Type type, Value address) {
  return LLVM::LoadOp::create(*this, type, address);
}

void Emitter::storeScalar(Value value, Value address) {
  LLVM::StoreOp::create(*this, value, address);
}

Value Emitter::isNull(Value pointer) {
  return LLVM::ICmpOp::create(*this, LLVM::ICmpPredicate::eq, pointer,
                              LLVM::ZeroOp::create(*this, ptr()));
}

Type Emitter::rawType(Storage storage) {
  switch (storage) {
  case Storage::F32:
    return f32();
  case Storage::BF16:
    return getI16Type();
  case Storage::F16:
    return getF16Type();
  case Storage::I64:
    return i64();
  case Storage::I32:
    return i32();
  case Storage::Byte:
    return getI8Type();
  }
  llvm_unreachable("storage");
}

/// As f32, i64 or i1.
Value Emitter::finishLoad(Storage storage, Value raw) {
  bool v = isVector(raw);
  auto like = [&](Type t) -> Type { return v ? Type(vec(t)) : t; };
  switch (storage) {
  case Storage::F32:
  case Storage::I64:
    return raw;
  case Storage::F16:
    return arith::ExtFOp::create(*this, like(f32()), raw);
  case Storage::BF16: {
    Value wide = arith::ExtUIOp::create(*this, like(i32()), raw);
    Value sixteen = arith::ConstantOp::create(*this, getI32IntegerAttr(16));
    Value bits = arith::ShLIOp::create(*this, wide, v ? spread(sixteen) : sixteen);
    return arith::BitcastOp::create(*this, like(f32()), bits);
  }
  case Storage::I32:
    return arith::ExtSIOp::create(*this, like(i64()), raw);
  case Storage::Byte: {
    Value zero = arith::ConstantOp::create(*this, getI8IntegerAttr(0));
    return cmp(arith::CmpIPredicate::ne, raw, v ? spread(zero) : zero);
  }
  }
  llvm_unreachable("storage");
}

Value Emitter::toRaw(Storage storage, Value value) {
  auto like = [&](Type t) -> Type { return isVector(value) ? Type(vec(t)) : t; };
  if (storage == Storage::Byte)
    return arith::ExtUIOp::create(*this, like(getI8Type()), value);
  if (storage == Storage::I32)
    return arith::TruncIOp::create(*this, like(i32()), value);
  assert((storage == Storage::F32 || storage == Storage::I64) && "buffers hold f32, i64, i32, i1");
  return value;
}

Value Emitter::load(Storage storage, Value address) {
  return finishLoad(storage, loadScalar(rawType(storage), address));
}

Value Emitter::loadVector(Storage storage, Value address, Value mask) {
  auto type = vec(rawType(storage));
  unsigned align = bytesOf(storage);
  if (!mask)
    return finishLoad(storage, LLVM::LoadOp::create(*this, type, address, align));
  Value zero = LLVM::ZeroOp::create(*this, type);
  Value raw =
      LLVM::MaskedLoadOp::create(*this, type, address, mask, zero, getI32IntegerAttr(align));
  return finishLoad(storage, raw);
}

Value Emitter::gather(Storage storage, Value base, Value offsets, Value mask) {
  auto type = vec(rawType(storage));
  Value pointers = LLVM::GEPOp::create(*this, vec(ptr()), rawType(storage), base,
                                       ArrayRef<LLVM::GEPArg>{LLVM::GEPArg(offsets)});
  Value zero = LLVM::ZeroOp::create(*this, type);
  Value all = mask ? mask : spread(constantBool(true));
  Value raw = LLVM::masked_gather::create(*this, type, pointers, all, ValueRange{zero},
                                          getI32IntegerAttr(bytesOf(storage)));
  return finishLoad(storage, raw);
}

void Emitter::store(Storage storage, Value value, Value address) {
  storeScalar(toRaw(storage, value), address);
}

void Emitter::storeVector(Storage storage, Value value, Value address, Value mask) {
  Value raw = toRaw(storage, spread(value));
  unsigned align = bytesOf(storage);
  if (mask)
    LLVM::MaskedStoreOp::create(*this, raw, address, mask, getI32IntegerAttr(align));
  else
    LLVM::StoreOp::create(*this, raw, address, align);
}

Value Emitter::toFloat(Value v) {
  Type element = getElementTypeOrSelf(v.getType());
  if (element.isF32())
    return v;
  Type type = isVector(v) ? Type(vec(f32())) : f32();
  if (element.isF64())
    return createOrFold<arith::TruncFOp>(type, v);
  if (element.isInteger(1))
    return createOrFold<arith::UIToFPOp>(type, v);
  return createOrFold<arith::SIToFPOp>(type, v);
}

void Emitter::region(function_ref<void()> build) {
  OpBuilder::InsertionGuard guard(*this);
  if (onRegion)
    onRegion(true);
  build();
  if (onRegion)
    onRegion(false);
}

void Emitter::loop(Value from, Value to, int64_t step, function_ref<void(Value)> body) {
  loop(from, to, step, {}, [&](Value i, ValueRange) {
    body(i);
    return SmallVector<Value>{};
  });
}

SmallVector<Value> Emitter::loop(Value from, Value to, int64_t step, ValueRange init,
                                 function_ref<SmallVector<Value>(Value, ValueRange)> body) {
  auto op = scf::ForOp::create(*this, from, to, constant(step), init);
  region([&] {
    setInsertionPointToStart(op.getBody());
    SmallVector<Value> next = body(op.getInductionVar(), op.getRegionIterArgs());
    if (!init.empty()) // without carried values the builder has put the terminator
      scf::YieldOp::create(*this, next);
  });
  return SmallVector<Value>(op.getResults());
}

void Emitter::when(Value condition, function_ref<void()> then, function_ref<void()> otherwise) {
  auto op = scf::IfOp::create(*this, condition, /*withElseRegion=*/bool(otherwise));
  region([&] {
    setInsertionPointToStart(op.thenBlock());
    then();
  });
  if (otherwise)
    region([&] {
      setInsertionPointToStart(op.elseBlock());
      otherwise();
    });
}

Value Emitter::choose(Value condition, function_ref<Value()> then,
                      function_ref<Value()> otherwise) {
  // The result type is known once the branches are: they are built aside and moved in.
  Region regions[2];
  Type type;
  for (bool first : {true, false}) {
    region([&] {
      createBlock(&regions[first ? 0 : 1]);
      Value result = first ? then() : otherwise();
      type = result.getType();
      scf::YieldOp::create(*this, result);
    });
  }
  auto op = scf::IfOp::create(*this, TypeRange{type}, condition, /*withElseRegion=*/false);
  op.getThenRegion().takeBody(regions[0]);
  op.getElseRegion().takeBody(regions[1]);
  return op.getResult(0);
}

static void declare(Emitter &e, StringRef name, TypeRange in, TypeRange out) {
  ModuleOp module = e.getModule();
  if (module.lookupSymbol(name))
    return;
  OpBuilder::InsertionGuard guard(e);
  e.setInsertionPointToStart(module.getBody());
  auto f = func::FuncOp::create(e, name, e.getFunctionType(in, out));
  f.setPrivate();
}

Value Emitter::call(StringRef name, Type result, ValueRange arguments) {
  declare(*this, name, arguments.getTypes(), result);
  return func::CallOp::create(*this, name, TypeRange{result}, arguments).getResult(0);
}

void Emitter::call(StringRef name, ValueRange arguments) {
  declare(*this, name, arguments.getTypes(), {});
  func::CallOp::create(*this, name, TypeRange{}, arguments);
}
