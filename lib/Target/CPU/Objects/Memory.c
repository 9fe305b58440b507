/*===- Memory.c - the functions that code generation may call -------------===
 *
 * LLVM turns copies and fills of memory into calls of these, and a module has no library to find
 * them in. They are for such small copies alone. Compiled with -fno-builtin: a loop here must not
 * become a call of itself.
 */
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("hidden")))

EXPORT void *memcpy(void *to, const void *from, size_t bytes) {
  void *at = to;
  __asm__ volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(bytes) : : "memory");
  return to;
}

EXPORT void *memmove(void *to, const void *from, size_t bytes) {
  if ((uintptr_t)to - (uintptr_t)from >= bytes) /* also where `to` is lower */
    return memcpy(to, from, bytes);
  char *last = to;
  const char *lastFrom = from;
  while (bytes--)
    last[bytes] = lastFrom[bytes];
  return to;
}

EXPORT void *memset(void *to, int value, size_t bytes) {
  void *at = to;
  __asm__ volatile("rep stosb" : "+D"(at), "+c"(bytes) : "a"(value) : "memory");
  return to;
}
