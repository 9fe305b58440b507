//===- PrimitivesBitcode.cpp - the primitives, to be linked into modules --===//
#include "PrimitivesBitcode.h"
#include <cassert>

// Written by Embed.cmake.
extern const unsigned long primitivesLevel0Size, primitivesLevel1Size, primitivesLevel2Size;
extern const char primitivesLevel0[], primitivesLevel1[], primitivesLevel2[];

llvm::StringRef kvpc::primitivesBitcode(unsigned level) {
  assert(level < kPrimitiveLevels && "no such level");
  if (level == 0)
    return {primitivesLevel0, primitivesLevel0Size};
  if (level == 1)
    return {primitivesLevel1, primitivesLevel1Size};
  return {primitivesLevel2, primitivesLevel2Size};
}
