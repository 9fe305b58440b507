//===- Memory.cpp - the functions that code generation may call -----------===//
//
// LLVM turns copies and fills into calls of these wherever it likes, and a module has no library to
// find them in. Bitcode only: hidden, and kept although nothing calls them yet.
//
//===----------------------------------------------------------------------===//
#include "Vector.h"
#include <stddef.h>

using namespace kvpc::prim;

// A loop in here must not become a call of the function that it is in.
#define KEPT                                                                                       \
  __attribute__((used, weak, noinline, visibility("hidden"),                                       \
                 no_builtin("memcpy", "memmove", "memset")))

constexpr size_t kBytes = sizeof(Words);

KVPC_INLINE void copyUp(char *to, const char *from, size_t bytes) {
  size_t i = 0;
  for (; i + kBytes <= bytes; i += kBytes)
    store(to + i, load<Words>(from + i));
#pragma clang loop vectorize(disable) unroll(disable)
  for (; i < bytes; ++i)
    to[i] = from[i];
}

extern "C" {

KEPT void *memcpy(void *to, const void *from, size_t bytes) {
  copyUp(static_cast<char *>(to), static_cast<const char *>(from), bytes);
  return to;
}

KEPT void *memmove(void *to, const void *from, size_t bytes) {
  char *out = static_cast<char *>(to);
  const char *in = static_cast<const char *>(from);
  if (size_t(out - in) >= bytes) {
    copyUp(out, in, bytes);
    return to;
  }
  for (; bytes >= kBytes; bytes -= kBytes)
    store(out + bytes - kBytes, load<Words>(in + bytes - kBytes));
#pragma clang loop vectorize(disable) unroll(disable)
  for (; bytes; --bytes)
    out[bytes - 1] = in[bytes - 1];
  return to;
}

KEPT void *memset(void *to, int value, size_t bytes) {
  char *out = static_cast<char *>(to);
  size_t i = 0;
  for (; i + kBytes <= bytes; i += kBytes)
    store(out + i, Words(uint32_t(uint8_t(value)) * 0x01010101u));
#pragma clang loop vectorize(disable) unroll(disable)
  for (; i < bytes; ++i)
    out[i] = char(value);
  return to;
}
}
