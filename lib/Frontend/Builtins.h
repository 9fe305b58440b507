//===- Builtins.h - operations of the language, and the arguments of calls --------------------===//
#ifndef KVPC_LIB_FRONTEND_BUILTINS_H
#define KVPC_LIB_FRONTEND_BUILTINS_H

#include "lib/Frontend/AST.h"
#include "llvm/ADT/SmallVector.h"

namespace kvpc {

enum class BuiltinId {
#define KVPC_BUILTIN(ID, NAME, SIGNATURE) ID,
#include "lib/Frontend/Builtins.def"
};

enum class ArgumentKind : char {
  Value = 'v',
  Axis = 'a',
  Axes = 'A',
  AxisList = 'l',
  Rename = 'r',
  Press = 'p',
  Presses = 'P',
  AxisOrList = 'i',
};

struct BuiltinParam {
  llvm::StringRef name;
  ArgumentKind kind = ArgumentKind::Value;
  bool optional = false;
};

struct Builtin {
  BuiltinId id;
  llvm::StringRef name;
  llvm::SmallVector<BuiltinParam, 4> params;
  /// Only of values of one type; see Builtins.def.
  bool methodOnly = false;

  /// Selections and what is made of them.
  bool isPress() const { return id >= BuiltinId::Topk; }
};

/// Null where the language has no such operation.
const Builtin *findBuiltin(llvm::StringRef name);
llvm::ArrayRef<Builtin> builtins();

/// Names of values that every program sees.
llvm::ArrayRef<llvm::StringRef> hostValues();
/// Axes that the language knows; programs may add others.
bool isKnownAxis(llvm::StringRef name);

/// The arguments of a call in the order of the parameters, null where one is left out.
struct Arguments {
  llvm::SmallVector<const Expr *, 4> values;
  llvm::SmallVector<Name, 2> axes;            // of parameters of kind a, A
  llvm::SmallVector<const Expr *, 2> presses; // of kind P
  Name from, to;                              // of kind r
};

/// Finds each argument its parameter. With `diagnostics` null, false without a report.
bool bindArguments(const CallExpr &call, const Decl &decl, Diagnostics *diagnostics,
                   Arguments &out);
bool bindArguments(const CallExpr &call, const Builtin &builtin, Diagnostics *diagnostics,
                   Arguments &out);

} // namespace kvpc

#endif
