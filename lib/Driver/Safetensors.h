//===- Safetensors.h - tensors in files -------------------------------------------------------===//
//
// The format of github.com/huggingface/safetensors: a length, a JSON header, bytes. Little-endian.
// A file is not trusted: every offset, extent and product is checked.
//
//===------------------------------------------------------------------------------------------===//
#ifndef KVPC_DRIVER_SAFETENSORS_H
#define KVPC_DRIVER_SAFETENSORS_H

#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/StringRef.h"
#include "llvm/Support/Error.h"
#include "llvm/Support/raw_ostream.h"

#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace kvpc::driver {

/// A dense row-major tensor with the dtype names of the format: F32, BF16, F16, I64, ...
struct Array {
  std::string dtype;
  std::vector<int64_t> shape;
  std::vector<char> bytes;

  Array() = default;
  /// All zero.
  Array(llvm::StringRef dtype, std::vector<int64_t> shape);

  int64_t size() const;
  /// "[2, 8, 64] F32"
  std::string str() const;

  template <typename T>
  T get(int64_t i) const {
    T value;
    std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
    return value;
  }
  template <typename T>
  void put(int64_t i, T value) {
    std::memcpy(bytes.data() + i * sizeof(T), &value, sizeof(T));
  }
  /// An entry of F32, BF16 or F16, widened.
  float number(int64_t i) const;
};

using Arrays = std::map<std::string, Array>;

/// Bytes of an element, 0 for dtypes that the format does not have.
int64_t elementSize(llvm::StringRef dtype);

float fromBf16(uint16_t bits);
float fromF16(uint16_t bits);
/// Round to nearest even.
uint16_t toBf16(float x);

llvm::Expected<Arrays> parseSafetensors(llvm::StringRef bytes);
llvm::Expected<Arrays> readSafetensors(llvm::StringRef path);
/// The same arrays give the same bytes.
void writeSafetensors(const Arrays &arrays, llvm::raw_ostream &os);

} // namespace kvpc::driver

#endif
