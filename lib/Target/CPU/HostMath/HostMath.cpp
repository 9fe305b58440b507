//===- HostMath.cpp - the object of HostMath.c, to be linked into modules --===//
#include "HostMath.h"

// Written by Embed.cmake.
extern const unsigned long hostMathSize;
extern const char hostMath[];

llvm::StringRef kvpc::hostMathObject() { return {hostMath, hostMathSize}; }
