// ELF files that are no modules.
#include "Sections.h"

#include <elf.h>

using namespace kvpc;
using namespace kvpc::test;

namespace {

std::string find(const ByteVector &file) { return textOf(findSection(file)); }

TEST(Elf, FindsTheSection) { EXPECT_EQ(find(fakeModule()), "ok"); }

TEST(Elf, RefusesOtherFiles) {
  EXPECT_NE(find({}).find("the file is empty"), std::string::npos);
  std::string text = "press knorm() = keys";
  EXPECT_NE(find(ByteVector(text.begin(), text.end())).find("not an ELF file"), std::string::npos);
  auto self = readFile("/proc/self/exe");
  ASSERT_TRUE(bool(self));
  EXPECT_NE(find(*self).find("[kvm-not-a-module]"), std::string::npos);
}

TEST(Elf, RefusesOtherMachines) {
  ByteVector file = fakeModule();
  file[EI_CLASS] = ELFCLASS32;
  EXPECT_NE(find(file).find("[kvm-target]"), std::string::npos);
  file = fakeModule();
  put(file, offsetof(Elf64_Ehdr, e_machine), EM_AARCH64, 2);
  EXPECT_NE(find(file).find("ELF machine 183"), std::string::npos);
  file = fakeModule();
  put(file, offsetof(Elf64_Ehdr, e_type), ET_REL, 2);
  EXPECT_NE(find(file).find("not a shared object"), std::string::npos);
}

TEST(Elf, EveryTruncationIsNoticed) {
  ByteVector file = fakeModule();
  for (size_t size = 0; size < file.size(); ++size) {
    ByteVector cut(file.begin(), file.begin() + long(size));
    EXPECT_NE(find(cut), "ok") << size;
  }
}

/// Overwrites the tag of a dynamic entry that is there in every file.
ByteVector withDynamicTag(int64_t tag) {
  ByteVector file = fakeModule();
  Elf64_Ehdr header;
  std::memcpy(&header, file.data(), sizeof header);
  for (unsigned n = 0; n < header.e_phnum; ++n) {
    Elf64_Phdr segment;
    std::memcpy(&segment, file.data() + header.e_phoff + n * sizeof segment, sizeof segment);
    if (segment.p_type == PT_DYNAMIC)
      put(file, segment.p_offset, uint64_t(tag), 8);
  }
  return file;
}

TEST(Elf, RefusesWhatLoadingWouldActOn) {
  EXPECT_NE(find(withDynamicTag(DT_NEEDED)).find("needs a shared library"), std::string::npos);
  EXPECT_NE(find(withDynamicTag(DT_INIT)).find("runs code when it is loaded"), std::string::npos);
  EXPECT_NE(find(withDynamicTag(DT_INIT_ARRAY)).find("runs code"), std::string::npos);
  EXPECT_NE(find(withDynamicTag(DT_FINI_ARRAY)).find("runs code"), std::string::npos);
  EXPECT_NE(find(withDynamicTag(DT_TEXTREL)).find("relocation"), std::string::npos);
}

} // namespace
