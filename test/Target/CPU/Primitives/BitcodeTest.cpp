#include "lib/Target/CPU/Primitives/Bitcode/PrimitivesBitcode.h"
#include "llvm/Bitcode/BitcodeReader.h"
#include "llvm/IR/LegacyPassManager.h"
#include "llvm/IR/Module.h"
#include "llvm/IR/Verifier.h"
#include "llvm/MC/TargetRegistry.h"
#include "llvm/Support/MemoryBuffer.h"
#include "llvm/Support/Regex.h"
#include "llvm/Support/TargetSelect.h"
#include "llvm/Target/TargetMachine.h"
#include <gtest/gtest.h>
#include <set>

using namespace llvm;

namespace {

class Bitcode : public testing::TestWithParam<unsigned> {
protected:
  void SetUp() override {
    InitializeNativeTarget();
    InitializeNativeTargetAsmPrinter();
    MemoryBufferRef buffer(kvpc::primitivesBitcode(GetParam()), "primitives");
    Expected<std::unique_ptr<Module>> parsed = parseBitcodeFile(buffer, context);
    ASSERT_TRUE(bool(parsed)) << toString(parsed.takeError());
    module = std::move(*parsed);
  }

  std::string assembly() {
    std::string error;
    const Target *target = TargetRegistry::lookupTarget(module->getTargetTriple(), error);
    EXPECT_TRUE(target) << error;
    std::unique_ptr<TargetMachine> machine(target->createTargetMachine(
        module->getTargetTriple(), "x86-64", "", TargetOptions(), Reloc::PIC_));
    SmallVector<char, 0> code;
    raw_svector_ostream os(code);
    legacy::PassManager passes;
    EXPECT_FALSE(machine->addPassesToEmitFile(passes, os, nullptr, CodeGenFileType::AssemblyFile));
    passes.run(*module);
    return std::string(code.begin(), code.end());
  }

  LLVMContext context;
  std::unique_ptr<Module> module;
};

TEST_P(Bitcode, HasEveryPrimitiveAndNothingFromOutside) {
  EXPECT_FALSE(verifyModule(*module, &errs()));
  for (const Function &f : *module)
    EXPECT_TRUE(!f.isDeclaration() || f.isIntrinsic()) << f.getName().str();
  for (const GlobalVariable &g : module->globals())
    EXPECT_TRUE(g.getName().starts_with("llvm.used") ||
                g.getName().starts_with("llvm.compiler.used") ||
                (g.isConstant() && !g.isDeclaration() && !g.isThreadLocal()))
        << g.getName().str();

  // Every function that the header declares is there.
  auto header = MemoryBuffer::getFile(KVPC_SOURCE_DIR "/lib/Target/CPU/Primitives/Primitives.h");
  ASSERT_TRUE(bool(header));
  Regex name("(kvpc_prim_[a-z0-9_]+)\\(");
  StringRef text = (*header)->getBuffer();
  unsigned found = 0;
  for (SmallVector<StringRef, 2> match; name.match(text, &match);
       text = text.substr(match[0].data() + match[0].size() - text.data())) {
    // A name with () is a mention, not a declaration.
    EXPECT_TRUE(module->getFunction(match[1])) << match[1].str();
    ++found;
  }
  EXPECT_GT(found, 40u);
}

TEST_P(Bitcode, CodeGenerationStaysWithinTheLevelAndCallsNoLibrary) {
  std::string text = assembly();
  bool avx512 = Regex("%zmm|%k[0-7]|%[xy]mm(1[6-9]|2[0-9]|3[01])").match(text);
  EXPECT_EQ(avx512, GetParam() > 0);
  EXPECT_EQ(StringRef(text).contains("vdpbf16ps"), GetParam() == 2);

  std::set<std::string> labels, used;
  SmallVector<StringRef, 0> lines;
  StringRef(text).split(lines, '\n');
  Regex label("^([A-Za-z_.$][A-Za-z0-9_.$]*):");
  Regex target("^\t(call|jmp)q?\t([A-Za-z_.$][A-Za-z0-9_.$]*)");
  Regex address("([A-Za-z_.$][A-Za-z0-9_.$]*)(@PLT|@GOT|\\(%rip\\))");
  Regex writable("^\t(\\.bss|\\.data|\\.comm|\\.section\t\\.(data|bss|tbss|tdata|init_array))");
  for (StringRef line : lines) {
    SmallVector<StringRef, 4> match;
    if (label.match(line, &match))
      labels.insert(match[1].str());
    if (target.match(line, &match))
      used.insert(match[2].str());
    if (address.match(line, &match))
      used.insert(match[1].str());
    EXPECT_FALSE(writable.match(line) && !line.contains(".data.rel.ro")) << line.str();
  }
  EXPECT_GT(labels.size(), 40u);
  for (const std::string &name : used)
    EXPECT_TRUE(labels.count(name)) << name << " is nobody's here";
}

INSTANTIATE_TEST_SUITE_P(Levels, Bitcode, testing::Range(0u, kvpc::kPrimitiveLevels));

} // namespace
