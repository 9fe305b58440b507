// The section `.kvpc`: what is read, and what is refused with which words.
#include "Sections.h"

using namespace kvpc;
using namespace kvpc::test;

namespace {

std::string parse(const ByteVector &section) { return textOf(parseSection(section)); }

TEST(Sha256, KnownDigests) {
  auto of = [](std::string_view text) {
    return hex(sha256({reinterpret_cast<const uint8_t *>(text.data()), text.size()}));
  };
  // FIPS 180-4 examples.
  EXPECT_EQ(of(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(of("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(of(std::string(1000000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Header, ReadsTheFakeModule) {
  ByteVector file = fakeModule();
  auto header = readHeader(file, "fake.kvm");
  ASSERT_TRUE(bool(header)) << header.error().text();
  EXPECT_EQ(header->compiler, "kvpc 0.1.0");
  EXPECT_EQ(header->presses.size(), 7u);
  const PressHeader &window = header->presses[1];
  EXPECT_EQ(window.name, "window");
  EXPECT_EQ(window.inputs.queries.count, 4);
  EXPECT_EQ(window.usedAt("queries"), " (used at window.kv:3:13)");
  EXPECT_EQ(window.usedAt("hidden"), "");
  EXPECT_EQ(window.runtime, (std::vector<std::string>{"budget", "gain", "share", "seed"}));
  const Parameter *size = window.parameter("size");
  ASSERT_TRUE(size);
  EXPECT_TRUE(size->isStatic);
  EXPECT_EQ(size->value.str(), "4");
  EXPECT_EQ(size->min, 1);
  EXPECT_FALSE(size->max);
  EXPECT_EQ(window.parameter("budget")->fallback.str(), "drop(0.5)");
  EXPECT_EQ(header->presses[6].inputs.hidden.count, Amount::all);
  EXPECT_FALSE(header->presses[2].scoreAxes);
}

TEST(Header, InspectGivesTheJson) {
  auto json = inspect(KVPC_FAKE_MODULE);
  ASSERT_TRUE(bool(json));
  EXPECT_EQ((*json).substr(0, 1), "{");
  EXPECT_NE(json->find("\"window\""), std::string::npos);
  EXPECT_NE(textOf(inspect("/nonexistent.kvm")).find("cannot read `/nonexistent.kvm`"),
            std::string::npos);
  EXPECT_NE(textOf(inspect("/")).find("[kvm-file]"), std::string::npos);
}

TEST(Header, RefusesWhatIsNoHeader) {
  EXPECT_EQ(parse(makeSection(makeJson())), "ok");
  EXPECT_NE(parse({}).find("[kvm-not-a-module]"), std::string::npos);
  ByteVector magic = makeSection(makeJson());
  magic[3] = 'X';
  EXPECT_NE(parse(magic).find("does not start with `KVPCMOD`"), std::string::npos);
  ByteVector cut = makeSection(makeJson());
  cut.resize(cut.size() - 1);
  EXPECT_NE(parse(cut).find("[kvm-truncated]"), std::string::npos);
  cut.resize(60);
  EXPECT_NE(parse(cut).find("ends after 60 bytes"), std::string::npos);
}

TEST(Header, RefusesOtherVersions) {
  ByteVector format = makeSection(makeJson());
  put(format, 8, 2, 4);
  EXPECT_EQ(parse(format), "the module has format 2.0; this runtime reads format 1; update the "
                           "runtime, or compile the press again with the `kvpc` that belongs to it "
                           "[kvm-format]");
  ByteVector minor = makeSection(makeJson());
  put(minor, 12, 9, 4);
  EXPECT_EQ(parse(minor), "ok"); // additions only
  std::string json = makeJson();
  json.replace(json.find("\"abi\": 1"), 8, "\"abi\": 3");
  EXPECT_NE(parse(makeSection(json)).find("binary interface 3"), std::string::npos);
}

TEST(Header, RefusesOffsetsOutside) {
  for (size_t at : {24, 32, 40, 48})
    for (uint64_t value : {uint64_t(1) << 20, ~uint64_t(0), ~uint64_t(0) - 87, uint64_t(1) << 63}) {
      ByteVector section = makeSection(makeJson(), "code");
      put(section, at, value, 8);
      EXPECT_NE(parse(section).find("points outside itself"), std::string::npos) << at;
    }
  ByteVector section = makeSection(makeJson());
  put(section, 24, 0, 8); // into the prefix
  EXPECT_NE(parse(section).find("points outside itself"), std::string::npos);
}

TEST(Header, RefusesAnotherDigest) {
  ByteVector section = makeSection(makeJson(), "code");
  section.back() ^= 1;
  EXPECT_NE(parse(section).find("does not have the digest it states"), std::string::npos);
}

TEST(Header, NamesTheWrongField) {
  auto with = [](const char *fields) { return parse(makeSection(makeJson(fields))); };
  EXPECT_EQ(with(R"(, "later": {"unknown": [1]})"), "ok");
  EXPECT_NE(with(R"(, "uniform": 1)").find("`presses[0].uniform`, which must be true or false"),
            std::string::npos);
  EXPECT_NE(with(R"(, "runtime": ["x"])").find("`presses[0].runtime`"), std::string::npos);
  EXPECT_NE(with(R"(, "reuse": -1)").find("`presses[0].reuse`"), std::string::npos);
  EXPECT_NE(with(R"(, "reuse": 18446744073709551615)").find("`presses[0].reuse`"),
            std::string::npos);
  EXPECT_NE(with(R"(, "inputs": {"queries": "some"})").find("`presses[0].inputs.queries`"),
            std::string::npos);
  EXPECT_NE(with(R"(, "parameters": [{"name": "a", "type": 3}])")
                .find("`presses[0].parameters[0].type`, which must be a text"),
            std::string::npos);
  EXPECT_NE(with(R"(, "parameters": [{"name": "a", "type": "int", "default": {"a": 1}}])")
                .find("`presses[0].parameters[0].default`"),
            std::string::npos);
  EXPECT_NE(with(R"(, "parameters": 3)").find("must be a list"), std::string::npos);
  EXPECT_NE(with(R"(, "score_axes": ["a", "b", "c", "d", "e"])").find("at most 4 axes"),
            std::string::npos);

  std::string target = makeJson();
  target.replace(target.find("\"target\": 0"), 11, "\"target\": 1");
  EXPECT_NE(parse(makeSection(target)).find("`presses[0].variants[0].target`"), std::string::npos);
  std::string none = makeJson();
  none.replace(none.find("[\"x86-64-v3\"]"), 13, "[]");
  none.replace(none.find("\"target\": 0,"), 12, "");
  EXPECT_NE(parse(makeSection(none)).find("target"), std::string::npos);
  std::string symbol = makeJson();
  symbol.replace(symbol.find("plan_last"), 9, "plan last");
  EXPECT_NE(parse(makeSection(symbol)).find("the name of a symbol"), std::string::npos);
  EXPECT_NE(parse(makeSection("[]")).find("is not a JSON object"), std::string::npos);
  EXPECT_NE(parse(makeSection("{")).find("is not a JSON object"), std::string::npos);
  EXPECT_NE(parse(makeSection(R"({"compiler": "c", "abi": 1, "presses": []})")).find("no press"),
            std::string::npos);
}

TEST(Header, DeepJsonIsNoProblem) {
  std::string deep = R"({"compiler": "c", "abi": 1, "x": )" + std::string(200000, '[') +
                     std::string(200000, ']') + "}";
  EXPECT_NE(parse(makeSection(deep)).find("lists no press"), std::string::npos);
}

TEST(Names, Nearest) {
  EXPECT_EQ(nearest("chanel", {"token", "channel"}), "channel");
  EXPECT_EQ(nearest("budgte", {"budget", "gain"}), "budget");
  EXPECT_EQ(nearest("something", {"budget", "gain"}), "");
  EXPECT_EQ(nearest("", {"a"}), "");
}

} // namespace
