//===- Link.cpp - objects to a shared object, by lld in process ------------===//
#include "Objects/Objects.h"
#include "Target.h"

#include "lld/Common/Driver.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/BinaryFormat/ELF.h"
#include "llvm/Support/Endian.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/FileUtilities.h"
#include "llvm/Support/Path.h"
#include "llvm/Support/raw_ostream.h"
#include <mutex>

LLD_HAS_DRIVER(elf)

using namespace llvm;

namespace kvpc::cpu {
namespace {

Error failure(const Twine &message) {
  return createStringError("cannot link the module: " + message);
}

/// A relocatable object with nothing but the section `.kvpc`. It is loaded with the module, so that
/// no tool strips it, and retained without a reference.
std::string headerObject(StringRef bytes) {
  constexpr auto names = StringLiteral::withInnerNUL("\0.kvpc\0.shstrtab\0.note.GNU-stack\0");
  constexpr uint64_t kAlignment = 64;
  uint64_t namesOffset = kAlignment + alignTo(bytes.size(), kAlignment);
  uint64_t sectionsOffset = namesOffset + alignTo(names.size(), kAlignment);

  ELF::Elf64_Ehdr header = {};
  memcpy(header.e_ident, ELF::ElfMagic, 4);
  header.e_ident[ELF::EI_CLASS] = ELF::ELFCLASS64;
  header.e_ident[ELF::EI_DATA] = ELF::ELFDATA2LSB;
  header.e_ident[ELF::EI_VERSION] = ELF::EV_CURRENT;
  header.e_ident[ELF::EI_OSABI] = ELF::ELFOSABI_GNU; // for SHF_GNU_RETAIN
  header.e_type = ELF::ET_REL;
  header.e_machine = ELF::EM_X86_64;
  header.e_version = ELF::EV_CURRENT;
  header.e_shoff = sectionsOffset;
  header.e_ehsize = sizeof(ELF::Elf64_Ehdr);
  header.e_shentsize = sizeof(ELF::Elf64_Shdr);
  header.e_shnum = 4;
  header.e_shstrndx = 2;

  ELF::Elf64_Shdr sections[4] = {};
  auto place = [&](ELF::Elf64_Shdr &section, StringRef name, unsigned type, uint64_t offset,
                   uint64_t size, uint64_t alignment) {
    section.sh_name = names.find(name);
    section.sh_type = type;
    section.sh_offset = offset;
    section.sh_size = size;
    section.sh_addralign = alignment;
  };
  place(sections[1], ".kvpc", ELF::SHT_PROGBITS, kAlignment, bytes.size(), kAlignment);
  sections[1].sh_flags = ELF::SHF_ALLOC | ELF::SHF_GNU_RETAIN;
  place(sections[2], ".shstrtab", ELF::SHT_STRTAB, namesOffset, names.size(), 1);
  place(sections[3], ".note.GNU-stack", ELF::SHT_PROGBITS, sectionsOffset, 0, 1);

  std::string object(sectionsOffset + sizeof sections, '\0');
  memcpy(object.data(), &header, sizeof header);
  memcpy(object.data() + kAlignment, bytes.data(), bytes.size());
  memcpy(object.data() + namesOffset, names.data(), names.size());
  memcpy(object.data() + sectionsOffset, sections, sizeof sections);
  return object;
}
static_assert(sizeof(ELF::Elf64_Ehdr) == 64 && endianness::native == endianness::little);

/// The linker's own words, on one line, without its name and the names of temporary files.
std::string describe(StringRef output) {
  std::string text;
  for (StringRef line : split(output, '\n')) {
    line = line.trim();
    line.consume_front("ld.lld: ");
    if (!line.consume_front("error: "))
      continue;
    if (!text.empty())
      text += "; ";
    text += line;
  }
  return text.empty() ? output.trim().str() : text;
}

/// lld keeps its state in globals.
std::mutex linkerMutex;
bool linkerUsable = true;

Error runLinker(ArrayRef<std::string> inputs, StringRef output) {
  std::vector<const char *> arguments = {"ld.lld",
                                         "-shared",
                                         "-m",
                                         "elf_x86_64",
                                         "--no-undefined", // a call of the C library ends here
                                         "--gc-sections",
                                         "-Bsymbolic",
                                         "--build-id=none",
                                         "--eh-frame-hdr",
                                         "--hash-style=gnu",
                                         "-z",
                                         "noexecstack",
                                         "-z",
                                         "relro",
                                         "-z",
                                         "now",
                                         "--threads=1",
                                         "--color-diagnostics=never"};
  for (const std::string &input : inputs)
    arguments.push_back(input.c_str());
  std::string path = output.str(), text;
  arguments.insert(arguments.end(), {"-o", path.c_str()});

  std::lock_guard<std::mutex> lock(linkerMutex);
  if (!linkerUsable)
    return failure("an earlier link crashed in this process");
  raw_string_ostream stream(text);
  lld::Result result = lld::lldMain(arguments, stream, stream, {{lld::Gnu, &lld::elf::link}});
  linkerUsable = result.canRunAgain;
  if (result.retCode || !result.canRunAgain)
    return failure(describe(text));
  return Error::success();
}

/// Files that are gone when it is.
struct TemporaryFiles {
  ~TemporaryFiles() {
    for (const std::string &path : paths)
      sys::fs::remove(path);
  }
  Error write(StringRef bytes) {
    int descriptor;
    SmallString<128> path;
    if (std::error_code code = sys::fs::createTemporaryFile("kvpc", "o", descriptor, path))
      return failure("`" + path + "`: " + code.message());
    paths.push_back(path.str().str());
    raw_fd_ostream stream(descriptor, /*shouldClose=*/true);
    stream << bytes;
    stream.close();
    if (std::error_code code = stream.error()) {
      stream.clear_error();
      return failure("`" + path + "`: " + code.message());
    }
    return Error::success();
  }
  std::vector<std::string> paths;
};

} // namespace

Error linkModule(ArrayRef<std::string> objects, StringRef headerSection, StringRef outputPath) {
  TemporaryFiles inputs;
  for (const std::string &object : objects)
    if (Error error = inputs.write(object))
      return error;
  if (Error error = inputs.write(headerObject(headerSection)))
    return error;
  for (StringRef object : targetObjects())
    if (Error error = inputs.write(object))
      return error;

  // Beside the result, so that renaming it is one step.
  SmallString<128> partial;
  if (std::error_code code = sys::fs::createUniqueFile(outputPath + ".%%%%%%", partial))
    return failure("`" + outputPath + "`: " + code.message());
  FileRemover remover(partial);
  if (Error error = runLinker(inputs.paths, partial))
    return error;
  if (std::error_code code = sys::fs::rename(partial, outputPath))
    return failure("`" + outputPath + "`: " + code.message());
  remover.releaseFile();
  return Error::success();
}

} // namespace kvpc::cpu
