//===- BatchTest.cpp - calls that are wrong are refused, rows are cut out right
//----------------===//
#include "lib/Driver/Batch.h"
#include "lib/Driver/Program.h"

#include "gtest/gtest.h"

#include <cmath>

using namespace kvpc::driver;
using kvpc::PressSummary;

namespace {

Array counting(const char *dtype, std::vector<int64_t> shape) {
  Array out(dtype, std::move(shape));
  for (int64_t i = 0; i < out.size(); ++i)
    if (out.dtype == "I64")
      out.put<int64_t>(i, i);
    else if (out.dtype == "BF16")
      out.put<uint16_t>(i, toBf16(i));
    else
      out.put<float>(i, i);
  return out;
}

Arrays arrays() {
  Arrays out;
  out["keys"] = counting("F32", {2, 1, 3, 2});
  out["values"] = counting("F32", {2, 1, 3, 1});
  return out;
}

std::string error(Arrays arrays, HostValues host = {}) {
  auto batch = Batch::of(std::move(arrays), host);
  if (batch)
    return "no error";
  std::string text = llvm::toString(batch.takeError());
  size_t code = text.rfind(" [kvm-");
  EXPECT_NE(code, std::string::npos) << text;
  return text.substr(0, code);
}

TEST(Batch, rowsWithPadding) {
  Arrays given = arrays();
  given["start"] = Array("I64", {2});
  given["start"].put<int64_t>(1, 2);
  auto batch = Batch::of(std::move(given), {});
  ASSERT_TRUE(bool(batch));
  EXPECT_EQ(batch->length, (std::vector<int64_t>{3, 1}));
  EXPECT_EQ(batch->row(0).keys.floats, (std::vector<float>{0, 1, 2, 3, 4, 5}));
  kvpc::reference::Row row = batch->row(1);
  EXPECT_EQ(row.length, 1);
  EXPECT_EQ(row.seen, 1);
  EXPECT_EQ(row.keys.floats, (std::vector<float>{10, 11}));
  EXPECT_EQ(row.values.floats, (std::vector<float>{5}));
  EXPECT_EQ(row.scale, 1 / std::sqrt(2.0));
}

TEST(Batch, storageIsWidened) {
  Arrays given;
  given["keys"] = counting("BF16", {1, 1, 2, 2});
  given["values"] = counting("BF16", {1, 1, 2, 2});
  given["queries"] = counting("BF16", {1, 1, 2, 1, 2});
  auto batch = Batch::of(std::move(given), {});
  ASSERT_TRUE(bool(batch));
  EXPECT_EQ(batch->groups, 2);
  EXPECT_EQ(batch->row(0).keys.floats, (std::vector<float>{0, 1, 2, 3}));
  EXPECT_EQ(batch->row(0).queries->floats, (std::vector<float>{0, 1, 2, 3}));
}

TEST(Batch, wrongTensors) {
  EXPECT_EQ(error({}), "the input has no `keys`; need [batch, head, token, channel]");
  Arrays given = arrays();
  given["values"] = Array("F32", {2, 1, 4, 1});
  EXPECT_EQ(error(given),
            "`values` is [2, 1, 4, 1] F32; need [2, 1, 3, ?] over [batch, head, token, channel]");
  given = arrays();
  given["values"] = Array("BF16", {2, 1, 3, 1});
  EXPECT_EQ(error(given), "`keys` has dtype F32, `values` BF16; need the same");
  given = arrays();
  given["keys"] = Array("I64", {2, 1, 3, 2});
  EXPECT_EQ(error(given), "`keys` has dtype I64; need F32, BF16 or F16");
  given = arrays();
  given["queries"] = Array("F32", {2, 1, 1, 2, 3});
  EXPECT_EQ(error(given), "`queries` is [2, 1, 1, 2, 3] F32; need [2, 1, ?, ?, 2] over [batch, "
                          "head, group, query, channel]");
  given = arrays();
  given["rope_frequencies"] = Array("F64", {2});
  EXPECT_EQ(error(given), "`rope_frequencies` turns 4 channels, the keys have 2");
}

TEST(Batch, errorsHaveCodes) {
  auto code = [](Arrays given) {
    auto batch = Batch::of(std::move(given), {});
    std::string text = batch ? "" : llvm::toString(batch.takeError());
    return text.substr(std::min(text.size(), text.rfind('[')));
  };
  EXPECT_EQ(code({}), "[kvm-missing-input]");
  Arrays given = arrays();
  given["values"] = Array("BF16", {2, 1, 3, 1});
  EXPECT_EQ(code(given), "[kvm-dtype]");
  given["values"] = Array("F32", {2, 1, 4, 1});
  EXPECT_EQ(code(given), "[kvm-shape]");
}

TEST(Batch, nothingToCompress) {
  Arrays given = arrays();
  given["keys"] = Array("F32", {2, 1, 0, 2});
  EXPECT_EQ(error(given),
            "`keys` is [2, 1, 0, 2] F32; need at least one row, head, token and channel");
  given = arrays();
  given["values"] = Array("F32", {2, 1, 3, 0});
  EXPECT_EQ(error(given),
            "`values` is [2, 1, 3, 0] F32; need at least one row, head, token and channel");
}

TEST(Batch, wrongRows) {
  for (auto [name, value, text] : {std::tuple("length", 4, "`length` of row 1 is 4; need 0..3"),
                                   {"length", -1, "`length` of row 1 is -1; need 0..3"},
                                   {"start", 4, "`start` of row 1 is 4; need 0..3"},
                                   {"seen", 2, "`seen` of row 1 is 2, fewer than its 3 tokens"}}) {
    Arrays given = arrays();
    given[name] = Array("I64", {2});
    if (llvm::StringRef(name) != "start")
      given[name].put<int64_t>(0, 3);
    given[name].put<int64_t>(1, value);
    EXPECT_EQ(error(given), text);
  }
  HostValues host;
  host.layer = 2;
  host.layers = 2;
  EXPECT_EQ(error(arrays(), host), "layer 2 is not one of 2 layers");
}

TEST(Batch, syntheticTensorsAreThoseThatAreNeeded) {
  PressSummary press;
  press.inputs["queries"] = 4;
  auto made = syntheticArrays(press, {1, 2, 3, 10, 4}, 7);
  ASSERT_TRUE(bool(made));
  EXPECT_EQ(made->size(), 3u);
  EXPECT_EQ((*made)["queries"].shape, (std::vector<int64_t>{1, 2, 3, 4, 4}));
  auto other = syntheticArrays(PressSummary(), {1, 2, 3, 10, 4}, 7);
  EXPECT_EQ((*other)["keys"].bytes, (*made)["keys"].bytes);
  EXPECT_NE((*other)["keys"].bytes, (*other)["values"].bytes);
}

TEST(Values, parse) {
  EXPECT_EQ(parseValue("64")->str(), "64");
  EXPECT_EQ(parseValue("0.5")->str(), "0.5");
  EXPECT_EQ(parseValue("true")->str(), "true");
  EXPECT_EQ(parseValue("-inf")->str(), "-inf");
  EXPECT_EQ(parseValue("drop(0.5)")->str(), "drop(0.5)");
  EXPECT_EQ(parseValue("keep( 9 )")->str(), "keep(9)");
  for (const char *text : {"", "keep(0.5)", "drop()", "drop(1", "tova()", "1x"})
    EXPECT_FALSE(parseValue(text)) << text;
}

TEST(States, comeBack) {
  States states(2);
  states[1][3] = {{0, 4, 9}, {}};
  auto read = readStates(writeStates(states));
  ASSERT_TRUE(bool(read));
  EXPECT_EQ((*read)[1][3], states[1][3]);
  Arrays wrong;
  wrong["0.0.0"] = Array("I64", {2}); // 0, 0
  EXPECT_EQ(llvm::toString(readStates(wrong).takeError()),
            "the state file's choices do not ascend");
  wrong.clear();
  wrong["keys"] = Array("I64", {2});
  EXPECT_EQ(llvm::toString(readStates(wrong).takeError()),
            "the state file was not written by `kvpc run --state`");
}

} // namespace
