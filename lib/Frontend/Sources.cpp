//===- Sources.cpp - buffers in a source manager ----------------------------------------------===//
#include "lib/Frontend/Sources.h"

#include "llvm/Support/MemoryBuffer.h"

llvm::StringRef kvpc::addSource(llvm::SourceMgr &sources, llvm::StringRef path,
                                llvm::StringRef text) {
  auto buffer = llvm::MemoryBuffer::getMemBufferCopy(text, path);
  llvm::StringRef copy = buffer->getBuffer();
  sources.AddNewSourceBuffer(std::move(buffer), llvm::SMLoc());
  return copy;
}
