//===- Objects.h - machine code that is ready when the compiler is built ---===//
#ifndef KVPC_TARGET_CPU_OBJECTS_H
#define KVPC_TARGET_CPU_OBJECTS_H

#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/StringRef.h"

namespace kvpc {

/// Relocatable objects to be linked into every module; the linker drops what is not used. All
/// symbols are hidden:
/// - kvpc_prim_f64_{exp, exp2, expm1, log, log2, log10, log1p, pow, tanh, erf, sin, cos}: double to
///   double, pow of two;
/// - memcpy, memmove, memset;
/// - level0.kvpc_prim_* and so on: the primitives of each level, so that they need not be compiled
///   with every program. Their prefix keeps the levels apart.
llvm::ArrayRef<llvm::StringRef> targetObjects();

} // namespace kvpc

#endif // KVPC_TARGET_CPU_OBJECTS_H
