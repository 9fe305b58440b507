//===- Program.h - the files of a compilation, and who sees whom ------------------------------===//
#ifndef KVPC_LIB_FRONTEND_PROGRAM_H
#define KVPC_LIB_FRONTEND_PROGRAM_H

#include "lib/Frontend/AST.h"
#include "lib/Frontend/Frontend.h"
#include "llvm/ADT/SmallPtrSet.h"
#include "llvm/ADT/StringMap.h"

namespace kvpc {

class Program {
public:
  Program(Diagnostics &diagnostics, const CompileInput &input)
      : diagnostics(diagnostics), input(input) {}

  /// Reads the main file and all that it imports. False after reporting errors.
  bool load();

  File &mainFile() const { return *files.front(); }
  /// The main file and the imported ones.
  std::vector<const File *> ownFiles() const;

  /// What a file calls `name`: its own declaration, else an imported one, else the library's. Null
  /// where there is none.
  const Decl *find(llvm::StringRef name, const File &from);
  /// Names that `find` finds.
  std::vector<llvm::StringRef> callables(const File &from);

  /// A declaration with errors: calls of it are not evaluated.
  void markBroken(const Decl &decl) { broken.insert(&decl); }
  bool isBroken(const Decl &decl) const { return broken.contains(&decl); }

  /// A file for expressions that stand in no file (the values of -D).
  File &commandLine();

private:
  struct Scope {
    llvm::StringMap<const Decl *> own;
    llvm::StringMap<const Decl *> imported;
  };

  File *read(llvm::StringRef path, llvm::StringRef source);
  void addOwn(const File &file);
  void importInto(const File &file, const Import &import);
  File *resolve(const File &from, const Import &import);
  void loadLibrary();

  Diagnostics &diagnostics;
  const CompileInput &input;
  std::vector<std::unique_ptr<File>> files;
  llvm::DenseMap<const File *, Scope> scopes;
  llvm::StringMap<File *> byPath;                     // by real path
  std::vector<std::pair<const File *, Import>> stack; // imports being read, outermost first
  llvm::StringMap<const Decl *> libraryDecls;
  std::vector<std::unique_ptr<File>> libraryFiles;
  llvm::SmallPtrSet<const Decl *, 4> broken;
  bool libraryLoaded = false;
  std::unique_ptr<File> commandLineFile;
};

} // namespace kvpc

#endif
