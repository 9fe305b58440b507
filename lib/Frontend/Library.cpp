//===- Library.cpp - the library's files, part of the compiler --------------------------------===//
#include "lib/Frontend/Frontend.h"

using namespace kvpc;

static const LibraryFile files[] = {
#include "lib/Frontend/LibraryFiles.inc"
};

llvm::ArrayRef<LibraryFile> kvpc::library() { return files; }

const LibraryFile *kvpc::findLibraryFile(llvm::StringRef name) {
  for (const LibraryFile &file : files)
    if (file.name == name)
      return &file;
  return nullptr;
}
