//===- Program.cpp - the files of a compilation, and who sees whom ----------------------------===//
#include "lib/Frontend/Program.h"

#include "lib/Frontend/Parser.h"
#include "lib/Frontend/Sources.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/SmallString.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/MemoryBuffer.h"
#include "llvm/Support/Path.h"

using namespace kvpc;
using llvm::StringRef;
namespace path = llvm::sys::path;

static std::string realPath(StringRef file) {
  llvm::SmallString<128> real;
  return llvm::sys::fs::real_path(file, real) ? file.str() : real.str().str();
}

bool Program::load() {
  unsigned before = diagnostics.errorCount();
  read(input.path, input.source);
  return diagnostics.errorCount() == before;
}

File *Program::read(StringRef path, StringRef source) {
  auto owned = parse(path, addSource(diagnostics.getSources(), path, source), diagnostics);
  File *file = owned.get();
  files.push_back(std::move(owned));
  byPath[realPath(path)] = file;
  addOwn(*file);
  for (const Item &item : file->items)
    if (item.import)
      importInto(*file, *item.import);
  return file;
}

void Program::addOwn(const File &file) {
  for (const Item &item : file.items) {
    if (!item.decl)
      continue;
    auto [it, isNew] = scopes[&file].own.try_emplace(item.decl->name.text, item.decl.get());
    if (isNew)
      continue;
    auto diag = diagnostics.error(item.decl->name.loc(), Diag::Duplicate, item.decl->name.text);
    diag.attachNote(diagnostics.location(it->second->name.loc())) << "first declared here";
  }
}

void Program::importInto(const File &file, const Import &import) {
  stack.push_back({&file, import});
  if (const File *other = resolve(file, import)) {
    Scope &scope = scopes[&file];
    for (const Item &item : other->items) {
      if (!item.decl)
        continue;
      StringRef name = item.decl->name.text;
      const Decl *known = scope.own.lookup(name);
      if (!known)
        known = scope.imported.lookup(name);
      if (known && known != item.decl.get()) {
        auto diag = diagnostics.error(import.name.loc(), Diag::Duplicate, name);
        diag.attachNote(diagnostics.location(known->name.loc())) << "first declared here";
        diag.attachNote(diagnostics.location(item.decl->name.loc())) << "imported from here";
        continue;
      }
      scope.imported[name] = item.decl.get();
    }
  }
  stack.pop_back();
}

File *Program::resolve(const File &from, const Import &import) {
  StringRef name = import.name.text;
  if (findLibraryFile(name)) {
    loadLibrary();
    for (auto &file : libraryFiles)
      if (path::stem(file->path) == name)
        return file.get();
  }
  std::vector<std::string> folders{path::parent_path(from.path).str()};
  llvm::append_range(folders, input.includeDirs);
  for (const std::string &folder : folders) {
    llvm::SmallString<128> file(folder);
    path::append(file, name + ".kv");
    auto buffer = llvm::MemoryBuffer::getFile(file);
    if (!buffer)
      continue;
    File *known = byPath.lookup(realPath(file));
    if (!known)
      return read(file, (*buffer)->getBuffer());
    // A file whose imports are still being read imports itself through others.
    auto begin = llvm::find_if(stack, [&](auto &entry) { return entry.first == known; });
    if (begin == stack.end())
      return known;
    auto diag = diagnostics.error(import.name.loc(), Diag::ImportCycle, name);
    for (auto it = begin; it + 1 < stack.end(); ++it)
      diag.attachNote(diagnostics.location(it->second.name.loc()))
          << "`" << it->second.name.text << "` is imported here";
    return nullptr;
  }
  std::vector<StringRef> names;
  for (const LibraryFile &file : library())
    names.push_back(file.name);
  auto diag = diagnostics.error(import.name.loc(), Diag::ImportUnknown, name);
  if (StringRef near = nearest(name, names); !near.empty())
    diag.attachNote(diagnostics.location(import.name.loc())) << "did you mean `" << near << "`";
  std::string looked = "the library";
  for (const std::string &folder : folders)
    looked += ", `" + (folder.empty() ? "." : folder) + "`";
  diag.attachNote(diagnostics.location(import.name.loc())) << "looked in " << looked;
  return nullptr;
}

void Program::loadLibrary() {
  if (libraryLoaded)
    return;
  libraryLoaded = true;
  for (const LibraryFile &entry : library()) {
    libraryFiles.push_back(parse(
        entry.path, addSource(diagnostics.getSources(), entry.path, entry.source), diagnostics));
    addOwn(*libraryFiles.back());
    for (const Item &item : libraryFiles.back()->items)
      if (item.decl)
        libraryDecls.try_emplace(item.decl->name.text, item.decl.get());
  }
}

std::vector<const File *> Program::ownFiles() const {
  std::vector<const File *> out;
  for (auto &file : files)
    out.push_back(file.get());
  return out;
}

const Decl *Program::find(StringRef name, const File &from) {
  const File *file = &from == commandLineFile.get() ? &mainFile() : &from;
  if (auto it = scopes.find(file); it != scopes.end()) {
    if (const Decl *decl = it->second.own.lookup(name))
      return decl;
    if (const Decl *decl = it->second.imported.lookup(name))
      return decl;
  }
  loadLibrary();
  return libraryDecls.lookup(name);
}

std::vector<StringRef> Program::callables(const File &from) {
  const File *file = &from == commandLineFile.get() ? &mainFile() : &from;
  std::vector<StringRef> names;
  for (auto &entry : scopes[file].own)
    names.push_back(entry.getKey());
  for (auto &entry : scopes[file].imported)
    names.push_back(entry.getKey());
  loadLibrary();
  for (auto &entry : libraryDecls)
    names.push_back(entry.getKey());
  llvm::sort(names);
  return names;
}

File &Program::commandLine() {
  if (!commandLineFile) {
    commandLineFile = std::make_unique<File>();
    commandLineFile->path = "<command line>";
  }
  return *commandLineFile;
}
