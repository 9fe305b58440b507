//===- Elf.cpp - finds the header section of a module, trusting nothing -----------------------===//
#include "kvpc/Header.h"

#include <cstring>
#include <elf.h>
#include <vector>

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

constexpr uint64_t page = 4096;

Error damaged(const char *what) {
  return {ErrorCode::Damaged, std::string(what) + " cannot be; copy or compile the module again"};
}

/// Whether part of the file comes to stand at `address` with the segment that holds it.
bool isMapped(const std::vector<Elf64_Phdr> &loads, uint64_t address, uint64_t offset,
              uint64_t size) {
  for (const Elf64_Phdr &load : loads)
    if (address >= load.p_vaddr && address - load.p_vaddr <= load.p_filesz &&
        size <= load.p_filesz - (address - load.p_vaddr))
      return offset == load.p_offset + (address - load.p_vaddr);
  return false;
}

/// Whether pages that are written hold the address and `size` bytes from there.
bool isWritten(const std::vector<Elf64_Phdr> &loads, uint64_t address, uint64_t size) {
  for (const Elf64_Phdr &load : loads) {
    uint64_t end = (load.p_vaddr + load.p_memsz + page - 1) / page * page;
    if ((load.p_flags & PF_W) && address >= load.p_vaddr && address <= end)
      return size <= end - address;
  }
  return false;
}

/// What the loader maps, which it does without questions.
Failure checkLoads(const std::vector<Elf64_Phdr> &loads) {
  constexpr uint64_t most = uint64_t(1) << 31;
  uint64_t end = 0;
  bool runs = false;
  for (const Elf64_Phdr &load : loads) {
    bool writable = load.p_flags & PF_W, executable = load.p_flags & PF_X;
    if (load.p_vaddr < end || load.p_vaddr >= most || load.p_memsz >= most ||
        load.p_filesz > load.p_memsz || (!writable && load.p_filesz != load.p_memsz))
      return damaged("the size of a segment");
    if (load.p_vaddr % page != load.p_offset % page || load.p_align % page != 0 ||
        load.p_align > most || (load.p_align & (load.p_align - 1)))
      return damaged("the place of a segment");
    if (!(load.p_flags & PF_R) || (writable && executable))
      return damaged("the kind of memory of a segment");
    runs |= executable;
    end = load.p_vaddr + load.p_memsz;
  }
  if (!runs)
    return notAModule("the file holds no code");
  return {};
}

Failure checkSegments(Bytes file, const Elf64_Ehdr &header) {
  std::vector<Elf64_Phdr> loads, others;
  for (unsigned n = 0; n < header.e_phnum; ++n) {
    Elf64_Phdr segment;
    if (header.e_phentsize != sizeof segment ||
        !readAt(file, header.e_phoff + n * sizeof segment, segment))
      return truncated("the program header table");
    switch (segment.p_type) {
    case PT_INTERP:
      return notAModule("the file is a program");
    case PT_LOAD:
    case PT_DYNAMIC:
      if (!isInside(file, segment.p_offset, segment.p_filesz))
        return truncated("a segment");
      break;
    case PT_NULL:
    case PT_NOTE:
    case PT_PHDR:
    case PT_GNU_EH_FRAME:
    case PT_GNU_RELRO:
    case PT_GNU_PROPERTY:
      break;
    case PT_GNU_STACK:
      if (segment.p_flags & PF_X)
        return notAModule("the file wants a stack that runs code, modules do not");
      break;
    default:
      return damaged("the type of a segment");
    }
    (segment.p_type == PT_LOAD ? loads : others).push_back(segment);
  }
  if (auto error = checkLoads(loads))
    return error;
  bool linked = false;
  for (const Elf64_Phdr &segment : others) {
    bool mapped = segment.p_type != PT_NULL && segment.p_type != PT_GNU_STACK;
    if (mapped && !isMapped(loads, segment.p_vaddr, segment.p_offset, segment.p_filesz))
      return damaged("the place of a segment");
    if (segment.p_type == PT_PHDR && segment.p_offset != header.e_phoff)
      return damaged("the place of the program header table");
    // Its pages become unwritable; beyond the module they are somebody else's.
    if (segment.p_type == PT_GNU_RELRO && !isWritten(loads, segment.p_vaddr, segment.p_memsz))
      return damaged("the size of a segment");
    if (segment.p_type != PT_DYNAMIC)
      continue;
    linked = true;
    if (auto error = checkDynamic(file, segment))
      return error;
  }
  if (!linked)
    return damaged("a file without a dynamic section");
  // Two tables say where everything is; they agree.
  for (unsigned n = 0; n < header.e_shnum; ++n) {
    Elf64_Shdr section;
    if (!readAt(file, header.e_shoff + n * sizeof section, section))
      return truncated("the section table");
    if ((section.sh_flags & SHF_ALLOC) && section.sh_type != SHT_NOBITS &&
        !isMapped(loads, section.sh_addr, section.sh_offset, section.sh_size))
      return damaged("the place of a section");
  }
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
