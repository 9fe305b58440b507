//===- HostMath.h - the object of HostMath.c, to be linked into modules ----===//
#ifndef KVPC_TARGET_CPU_HOSTMATH_H
#define KVPC_TARGET_CPU_HOSTMATH_H

#include "llvm/ADT/StringRef.h"

namespace kvpc {

/// A relocatable object that defines, hidden, kvpc_prim_f64_{exp, exp2, expm1, log, log2, log10,
/// log1p, pow, tanh, erf, sin, cos}: double to double, pow of two.
llvm::StringRef hostMathObject();

} // namespace kvpc

#endif // KVPC_TARGET_CPU_HOSTMATH_H
