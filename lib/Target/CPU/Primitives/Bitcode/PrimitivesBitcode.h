//===- PrimitivesBitcode.h - the primitives, to be linked into modules -----===//
#ifndef KVPC_TARGET_CPU_PRIMITIVES_BITCODE_H
#define KVPC_TARGET_CPU_PRIMITIVES_BITCODE_H

#include "llvm/ADT/StringRef.h"

namespace kvpc {

/// Levels of Primitives.h: 0 x86-64-v3, 1 x86-64-v4, 2 x86-64-v4 with AVX512-BF16.
constexpr unsigned kPrimitiveLevels = 3;

/// LLVM bitcode of all primitives at a level. Every symbol but kvpc_prim_* may be made internal at
/// once, and those once linked; memcpy, memmove and memset must stay as they are (hidden, weak),
/// for code generation may call them.
llvm::StringRef primitivesBitcode(unsigned level);

} // namespace kvpc

#endif
