//===- Output.cpp - files appear whole or not at all ------------------------------------------===//
#include "lib/Driver/Output.h"

#include "llvm/ADT/SmallString.h"
#include "llvm/Support/FileSystem.h"

using namespace kvpc;
namespace fs = llvm::sys::fs;

static llvm::Error cannotWrite(llvm::StringRef path, std::error_code error) {
  return llvm::createStringError("cannot write `" + path +
                                 "`: " + llvm::StringRef(error.message()).lower() + " [kvpc-file]");
}

/// Into a stream whose file stays what it is: a terminal, a pipe, a device.
static llvm::Error writeTo(llvm::raw_fd_ostream &os, llvm::StringRef path,
                           llvm::function_ref<void(llvm::raw_ostream &)> write) {
  write(os);
  os.flush();
  if (!os.has_error())
    return llvm::Error::success();
  std::error_code error = os.error();
  os.clear_error(); // else the destructor ends the process
  return cannotWrite(path, error);
}

llvm::Error driver::writeOutput(llvm::StringRef path,
                                llvm::function_ref<void(llvm::raw_ostream &)> write) {
  if (path == "-")
    return writeTo(llvm::outs(), "<stdout>", write);
  fs::file_status status;
  bool exists = !fs::status(path, status) && fs::exists(status);
  if (exists && fs::is_directory(status))
    return cannotWrite(path, std::make_error_code(std::errc::is_a_directory));
  if (exists && !fs::is_regular_file(status)) {
    std::error_code error;
    llvm::raw_fd_ostream os(path, error, fs::CD_OpenExisting);
    return error ? cannotWrite(path, error) : writeTo(os, path, write);
  }
  // Through a link the file itself is replaced.
  llvm::SmallString<256> target(path);
  if (exists)
    fs::real_path(path, target);
  auto file = fs::TempFile::create(target + ".%%%%%%%%.tmp");
  if (!file)
    return cannotWrite(path, llvm::errorToErrorCode(file.takeError()));
  llvm::Error failed = llvm::Error::success();
  {
    llvm::raw_fd_ostream os(file->FD, /*shouldClose=*/false);
    failed = llvm::joinErrors(std::move(failed), writeTo(os, path, write));
  }
  if (failed)
    return llvm::joinErrors(std::move(failed), file->discard());
  if (exists)
    if (auto permissions = fs::getPermissions(target))
      fs::setPermissions(file->TmpName, *permissions);
  if (llvm::Error error = file->keep(target))
    return cannotWrite(path, llvm::errorToErrorCode(std::move(error)));
  return llvm::Error::success();
}
