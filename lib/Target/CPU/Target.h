//===- Target.h - machine code for x86-64 ----------------------------------===//
//
// From a module of functions over scf, cf, arith, math, vector and LLVM memory operations to
// object code in memory, and from objects to a shared object. Everything happens in process; no
// compiler or linker need be installed.
//
// What a program given to this target may contain
// - `kvpc.export` on a function: its symbol is visible in the shared object. All others are not.
// - `func.func private @X.parallel(!llvm.ptr, i64) attributes {kvpc.body = @X}`: gets the body that
//   runs @X(frame, begin, end) through the host's parallel_for. The frame begins with the address
//   of the kvpc_call.
// - calls of `kvpc_prim_*`: hand-written functions (Primitives/, Objects/HostMath.c), linked as
// bitcode
//   or machine code that the compiler carries. A wrong name or type is an error.
// - llvm.load and llvm.store of vectors: without an alignment, that of the element is meant.
// - math on f32, as scalars and vectors of any length, and on f64 scalars. Nothing becomes a call
// of
//   a C library: what is not implemented ends in an error.
//
//===----------------------------------------------------------------------===//
#ifndef KVPC_TARGET_CPU_TARGET_H
#define KVPC_TARGET_CPU_TARGET_H

#include "mlir/IR/BuiltinOps.h"
#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/StringRef.h"
#include "llvm/Support/Error.h"
#include <optional>
#include <string>

namespace mlir {
class DialectRegistry;
class OpPassManager;
class Pass;
} // namespace mlir

namespace kvpc::cpu {

/// Instruction sets, each with all that the ones before it have.
enum class Level : unsigned {
  V3 = 0,     ///< x86-64-v3: AVX2, FMA, F16C
  V4 = 1,     ///< x86-64-v4: AVX-512 F, BW, CD, DQ, VL
  V4Bf16 = 2, ///< with AVX512_BF16
};
constexpr unsigned kLevels = 3;

/// "x86-64-v3", "x86-64-v4", "x86-64-v4+avx512bf16": as in the module's header.
llvm::StringRef levelName(Level level);
std::optional<Level> levelNamed(llvm::StringRef name);
/// f32 lanes of a vector register: 8 or 16.
unsigned levelLanes(Level level);

struct CodegenOptions {
  Level level = Level::V3;
  unsigned optimization = 2; ///< 0 to 3; 0 still does what is cheap and pays
};

/// What the compilation functions need beside the dialects of their input.
void registerTranslations(mlir::DialectRegistry &registry);

/// The passes below and the pipeline `kvpc-lower-to-llvm{level=0}`, for kvp-opt.
void registerPasses();
std::unique_ptr<mlir::Pass> createElementaryCallsPass(Level level);
std::unique_ptr<mlir::Pass> createConvertToLLVMPass();
std::unique_ptr<mlir::Pass> createParallelLoopsPass();
void buildLowerToLLVM(mlir::OpPassManager &pm, Level level);

/// Runs that pipeline. Says why it fails through the context's diagnostics.
mlir::LogicalResult lowerToLLVMDialect(mlir::ModuleOp module, Level level);

/// The three forms of a compiled module. They lower `module` first and leave it in the LLVM
/// dialect; a module that is in it already is taken as it is. May run at the same time in several
/// threads, on different modules.
llvm::Expected<std::string> compileToObject(mlir::ModuleOp module, const CodegenOptions &options);
llvm::Expected<std::string> compileToAssembly(mlir::ModuleOp module, const CodegenOptions &options);
llvm::Expected<std::string> compileToLLVMIR(mlir::ModuleOp module, const CodegenOptions &options);

/// Links objects into a shared object at `outputPath`, with `headerSection` as its section
/// `.kvpc`. The result needs no library, depends on the arguments alone, and appears under its name
/// only when complete. One link runs at a time, others wait.
llvm::Error linkModule(llvm::ArrayRef<std::string> objects, llvm::StringRef headerSection,
                       llvm::StringRef outputPath);

} // namespace kvpc::cpu

#endif // KVPC_TARGET_CPU_TARGET_H
