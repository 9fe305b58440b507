// Any bytes give a header or an error, never a crash. Run under AddressSanitizer this also shows
// that nothing outside the bytes is read. KVPC_FUZZ_ROUNDS=100 runs that many times longer.
#include "Sections.h"

#include <cstdlib>
#include <random>

using namespace kvpc;
using namespace kvpc::test;

namespace {

int rounds(int count) {
  const char *factor = std::getenv("KVPC_FUZZ_ROUNDS");
  return factor ? count * std::max(1, std::atoi(factor)) : count;
}

/// What a valid header promises to the rest of the runtime.
void expectSound(const Header &header) {
  ASSERT_FALSE(header.presses.empty());
  for (const PressHeader &press : header.presses) {
    EXPECT_FALSE(press.name.empty());
    for (const Variant &variant : press.variants) {
      EXPECT_LT(variant.target, header.targets.size());
      EXPECT_FALSE(variant.plan.empty());
    }
    for (const std::string &name : press.runtime)
      EXPECT_TRUE(press.parameter(name));
    for (const Weight &weight : press.weights)
      EXPECT_LE(weight.axes.size(), 5u);
  }
}

void read(const ByteVector &file) {
  // An exact copy on the heap, so that a read past the end is seen.
  std::unique_ptr<uint8_t[]> exact(new uint8_t[file.size()]);
  std::copy(file.begin(), file.end(), exact.get());
  auto header = readHeader({exact.get(), file.size()}, "fuzz");
  if (header)
    expectSound(*header);
  else
    EXPECT_FALSE(header.error().message.empty());
}

TEST(Fuzz, ByteFlipsOfAFile) {
  ByteVector file = fakeModule();
  auto section = findSection(file);
  ASSERT_TRUE(bool(section));
  size_t from = size_t(section->data() - file.data());
  std::mt19937 random(1);
  for (size_t at = 0; at < file.size(); ++at) {
    // The JSON is under the digest, JsonMutations goes behind it; code is not looked at.
    bool inTables = at < 512 || at + 2048 > file.size() || (at >= from && at < from + 88);
    if (!inTables && int(random() % 400) >= rounds(1))
      continue;
    ByteVector changed = file;
    changed[at] ^= at % 2 ? uint8_t(1 << random() % 8) : uint8_t(random());
    read(changed);
  }
}

TEST(Fuzz, WordsOfAFile) {
  ByteVector file = fakeModule();
  std::mt19937_64 random(2);
  const uint64_t words[] = {0, 1, 0x7fffffff, 0xffffffff, uint64_t(1) << 63, ~uint64_t(0)};
  for (int round = 0; round < rounds(2000); ++round) {
    ByteVector changed = file;
    for (int n = 0; n < int(random() % 3) + 1; ++n) {
      // Where the tables are: at the beginning and at the end.
      size_t at = random() % 512;
      at = random() % 2 ? at : file.size() - 8 - at * 2;
      put(changed, at, words[random() % 6] - random() % 3, random() % 2 ? 8 : 4);
    }
    read(changed);
  }
}

TEST(Fuzz, JsonMutations) {
  auto header = inspect(KVPC_FAKE_MODULE);
  ASSERT_TRUE(bool(header));
  const std::string &json = *header;
  const char *pieces[] = {
      "null", "-1",       "1e999", "{}",      "[]",   "\"\"", "99999999999999999999",
      "true", "\"name\"", "0.5",   "\\u0000", "\xff", "[[[[", ",",
      ":",    "\""};
  std::mt19937 random(3);
  int valid = 0;
  for (int round = 0; round < rounds(2000); ++round) {
    std::string changed = json;
    for (int n = 0; n < int(random() % 3) + 1; ++n) {
      size_t at = random() % changed.size();
      switch (random() % 4) {
      case 0:
        changed[at] = char(random());
        break;
      case 1:
        changed.erase(at, random() % 20);
        break;
      case 2:
        changed.insert(at, pieces[random() % std::size(pieces)]);
        break;
      default: // a whole value becomes another
        size_t end = changed.find_first_of(",}]", at), begin = changed.rfind(':', at);
        if (begin != std::string::npos && end != std::string::npos && begin < end)
          changed.replace(begin + 1, end - begin - 1, pieces[random() % std::size(pieces)]);
        break;
      }
      if (changed.empty())
        changed = "{";
    }
    ByteVector section = makeSection(changed);
    auto parsed = parseSection(section);
    if (parsed) {
      expectSound(*parsed);
      ++valid;
    }
  }
  EXPECT_GT(valid, 20); // else the mutations are too coarse to test anything
}

TEST(Fuzz, Arguments) {
  const std::string json =
      R"({"budget": {"drop": 0.5}, "gain": 1e3, "ratios": [0.5, 1, "inf"], "on": true, "n": null})";
  EXPECT_TRUE(bool(parseArguments(json)));
  std::mt19937 random(4);
  for (int round = 0; round < rounds(2000); ++round) {
    std::string changed = json;
    for (int n = 0; n < 2; ++n)
      changed[random() % changed.size()] = char(random());
    (void)parseArguments(changed);
  }
}

} // namespace
