//===- Objects.cpp - machine code that is ready when the compiler is built -===//
#include "Objects.h"

// Written by Embed.cmake.
extern const unsigned long objectHostMathSize, objectMemorySize, objectLevel0Size, objectLevel1Size,
    objectLevel2Size;
extern const char objectHostMath[], objectMemory[], objectLevel0[], objectLevel1[], objectLevel2[];

llvm::ArrayRef<llvm::StringRef> kvpc::targetObjects() {
  static const llvm::StringRef objects[] = {{objectHostMath, objectHostMathSize},
                                            {objectMemory, objectMemorySize},
                                            {objectLevel0, objectLevel0Size},
                                            {objectLevel1, objectLevel1Size},
                                            {objectLevel2, objectLevel2Size}};
  return objects;
}
