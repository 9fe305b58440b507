// The shared object: what it holds and what it must not.
#include "Compiled.h"

#include "lib/Target/CPU/Objects/Objects.h"
#include "llvm/ADT/StringSet.h"
#include "llvm/Object/ELFObjectFile.h"
#include "llvm/Support/MemoryBuffer.h"
#include <thread>

using namespace kvpc;
using namespace kvpc::test;
using namespace llvm;

namespace {

constexpr const char *kProgram = R"(
func.func @f(%x: f64) -> f64 attributes {kvpc.export} {
  %y = math.exp %x : f64
  return %y : f64
})";

std::string link(ArrayRef<std::string> objects, StringRef header, StringRef path) {
  return toString(cpu::linkModule(objects, header, path));
}

std::string contents(StringRef path) {
  auto buffer = MemoryBuffer::getFile(path, /*IsText=*/false, /*RequiresNullTerminator=*/false);
  return buffer ? (*buffer)->getBuffer().str() : "";
}

TEST(Link, HeaderExportsAndNothingElse) {
  File file;
  std::string header = "KVPCMOD\n" + std::string(1000, '\x7f');
  ASSERT_EQ(link({compiled(kProgram).result}, header, file.path), "");

  std::string bytes = contents(file.path);
  auto elf = object::ELF64LEFile::create(bytes);
  ASSERT_TRUE(bool(elf)) << toString(elf.takeError());
  bool found = false;
  for (const auto &section : cantFail(elf->sections())) {
    StringRef name = cantFail(elf->getSectionName(section));
    EXPECT_NE(name, ".init_array");
    if (name != ".kvpc")
      continue;
    found = true;
    EXPECT_TRUE(section.sh_flags & ELF::SHF_ALLOC);
    EXPECT_EQ(toStringRef(cantFail(elf->getSectionContents(section))), header);
  }
  EXPECT_TRUE(found);

  for (const auto &entry : cantFail(elf->dynamicEntries())) {
    EXPECT_NE(entry.getTag(), ELF::DT_NEEDED);
    EXPECT_NE(entry.getTag(), ELF::DT_TEXTREL);
  }
  bool relro = false;
  for (const auto &segment : cantFail(elf->program_headers())) {
    if (segment.p_type == ELF::PT_GNU_STACK)
      EXPECT_FALSE(segment.p_flags & ELF::PF_X);
    EXPECT_FALSE((segment.p_flags & ELF::PF_X) && (segment.p_flags & ELF::PF_W));
    relro |= segment.p_type == ELF::PT_GNU_RELRO;
  }
  EXPECT_TRUE(relro);

  auto parsed = object::ELFObjectFile<object::ELF64LE>::create(MemoryBufferRef(bytes, "module"));
  std::vector<std::string> symbols;
  for (const object::ELFSymbolRef symbol : parsed->getDynamicSymbolIterators())
    symbols.push_back(cantFail(symbol.getName()).str());
  EXPECT_EQ(symbols, std::vector<std::string>{"f"});
}

// The linker reports no missing symbol of code that it drops.
TEST(Link, CarriedObjectsNeedNothingElse) {
  llvm::StringSet<> defined;
  for (StringRef bytes : targetObjects()) {
    auto object = object::ELFObjectFile<object::ELF64LE>::create(MemoryBufferRef(bytes, "object"));
    ASSERT_TRUE(bool(object)) << toString(object.takeError());
    std::vector<std::string> undefined;
    llvm::StringSet<> here;
    for (const object::ELFSymbolRef symbol : object->symbols()) {
      StringRef name = cantFail(symbol.getName());
      uint32_t flags = cantFail(symbol.getFlags());
      if (flags & object::SymbolRef::SF_Undefined) {
        if (!name.empty())
          undefined.push_back(name.str());
      } else if (flags & object::SymbolRef::SF_Global) {
        EXPECT_TRUE(defined.insert(name).second) << name.str() << " is there twice";
        here.insert(name);
      }
    }
    for (const std::string &name : undefined)
      EXPECT_TRUE(here.contains(name)) << name;
  }
  for (const char *name :
       {"kvpc_prim_f64_pow", "memset", "level0.kvpc_prim_select", "level2.kvpc_prim_contract_bf16"})
    EXPECT_TRUE(defined.contains(name)) << name;
}

TEST(Link, SameArgumentsSameFile) {
  File a, b;
  std::string code = compiled(kProgram).result;
  ASSERT_EQ(link({code}, "header", a.path), "");
  ASSERT_EQ(link({code}, "header", b.path), "");
  EXPECT_EQ(contents(a.path), contents(b.path));
}

TEST(Link, VariantsShareNothing) {
  constexpr const char *kOther = R"(
func.func @g(%x: f64) -> f64 attributes {kvpc.export} {
  %y = func.call @inner(%x) : (f64) -> f64
  return %y : f64
}
func.func private @inner(%x: f64) -> f64 attributes {passthrough = ["noinline"]} {
  %y = arith.negf %x : f64
  return %y : f64
})";
  std::string first = compiled(kOther).result;
  std::string second = StringRef(kOther).str();
  second.replace(second.find("@g"), 2, "@h");
  second.replace(second.find("negf %x"), 7, "addf %x, %x");
  File file;
  ASSERT_EQ(link({first, compiled(second, {cpu::Level::V4, 2}).result}, "header", file.path), "");
  void *handle = dlopen(file.path.c_str(), RTLD_NOW);
  ASSERT_TRUE(handle) << dlerror();
  auto g = reinterpret_cast<double (*)(double)>(dlsym(handle, "g"));
  ASSERT_TRUE(g);
  EXPECT_EQ(g(3), -3);
  EXPECT_TRUE(dlsym(handle, "h"));
  dlclose(handle);
}

TEST(Link, CallsOfALibraryAreErrors) {
  File file;
  std::string code = compiled(R"(
llvm.func @printf(!llvm.ptr, ...) -> i32
llvm.func @f(%x: !llvm.ptr) -> i32 attributes {kvpc.export} {
  %y = llvm.call @printf(%x) vararg(!llvm.func<i32 (ptr, ...)>) : (!llvm.ptr) -> i32
  llvm.return %y : i32
})")
                         .result;
  EXPECT_EQ(link({code}, "header", file.path),
            "cannot link the module: undefined hidden symbol: printf");
  // And the linker works again.
  EXPECT_EQ(link({compiled(kProgram).result}, "header", file.path), "");
}

TEST(Link, FailureLeavesTheOldFile) {
  File file;
  ASSERT_EQ(link({compiled(kProgram).result}, "header", file.path), "");
  std::string before = contents(file.path);
  EXPECT_NE(link({"not an object"}, "header", file.path), "");
  EXPECT_EQ(contents(file.path), before);
}

TEST(Link, MissingFolder) {
  std::string error = link({}, "header", "/nowhere/at/all.kvm");
  EXPECT_EQ(error, "cannot link the module: `/nowhere/at/all.kvm`: No such file or directory");
}

TEST(Link, FromSeveralThreads) {
  std::string code = compiled(kProgram).result, expected;
  std::vector<File> files(4);
  std::vector<std::string> errors(4);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&, i] { errors[i] = link({code}, "header", files[i].path); });
  for (std::thread &thread : threads)
    thread.join();
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(errors[i], "");
    EXPECT_EQ(contents(files[i].path), contents(files[0].path));
  }
}

} // namespace
