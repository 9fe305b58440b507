//===- Section.cpp - bytes of the section `.kvpc` ---------------------------------------------===//
#include "lib/Module/Section.h"

#include "dialect/IR/Kvp.h"
#include "mlir/Bytecode/BytecodeWriter.h"
#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Parser/Parser.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/Endian.h"
#include "llvm/Support/SHA256.h"
#include "llvm/Support/raw_ostream.h"

using namespace kvpc;

namespace {

constexpr char kMagic[] = "KVPCMOD\n";
constexpr uint32_t kFormatMajor = 1, kFormatMinor = 0;
constexpr uint64_t kPrefixSize = 88;

template <typename T>
void append(std::string &out, T value) {
  char bytes[sizeof(T)];
  llvm::support::endian::write<T, llvm::endianness::little>(bytes, value);
  out.append(bytes, sizeof(T));
}

std::string sha256(llvm::StringRef bytes) {
  llvm::SHA256 hash;
  hash.update(bytes);
  auto digest = hash.final();
  return std::string(digest.begin(), digest.end());
}

} // namespace

llvm::StringRef kvpc::version() { return KVPC_VERSION; }

std::string kvpc::digestOf(llvm::StringRef bytes) {
  return llvm::toHex(sha256(bytes), /*LowerCase=*/true);
}

std::string kvpc::buildHeaderSection(mlir::ModuleOp kvp, const ModuleInfo &info) {
  std::string text, program;
  llvm::raw_string_ostream(text) << headerJson(kvp, info);
  llvm::raw_string_ostream stream(program);
  // Fails only for bytecode versions other than the current one.
  (void)mlir::writeBytecodeToFile(kvp, stream,
                                  mlir::BytecodeWriterConfig("kvpc " + version().str()));

  std::string out(kMagic, 8);
  append<uint32_t>(out, kFormatMajor);
  append<uint32_t>(out, kFormatMinor);
  append<uint64_t>(out, kPrefixSize + text.size() + program.size());
  append<uint64_t>(out, kPrefixSize);
  append<uint64_t>(out, text.size());
  append<uint64_t>(out, kPrefixSize + text.size());
  append<uint64_t>(out, program.size());
  out += sha256(text + program);
  assert(out.size() == kPrefixSize);
  return out + text + program;
}

llvm::Expected<mlir::OwningOpRef<mlir::ModuleOp>> kvpc::readProgram(mlir::MLIRContext &context,
                                                                    llvm::StringRef bytecode) {
  context.loadDialect<kvp::KvpDialect, mlir::arith::ArithDialect>();
  std::string problem;
  mlir::ScopedDiagnosticHandler handler(&context, [&](mlir::Diagnostic &diagnostic) {
    if (problem.empty())
      problem = diagnostic.str();
    return mlir::success();
  });
  auto module = mlir::parseSourceString<mlir::ModuleOp>(bytecode, &context, "program");
  if (!module)
    return llvm::createStringError("the module's program cannot be read: " + problem +
                                   "; compile the press again");
  return module;
}
