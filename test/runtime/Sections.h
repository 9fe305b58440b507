//===- Sections.h - header sections for tests -------------------------------------------------===//
#ifndef KVPC_TEST_RUNTIME_SECTIONS_H
#define KVPC_TEST_RUNTIME_SECTIONS_H

#include "Sha256.h"
#include "kvpc/Header.h"

#include <cstring>
#include <gtest/gtest.h>

namespace kvpc::test {

using ByteVector = std::vector<uint8_t>;

inline void put(ByteVector &bytes, size_t at, uint64_t value, int count) {
  for (int i = 0; i < count; ++i)
    bytes[at + size_t(i)] = uint8_t(value >> 8 * i);
}

/// A section `.kvpc` with a right digest.
inline ByteVector makeSection(std::string_view json, std::string_view bytecode = "") {
  ByteVector body(json.begin(), json.end());
  body.insert(body.end(), bytecode.begin(), bytecode.end());
  ByteVector out(88);
  std::memcpy(out.data(), "KVPCMOD\n", 8);
  put(out, 8, 1, 4);
  put(out, 16, 88 + body.size(), 8);
  put(out, 24, 88, 8);
  put(out, 32, json.size(), 8);
  put(out, 40, 88 + json.size(), 8);
  put(out, 48, bytecode.size(), 8);
  auto digest = sha256(body);
  std::memcpy(out.data() + 56, digest.data(), digest.size());
  out.insert(out.end(), body.begin(), body.end());
  return out;
}

/// The least header that is valid, with `more` fields of its only press.
inline std::string makeJson(std::string_view more = "") {
  return R"({"compiler": "kvpc 0.1.0", "abi": 1, "dtypes": ["f32"], "channels": [0],
    "targets": ["x86-64-v3"], "presses": [{"name": "last")" +
         std::string(more) + R"(, "variants": [{"dtype": "f32", "channels": 0, "target": 0,
    "plan": "plan_last", "run": "run_last_f32"}]}]})";
}

inline ByteVector fakeModule() {
  auto bytes = readFile(KVPC_FAKE_MODULE);
  EXPECT_TRUE(bool(bytes));
  return bytes ? *bytes : ByteVector();
}

/// The error's text, or "ok".
template <class T>
std::string textOf(const Result<T> &result) {
  return result ? "ok" : result.error().text();
}
inline std::string textOf(const Failure &failure) { return failure ? failure->text() : "ok"; }

} // namespace kvpc::test

#endif
