//===- Sources.h - buffers in a source manager ------------------------------------------------===//
#ifndef KVPC_LIB_FRONTEND_SOURCES_H
#define KVPC_LIB_FRONTEND_SOURCES_H

#include "llvm/Support/SourceMgr.h"

namespace kvpc {

/// Copies `text` into a new buffer called `path`; the copy lives as long as `sources`.
llvm::StringRef addSource(llvm::SourceMgr &sources, llvm::StringRef path, llvm::StringRef text);

} // namespace kvpc

#endif
