//===- SafetensorsTest.cpp - files of tensors, right and wrong --------------------------------===//
#include "lib/Driver/Safetensors.h"

#include "llvm/Support/Endian.h"
#include "gtest/gtest.h"

#include <cmath>
#include <random>

using namespace kvpc::driver;

namespace {

/// A file with that header and `data` bytes behind it.
std::string file(const std::string &header, size_t data) {
  std::string out(8, 0);
  llvm::support::endian::write64le(out.data(), header.size());
  return out + header + std::string(data, 'x');
}

std::string entry(const std::string &dtype, const std::string &shape, const std::string &offsets) {
  return "{\"a\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets +
         "}}";
}

std::string error(const std::string &bytes) {
  auto arrays = parseSafetensors(bytes);
  return arrays ? "no error" : llvm::toString(arrays.takeError());
}

std::string written(const Arrays &arrays) {
  std::string out;
  llvm::raw_string_ostream os(out);
  writeSafetensors(arrays, os);
  return out;
}

TEST(Safetensors, whatIsWrittenIsRead) {
  Arrays arrays;
  arrays["flags"] = Array("BOOL", {3});
  arrays["x"] = Array("F32", {2, 2});
  arrays["ids"] = Array("I64", {0, 5});
  arrays["scalar"] = Array("F64", {});
  for (int i = 0; i < 4; ++i)
    arrays["x"].put<float>(i, i + 0.5f);
  std::string bytes = written(arrays);
  EXPECT_EQ(bytes, written(arrays));
  auto read = parseSafetensors(bytes);
  ASSERT_TRUE(bool(read)) << llvm::toString(read.takeError());
  ASSERT_EQ(read->size(), 4u);
  for (auto &[name, array] : arrays) {
    EXPECT_EQ((*read)[name].dtype, array.dtype);
    EXPECT_EQ((*read)[name].shape, array.shape);
    EXPECT_EQ((*read)[name].bytes, array.bytes);
  }
}

TEST(Safetensors, metadataIsNoTensor) {
  auto read = parseSafetensors(file("{\"__metadata__\":{\"format\":\"pt\"}}", 0));
  ASSERT_TRUE(bool(read));
  EXPECT_TRUE(read->empty());
}

TEST(Safetensors, wrongFiles) {
  EXPECT_EQ(error("short"), "not a safetensors file: it has 5 bytes");
  EXPECT_EQ(error(std::string(8, '\xff')),
            "not a safetensors file: its header of 18446744073709551615 bytes does not fit");
  EXPECT_EQ(error(file("{", 0)), "not a safetensors file: its header is not JSON");
  EXPECT_EQ(error(file("[]", 0)), "not a safetensors file: its header is not a JSON object");
  EXPECT_EQ(error(file("{\"a\":3}", 0)), "not a safetensors file: `a` is not described");
  EXPECT_EQ(error(file(entry("F31", "[1]", "[0,4]"), 4)),
            "not a safetensors file: `a` has the unknown dtype `F31`");
  EXPECT_EQ(error(file("{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4)),
            "not a safetensors file: `a` has no dtype");
  EXPECT_EQ(error(file("{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4)),
            "not a safetensors file: `a` has no shape");
}

TEST(Safetensors, wrongExtents) {
  for (const char *shape : {"[-1]", "[1.5]", "[\"1\"]", "[1e30]", "[null]"})
    EXPECT_EQ(error(file(entry("F32", shape, "[0,4]"), 4)),
              "not a safetensors file: `a` has an extent that is no count")
        << shape;
  EXPECT_EQ(error(file(entry("F32", "[2]", "[0,4]"), 4)),
            "not a safetensors file: `a` has 4 bytes, which is not [2] F32");
  // The product overflows to the right number.
  EXPECT_EQ(error(file(entry("F32", "[4611686018427387904,4]", "[0,0]"), 0)),
            "not a safetensors file: `a` has 0 bytes, which is not [4611686018427387904, 4] F32");
}

TEST(Safetensors, wrongOffsets) {
  for (const char *offsets : {"[0,8]", "[-4,0]", "[4,0]", "[0]", "[0,4,8]", "4",
                              "[0,9223372036854775807]", "[1,5]", "[0,4.5]"})
    EXPECT_EQ(error(file(entry("F32", "[1]", offsets), 4)),
              "not a safetensors file: `a` does not lie inside the file")
        << offsets;
  EXPECT_EQ(error(file("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
                       "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[3,7]}}",
                       8)),
            "not a safetensors file: `a` and `b` overlap");
}

TEST(Safetensors, damagedFilesAreRefusedOrRead) {
  Arrays arrays;
  arrays["keys"] = Array("BF16", {2, 3, 5});
  arrays["length"] = Array("I64", {2});
  const std::string whole = written(arrays);
  std::mt19937 random(20260101);
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = whole;
    for (unsigned changes = 1 + random() % 4; changes > 0; --changes)
      bytes[random() % bytes.size()] = static_cast<char>(random());
    if (random() % 4 == 0)
      bytes.resize(random() % bytes.size());
    auto read = parseSafetensors(bytes);
    if (!read) {
      llvm::consumeError(read.takeError());
      continue;
    }
    // What is read holds together.
    for (auto &[name, array] : *read)
      ASSERT_EQ(static_cast<int64_t>(array.bytes.size()), array.size() * elementSize(array.dtype))
          << name;
  }
}

TEST(Safetensors, halfPrecision) {
  EXPECT_EQ(fromBf16(0x3fc0), 1.5f);
  EXPECT_EQ(fromF16(0x3e00), 1.5f);
  EXPECT_EQ(fromF16(0x0001), 0x1p-24f);
  EXPECT_TRUE(std::isinf(fromF16(0x7c00)));
  EXPECT_TRUE(std::isnan(fromF16(0x7e00)));
  EXPECT_EQ(toBf16(1.5f), 0x3fc0);
  EXPECT_EQ(toBf16(1.00390625f), 0x3f80); // half way: to even
  EXPECT_EQ(toBf16(1.01171875f), 0x3f82);
  EXPECT_TRUE(std::isnan(fromBf16(toBf16(std::nanf("")))));
}

} // namespace
