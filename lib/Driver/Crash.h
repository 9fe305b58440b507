//===- Crash.h - internal errors end with their own exit code ---------------------------------===//
#ifndef KVPC_DRIVER_CRASH_H
#define KVPC_DRIVER_CRASH_H

#include "llvm/ADT/StringRef.h"

namespace kvpc::driver {

/// From here on a failed assertion, a fault or a fatal error of LLVM says so, removes temporary
/// files and ends the process with kInternal.
void installCrashHandlers();

/// Crashes by `abort`, `fault` or `fatal`; anything else does nothing.
void crashForTests(llvm::StringRef how);

} // namespace kvpc::driver

#endif
