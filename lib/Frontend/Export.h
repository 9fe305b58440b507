//===- Export.h - a declaration as a kvp.press operation --------------------------------------===//
#ifndef KVPC_LIB_FRONTEND_EXPORT_H
#define KVPC_LIB_FRONTEND_EXPORT_H

#include "lib/Frontend/Evaluator.h"
#include "mlir/IR/OwningOpRef.h"

namespace kvpc {

/// A -D, read.
struct ReadDefine {
  std::string name;  // of the parameter
  std::string press; // empty: of any press
  const Expr *value = nullptr;
  bool used = false;
};

/// Evaluates one score or press of the main file.
class Export {
public:
  /// With `assume`, parameters without a value stand for any value, so that a declaration can be
  /// checked by itself.
  Export(Program &program, Diagnostics &diagnostics, std::vector<ReadDefine> &defines,
         const Decl &decl, bool assume)
      : program(program), diagnostics(diagnostics), defines(defines), decl(decl), assume(assume) {}

  /// The parameters that keep it from being exported: without default and -D. A run-time parameter
  /// counts unless `allowRuntime`.
  std::vector<const Param *> unset(bool allowRuntime);

  /// The press, or null after reporting errors.
  mlir::OwningOpRef<kvp::PressOp> run();

private:
  struct Round;

  ReadDefine *define(llvm::StringRef param);
  bool evaluate(Round &round);
  bool bindRuntime(Round &round);
  bool bindWeights(Round &round);
  bool bindOne(Round &round, unsigned index, const Param &param);
  Budget bindScoreBudget(Round &round);
  mlir::Attribute attribute(const Value &value, const Param *param);
  void describe(Round &round, const Param &param, bool isStatic, mlir::Attribute defaultValue,
                mlir::Attribute value);

  Program &program;
  Diagnostics &diagnostics;
  std::vector<ReadDefine> &defines;
  const Decl &decl;
  bool assume;
  llvm::SmallSet<unsigned, 8> statics;
  llvm::SmallSet<unsigned, 4> wholes;
};

} // namespace kvpc

#endif
