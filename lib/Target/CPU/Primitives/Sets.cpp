//===- Sets.cpp - sets of entries as ascending ids ------------------------===//
#include "Primitives.h"
#include "Vector.h"

using namespace kvpc::prim;

extern "C" {

int64_t kvpc_prim_mask_select(const uint8_t *cond, int64_t n, int32_t *out) {
  int64_t kept = 0, i = 0;
  // kept <= i, so a whole vector always fits into the n places of `out`.
  for (; i + kLanes <= n; i += kLanes) {
    Ints yes = __builtin_convertvector(load<Bytes>(cond + i), Ints) != 0;
    kept += compress(out + kept, Ints(int32_t(i)) + kIota, bits(yes));
  }
  for (; i < n; ++i)
    if (cond[i])
      out[kept++] = int32_t(i);
  if (!kept && n > 0)
    out[kept++] = int32_t(n - 1);
  return kept;
}

int64_t kvpc_prim_parts_to_tokens(const int32_t *parts, int64_t nparts, int64_t size, int64_t from,
                                  int64_t to, int64_t n, int32_t *tokens) {
  int64_t count = 0;
  for (int64_t p = 0; p < nparts; ++p)
    for (int64_t t = from + parts[p] * size, end = least(t + size, to); t < end; ++t)
      tokens[count++] = int32_t(t);
  if (!count && n > 0)
    tokens[count++] = int32_t(n - 1);
  return count;
}

void kvpc_prim_compose_sets(const int32_t *outer, const int32_t *inner, int64_t count,
                            int32_t *out) {
  for (int64_t i = 0; i < count; ++i)
    out[i] = outer[inner[i]];
}

int64_t kvpc_prim_complement(const int32_t *ids, int64_t count, int64_t n, int32_t *out) {
  int64_t kept = 0, next = 0;
  for (int64_t i = 0; i <= count; ++i) {
    int64_t end = i < count ? ids[i] : n;
    for (; next < end; ++next)
      out[kept++] = int32_t(next);
    next = end + 1;
  }
  return kept;
}
}
