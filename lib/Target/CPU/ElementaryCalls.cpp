//===- ElementaryCalls.cpp - math operations to hand-written functions -----===//
//
// Before: math operations on f32 and f64. After: those that are no machine instruction are calls of
// kvpc_prim_*; f32 vectors of any shape are cut into registers of the level. f16 and bf16 are taken
// through f32.
//
//===----------------------------------------------------------------------===//
#include "Target.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/UB/IR/UBOps.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"
#include "mlir/IR/SymbolTable.h"
#include "mlir/Pass/Pass.h"
#include "llvm/ADT/StringMap.h"

using namespace mlir;

namespace kvpc::cpu {
namespace {

/// How an operation is computed for f32. In f64 all of them are kvpc_prim_f64_<name>.
enum class Single {
  Lanes, // kvpc_prim_<name>, kvpc_prim_<name>_v
  Wide,  // in f64
};

struct Function {
  StringRef name;
  Single single;
};

const llvm::StringMap<Function> &functions() {
  static const llvm::StringMap<Function> table = {
      {"math.exp", {"exp", Single::Lanes}},    {"math.exp2", {"exp2", Single::Lanes}},
      {"math.log", {"log", Single::Lanes}},    {"math.tanh", {"tanh", Single::Lanes}},
      {"math.erf", {"erf", Single::Lanes}},    {"math.powf", {"pow", Single::Lanes}},
      {"math.log2", {"log2", Single::Wide}},   {"math.log10", {"log10", Single::Wide}},
      {"math.log1p", {"log1p", Single::Wide}}, {"math.expm1", {"expm1", Single::Wide}},
      {"math.sin", {"sin", Single::Wide}},     {"math.cos", {"cos", Single::Wide}},
  };
  return table;
}

class Rewriter {
public:
  Rewriter(ModuleOp module, Level level)
      : module(module), symbols(module), lanes(levelLanes(level)), builder(module.getContext()) {}

  void rewrite(Operation *op, const Function &function) {
    builder.setInsertionPoint(op);
    loc = op->getLoc();
    SmallVector<Value> operands(op->getOperands());
    Value result = apply(function, operands);
    op->getResult(0).replaceAllUsesWith(result);
    op->erase();
  }

  /// 1 / sqrt(x): correct to an ulp and the same everywhere, unlike the machine's estimate.
  void rewriteRsqrt(math::RsqrtOp op) {
    builder.setInsertionPoint(op);
    loc = op.getLoc();
    Type type = op.getType();
    Value root = math::SqrtOp::create(builder, loc, op.getOperand());
    TypedAttr one = builder.getFloatAttr(getElementTypeOrSelf(type), 1.0);
    if (auto vector = dyn_cast<VectorType>(type))
      one = DenseElementsAttr::get(vector, Attribute(one));
    Value numerator = arith::ConstantOp::create(builder, loc, type, one);
    op.replaceAllUsesWith(Value(arith::DivFOp::create(builder, loc, numerator, root)));
    op.erase();
  }

private:
  Value apply(const Function &function, ArrayRef<Value> operands) {
    Type type = operands.front().getType();
    auto vector = dyn_cast<VectorType>(type);
    auto element = cast<FloatType>(getElementTypeOrSelf(type));
    if (element.getWidth() < 32)
      return through(builder.getF32Type(), function, operands);
    if (element.isF32() && function.single == Single::Wide)
      return through(builder.getF64Type(), function, operands);
    if (!vector)
      return call(name(function, element, false), type, operands);
    if (vector.getRank() != 1)
      return flat(function, operands, vector);
    return element.isF32() ? byRegisters(function, operands, vector)
                           : byElements(function, operands, vector);
  }

  /// Computes in a wider type.
  Value through(FloatType wide, const Function &function, ArrayRef<Value> operands) {
    Type type = operands.front().getType();
    auto vector = dyn_cast<VectorType>(type);
    Type wideType = vector ? Type(vector.clone(wide)) : Type(wide);
    SmallVector<Value> wider;
    for (Value operand : operands)
      wider.push_back(arith::ExtFOp::create(builder, loc, wideType, operand));
    return arith::TruncFOp::create(builder, loc, type, apply(function, wider));
  }

  Value flat(const Function &function, ArrayRef<Value> operands, VectorType type) {
    auto flatType = VectorType::get(type.getNumElements(), type.getElementType());
    SmallVector<Value> flattened;
    for (Value operand : operands)
      flattened.push_back(vector::ShapeCastOp::create(builder, loc, flatType, operand));
    return vector::ShapeCastOp::create(builder, loc, type, apply(function, flattened));
  }

