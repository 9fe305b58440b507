//===- Output.h - files appear whole or not at all --------------------------------------------===//
#ifndef KVPC_DRIVER_OUTPUT_H
#define KVPC_DRIVER_OUTPUT_H

#include "llvm/ADT/STLFunctionalExtras.h"
#include "llvm/Support/Error.h"
#include "llvm/Support/raw_ostream.h"

namespace kvpc::driver {

/// Calls `write` for a stream. A regular file is written under another name in the same folder and
/// takes its own when it is complete; after any error, or a signal, there is what was there before.
/// `-` is the standard output.
llvm::Error writeOutput(llvm::StringRef path, llvm::function_ref<void(llvm::raw_ostream &)> write);

} // namespace kvpc::driver

#endif
