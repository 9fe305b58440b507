//===- Memory.cpp - the functions that code generation may call -----------===//
//
// LLVM turns copies and fills into calls of these wherever it likes, and a module has no library to
// find them in. Bitcode only: hidden, and kept although nothing calls them yet. Written as
// instructions, since a loop would become a call of itself.
//
//===----------------------------------------------------------------------===//
#include <stddef.h>

#define KEPT __attribute__((used, weak, noinline, visibility("hidden")))

extern "C" {

KEPT void *memcpy(void *to, const void *from, size_t bytes) {
  void *at = to;
  __asm__ volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(bytes) : : "memory");
  return to;
}

KEPT void *memmove(void *to, const void *from, size_t bytes) {
  if (static_cast<char *>(to) - static_cast<const char *>(from) >= 0 && bytes) {
    char *last = static_cast<char *>(to) + bytes - 1;
    const char *lastFrom = static_cast<const char *>(from) + bytes - 1;
    __asm__ volatile("std\n\trep movsb\n\tcld"
                     : "+D"(last), "+S"(lastFrom), "+c"(bytes)
                     :
                     : "memory", "cc");
    return to;
  }
  return memcpy(to, from, bytes);
}

KEPT void *memset(void *to, int value, size_t bytes) {
  void *at = to;
  __asm__ volatile("rep stosb" : "+D"(at), "+c"(bytes) : "a"(value) : "memory");
  return to;
}
}
