//===- Elf.cpp - finds the header section of a module, trusting nothing -----------------------===//
#include "kvpc/Header.h"

#include <cstring>
#include <elf.h>

using namespace kvpc;

namespace {

/// Copies a T out of the file, or says that the file ends before.
template <class T>
bool readAt(Bytes file, uint64_t at, T &out) {
  if (at > file.size() || file.size() - at < sizeof(T))
    return false;
  std::memcpy(&out, file.data() + at, sizeof(T));
  return true;
}

bool isInside(Bytes file, uint64_t at, uint64_t size) {
  return at <= file.size() && size <= file.size() - at;
}

Error truncated(const char *what) {
  return {ErrorCode::Truncated, std::string(what) +
                                    " reaches past the end of the file; the file is "
                                    "incomplete: copy or compile it again"};
}

Error notAModule(std::string what) {
  return {ErrorCode::NotAModule,
          std::move(what) + "; need a module (.kvm) written by `kvpc compile`"};
}

Failure checkFileHeader(const Elf64_Ehdr &header) {
  if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_ident[EI_DATA] != ELFDATA2LSB)
    return Error{ErrorCode::Target, "the file is for another kind of machine; this runtime loads "
                                    "64-bit little-endian x86-64 code; compile the press here"};
  if (header.e_machine != EM_X86_64)
    return Error{ErrorCode::Target, "the code is for ELF machine " +
                                        std::to_string(header.e_machine) +
                                        "; this runtime loads x86-64 (62); compile the press here"};
  if (header.e_type != ET_DYN)
    return notAModule("an ELF file of type " + std::to_string(header.e_type) +
                      " is not a shared object");
  return {};
}

/// What the loader would act on before we are asked: libraries to find, code to run.
Failure checkDynamic(Bytes file, const Elf64_Phdr &segment) {
  for (uint64_t at = 0; at + sizeof(Elf64_Dyn) <= segment.p_filesz; at += sizeof(Elf64_Dyn)) {
    Elf64_Dyn entry;
    if (!readAt(file, segment.p_offset + at, entry))
      return truncated("the dynamic section");
    switch (entry.d_tag) {
    case DT_NULL:
      return {};
    case DT_NEEDED:
      return notAModule("the file needs a shared library, modules need none");
    case DT_INIT:
    case DT_FINI:
    case DT_INIT_ARRAY:
    case DT_FINI_ARRAY:
    case DT_PREINIT_ARRAY:
      return notAModule("the file runs code when it is loaded, modules do not");
    case DT_TEXTREL:
      return notAModule("the file's code needs relocation, a module's does not");
    case DT_AUDIT:
    case DT_DEPAUDIT:
    case DT_FILTER:
    case DT_AUXILIARY:
      return notAModule("the file loads other files, modules do not");
    default:
      break;
    }
  }
  return {};
}

Failure checkSegments(Bytes file, const Elf64_Ehdr &header) {
  bool anyLoad = false;
  for (unsigned n = 0; n < header.e_phnum; ++n) {
    Elf64_Phdr segment;
    if (header.e_phentsize != sizeof segment ||
        !readAt(file, header.e_phoff + n * sizeof segment, segment))
      return truncated("the program header table");
    if (segment.p_type != PT_LOAD && segment.p_type != PT_DYNAMIC && segment.p_type != PT_INTERP)
      continue;
    if (!isInside(file, segment.p_offset, segment.p_filesz))
      return truncated("a segment");
    anyLoad |= segment.p_type == PT_LOAD;
    if (segment.p_type == PT_INTERP)
      return notAModule("the file is a program");
    if (segment.p_type == PT_DYNAMIC)
      if (auto error = checkDynamic(file, segment))
        return error;
  }
  if (!anyLoad)
    return notAModule("the file holds no code");
  return {};
}

} // namespace

Result<Bytes> kvpc::runtime::findSection(Bytes file) {
  Elf64_Ehdr header;
  if (file.size() < SELFMAG || std::memcmp(file.data(), ELFMAG, SELFMAG) != 0)
    return notAModule(file.empty() ? "the file is empty" : "the file is not an ELF file");
  if (!readAt(file, 0, header))
    return truncated("the ELF header");
  if (auto error = checkFileHeader(header))
    return *error;

  uint64_t count = header.e_shnum;
  if (header.e_shoff == 0 || count == 0 || header.e_shstrndx >= count)
    return notAModule("the file has no section table");
  if (header.e_shentsize != sizeof(Elf64_Shdr))
    return notAModule("the section table has entries of " + std::to_string(header.e_shentsize) +
                      " bytes instead of 64");
  if (!isInside(file, header.e_shoff, count * sizeof(Elf64_Shdr)))
    return truncated("the section table");
  Elf64_Shdr names;
  if (!readAt(file, header.e_shoff + header.e_shstrndx * sizeof names, names) ||
      !isInside(file, names.sh_offset, names.sh_size))
    return truncated("the table of section names");

  constexpr std::string_view wanted(".kvpc\0", 6);
  for (uint64_t n = 0; n < count; ++n) {
    Elf64_Shdr section;
    if (!readAt(file, header.e_shoff + n * sizeof section, section))
      return truncated("the section table");
    if (section.sh_name > names.sh_size || names.sh_size - section.sh_name < wanted.size() ||
        std::memcmp(file.data() + names.sh_offset + section.sh_name, wanted.data(),
                    wanted.size()) != 0)
      continue;
    if (section.sh_type == SHT_NOBITS || !isInside(file, section.sh_offset, section.sh_size))
      return truncated("the section `.kvpc`");
    if (auto error = checkSegments(file, header))
      return *error;
    return file.subspan(section.sh_offset, section.sh_size);
  }
  return notAModule("the shared object has no section `.kvpc`");
}