  Value byRegisters(const Function &function, ArrayRef<Value> operands, VectorType type) {
    int64_t size = type.getNumElements();
    auto registerType = VectorType::get(lanes, type.getElementType());
    std::string callee = name(function, type.getElementType(), true);
    if (size == lanes)
      return call(callee, type, operands);
    Value result = ub::PoisonOp::create(builder, loc, type);
    for (int64_t first = 0; first < size; first += lanes) {
      int64_t count = std::min(lanes, size - first);
      // Lanes past the end repeat the first, so that no register holds garbage.
      SmallVector<int64_t> take(lanes, first), put(size);
      for (int64_t i = 0; i < count; ++i)
        take[i] = first + i;
      for (int64_t i = 0; i < size; ++i)
        put[i] = i >= first && i < first + count ? size + i - first : i;
      SmallVector<Value> parts;
      for (Value operand : operands)
        parts.push_back(vector::ShuffleOp::create(builder, loc, operand, operand, take));
      Value part = call(callee, registerType, parts);
      result = vector::ShuffleOp::create(builder, loc, result, part, put);
    }
    return result;
  }

  Value byElements(const Function &function, ArrayRef<Value> operands, VectorType type) {
    std::string callee = name(function, type.getElementType(), false);
    Value result = ub::PoisonOp::create(builder, loc, type);
    for (int64_t i = 0; i < type.getNumElements(); ++i) {
      SmallVector<Value> elements;
      for (Value operand : operands)
        elements.push_back(vector::ExtractOp::create(builder, loc, operand, i));
      Value element = call(callee, type.getElementType(), elements);
      result = vector::InsertOp::create(builder, loc, element, result, i);
    }
    return result;
  }

  static std::string name(const Function &function, Type element, bool vector) {
    std::string result = element.isF64() ? "kvpc_prim_f64_" : "kvpc_prim_";
    result += function.name;
    return vector ? result + "_v" : result;
  }

  Value call(StringRef callee, Type type, ArrayRef<Value> operands) {
    Operation *declared = symbols.lookup(callee);
    if (auto declaration = dyn_cast_or_null<func::FuncOp>(declared))
      return func::CallOp::create(builder, loc, declaration, operands).getResult(0);
    auto declaration = cast_or_null<LLVM::LLVMFuncOp>(declared);
    if (!declaration) {
      OpBuilder::InsertionGuard guard(builder);
      builder.setInsertionPointToEnd(module.getBody());
      SmallVector<Type> types;
      for (Value operand : operands)
        types.push_back(operand.getType());
      declaration = LLVM::LLVMFuncOp::create(builder, module.getLoc(), callee,
                                             LLVM::LLVMFunctionType::get(type, types));
      symbols.insert(declaration);
    }
    return LLVM::CallOp::create(builder, loc, declaration, operands).getResult();
  }

  ModuleOp module;
  SymbolTable symbols;
  int64_t lanes;
  OpBuilder builder;
  Location loc = builder.getUnknownLoc();
};

struct ElementaryCalls : PassWrapper<ElementaryCalls, OperationPass<ModuleOp>> {
  MLIR_DEFINE_EXPLICIT_INTERNAL_INLINE_TYPE_ID(ElementaryCalls)

  ElementaryCalls() = default;
  explicit ElementaryCalls(Level chosen) { level = unsigned(chosen); }
  ElementaryCalls(const ElementaryCalls &other) : PassWrapper(other) {}

  StringRef getArgument() const override { return "kvpc-elementary-calls"; }
  StringRef getDescription() const override {
    return "math operations become calls of the target's own functions";
  }
  void getDependentDialects(DialectRegistry &registry) const override {
    registry.insert<arith::ArithDialect, LLVM::LLVMDialect, math::MathDialect, ub::UBDialect,
                    vector::VectorDialect>();
  }

  void runOnOperation() override {
    if (level >= kLevels) {
      getOperation().emitError("there is no instruction set level ") << level.getValue();
      return signalPassFailure();
    }
    SmallVector<std::pair<Operation *, const Function *>> found;
    SmallVector<math::RsqrtOp> roots;
    getOperation().walk([&](Operation *op) {
      if (auto root = dyn_cast<math::RsqrtOp>(op))
        roots.push_back(root);
      else if (auto known = functions().find(op->getName().getStringRef());
               known != functions().end())
        found.push_back({op, &known->second});
    });
    Rewriter rewriter(getOperation(), Level(level.getValue()));
    for (auto [op, function] : found)
      rewriter.rewrite(op, *function);
    for (math::RsqrtOp root : roots)
      rewriter.rewriteRsqrt(root);
  }

  Option<unsigned> level{*this, "level", llvm::cl::desc("instruction set: 0, 1 or 2"),
                         llvm::cl::init(0)};
};

} // namespace

std::unique_ptr<Pass> createElementaryCallsPass(Level level) {
  return std::make_unique<ElementaryCalls>(level);
}

} // namespace kvpc::cpu
