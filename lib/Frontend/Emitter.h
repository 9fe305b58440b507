//===- Emitter.h - kvp operations, each once --------------------------------------------------===//
#ifndef KVPC_LIB_FRONTEND_EMITTER_H
#define KVPC_LIB_FRONTEND_EMITTER_H

#include "lib/Frontend/Values.h"
#include "mlir/IR/Builders.h"

namespace kvpc {

/// Appends to the block of one press. Equal pure operations are made once, so that values may be
/// compared by identity. Types are inferred by the dialect; a failure there has been reported and
/// gives a null value.
class Emitter {
public:
  Emitter(mlir::Block *block, mlir::MLIRContext *context) : builder(context) {
    builder.setInsertionPointToEnd(block);
  }

  mlir::Builder &attributes() { return builder; }
  mlir::MLIRContext *getContext() const { return builder.getContext(); }
  unsigned size() const { return count; }

  /// An op with one result. `segments` for ops with several optional operands.
  template <typename OpT>
  mlir::Value create(mlir::Location loc, mlir::ValueRange operands,
                     llvm::ArrayRef<mlir::NamedAttribute> attributes = {},
                     std::optional<llvm::SmallVector<int32_t>> segments = std::nullopt) {
    llvm::SmallVector<mlir::NamedAttribute> all(attributes);
    if (segments)
      all.push_back(named("operandSegmentSizes", builder.getDenseI32ArrayAttr(*segments)));
    auto dictionary = mlir::DictionaryAttr::get(getContext(), all);
    typename OpT::Properties properties;
    llvm::SmallVector<mlir::Type, 1> types;
    auto report = [&] { return mlir::emitError(loc); };
    if (llvm::is_contained(operands, mlir::Value()) ||
        mlir::failed(OpT::setPropertiesFromAttr(properties, dictionary, report)) ||
        mlir::failed(
            OpT::inferReturnTypes(getContext(), loc, operands, dictionary, &properties, {}, types)))
      return {};
    return insert(loc, OpT::getOperationName(), operands, types.front(), all);
  }

  /// The same for an op whose result type is always one.
  template <typename OpT>
  mlir::Value createAs(mlir::Location loc, mlir::Type type, mlir::ValueRange operands,
                       llvm::ArrayRef<mlir::NamedAttribute> attributes = {}) {
    if (llvm::is_contained(operands, mlir::Value()))
      return {};
    return insert(loc, OpT::getOperationName(), operands, type, attributes);
  }

  mlir::NamedAttribute named(llvm::StringRef name, mlir::Attribute value) {
    return builder.getNamedAttr(name, value);
  }
  mlir::NamedAttribute string(llvm::StringRef name, llvm::StringRef text) {
    return named(name, builder.getStringAttr(text));
  }
  mlir::NamedAttribute integer(llvm::StringRef name, int64_t value) {
    return named(name, builder.getI64IntegerAttr(value));
  }
  mlir::NamedAttribute strings(llvm::StringRef name, llvm::ArrayRef<llvm::StringRef> texts) {
    return named(name, builder.getStrArrayAttr(texts));
  }
  mlir::NamedAttribute unit(llvm::StringRef name) { return named(name, builder.getUnitAttr()); }

  mlir::Type i64() { return builder.getI64Type(); }
  mlir::Type f64() { return builder.getF64Type(); }
  mlir::Type i1() { return builder.getI1Type(); }

  mlir::Value constant(mlir::Location loc, const Number &number);
  mlir::Value map(mlir::Location loc, kvp::Fn fn, mlir::ValueRange operands);
  mlir::Value reduce(mlir::Location loc, kvp::Reduction kind, mlir::Value input,
                     llvm::ArrayRef<llvm::StringRef> over, mlir::Value where = {});
  void require(mlir::Location loc, mlir::Value condition, llvm::StringRef message);
  /// A value of any type in a program that will be refused for what is not implemented.
  mlir::Value placeholder(mlir::Location loc, mlir::Type type, mlir::ValueRange operands = {});

private:
  mlir::Value insert(mlir::Location loc, llvm::StringRef name, mlir::ValueRange operands,
                     mlir::Type type, llvm::ArrayRef<mlir::NamedAttribute> attributes);
  mlir::Value unique(mlir::Operation *op);

  mlir::OpBuilder builder;
  llvm::DenseMap<unsigned, llvm::SmallVector<mlir::Operation *, 1>> known; // by hash
  unsigned count = 0;
};

} // namespace kvpc

#endif
