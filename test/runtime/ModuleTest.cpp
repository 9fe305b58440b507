// Loading: digests, targets, presses by name.
#include "Host.h"
#include "Target.h"

#include <cstdlib>
#include <fstream>
#include <sys/resource.h>
#include <unistd.h>

using namespace kvpc;
using namespace kvpc::test;

namespace {

struct Environment {
  explicit Environment(const char *value) { setenv("KVPC_TARGET", value, 1); }
  ~Environment() { unsetenv("KVPC_TARGET"); }
};

TEST(Module, Loads) {
  ASSERT_TRUE(fake());
  EXPECT_EQ(fake()->path(), KVPC_FAKE_MODULE);
  EXPECT_EQ(fake()->digest().size(), 64u);
  EXPECT_EQ(fake()->target(), "x86-64-v3");
}

TEST(Module, PinsADigest) {
  std::string digest = fake()->digest();
  EXPECT_EQ(textOf(Module::load(KVPC_FAKE_MODULE, digest)), "ok");
  EXPECT_EQ(textOf(Module::load(KVPC_FAKE_MODULE, "sha256:" + digest)), "ok");
  std::string other = digest;
  other[5] = other[5] == '0' ? '1' : '0';
  std::string text = textOf(Module::load(KVPC_FAKE_MODULE, other));
  EXPECT_NE(text.find("another module than the one you pinned [kvm-digest]"), std::string::npos);
  EXPECT_NE(text.find(digest), std::string::npos);
  EXPECT_NE(textOf(Module::load(KVPC_FAKE_MODULE, "abc")).find("64 hexadecimal digits"),
            std::string::npos);
}

TEST(Module, NamesItsPresses) {
  EXPECT_EQ(textOf(fake()->press("window")), "ok");
  EXPECT_NE(textOf(fake()->press()).find("has presses `last`, `window`"), std::string::npos);
  EXPECT_NE(textOf(fake()->press("windw")).find("did you mean `window`"), std::string::npos);
}

TEST(Module, ManyLoadsOfChangingFiles) {
  // One path, other contents each time, and more loads than there are file descriptors.
  rlimit before;
  getrlimit(RLIMIT_NOFILE, &before);
  rlimit few = {64, before.rlim_max};
  setrlimit(RLIMIT_NOFILE, &few);
  std::string path = testing::TempDir() + "/kvpc-changing-" + std::to_string(getpid()) + ".kvm";
  ByteVector bytes = fakeModule();
  std::vector<std::shared_ptr<const Module>> alive;
  for (int round = 0; round < 150; ++round) {
    bytes.push_back(uint8_t(round)); // after the end, where it harms nothing
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char *>(bytes.data()), long(bytes.size()));
    auto module = Module::load(path);
    ASSERT_TRUE(bool(module)) << textOf(module);
    alive.push_back(*module);
  }
  unlink(path.c_str());
  setrlimit(RLIMIT_NOFILE, &before);
  EXPECT_NE(alive.front()->digest(), alive.back()->digest());
}

TEST(Module, TheFileMayGoOnceLoaded) {
  std::string path = testing::TempDir() + "/kvpc-going-" + std::to_string(getpid()) + ".kvm";
  ByteVector bytes = fakeModule();
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char *>(bytes.data()), long(bytes.size()));
  auto module = Module::load(path);
  ASSERT_TRUE(bool(module));
  std::ofstream(path, std::ios::binary) << "something else";
  auto press = (*module)->press("last");
  auto boundPress = press->bind({});
  Floats keys({1, 1, 4, 2}), values({1, 1, 4, 2});
  Call call;
  call.keys = keys.ref;
  call.values = values.ref;
  Outputs out;
  EXPECT_EQ(textOf(out.call(*boundPress, call)), "ok");
  unlink(path.c_str());
}

TEST(Target, ForcedLevels) {
  ASSERT_GE(int(machineLevel()), int(Level::V3));
  if (!isLevelForced()) {
    EXPECT_LE(int(preferredLevel()), int(machineLevel()));
    EXPECT_EQ(*chosenLevel(), preferredLevel());
  }
  {
    Environment lower("x86-64-v3");
    auto level = chosenLevel();
    ASSERT_TRUE(bool(level));
    EXPECT_EQ(*level, Level::V3);
    auto target = machineTarget();
    ASSERT_TRUE(bool(target));
    EXPECT_EQ(*target, "x86-64-v3");
  }
  {
    Environment unknown("sse2");
    EXPECT_EQ(machineTarget().error().code, ErrorCode::Target);
    EXPECT_NE(textOf(Module::load(KVPC_FAKE_MODULE)).find("KVPC_TARGET is `sse2`"),
              std::string::npos);
  }
  if (machineLevel() < Level::V4Bf16) {
    Environment higher("x86-64-v4+avx512bf16");
    EXPECT_NE(textOf(Module::load(KVPC_FAKE_MODULE)).find("this machine runs"), std::string::npos);
  }
  EXPECT_EQ(levelNamed("sm_90"), Level::None);
}

} // namespace
