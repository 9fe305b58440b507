//===- Selection.h - the steps of a selection ------------------------------===//
//
// Shared by the selection of one row and the joint selection over heads.
//
//===----------------------------------------------------------------------===//
#ifndef KVPC_TARGET_CPU_PRIMITIVES_SELECTION_H
#define KVPC_TARGET_CPU_PRIMITIVES_SELECTION_H

#include "Keys.h"

#pragma GCC visibility push(hidden)
namespace kvpc::prim {

/// What protection makes of a key.
enum class Protection {
  Ignored,
  First,  ///< all protected entries fit: they stand above every score
  Contest ///< they do not: only they may be chosen, by their scores
};

/// Keys of n scores, padded with kOutKey to a multiple of kLanes, which is returned.
int64_t keysOf(const float *score, const uint8_t *protect, int64_t n, Protection protection,
               int32_t *keys);

int64_t countTrue(const uint8_t *condition, int64_t n);

/// The k-th largest (from 1) of n keys, n a multiple of kLanes, at least k of them not kOutKey.
/// `buffer` has room for n + kLanes keys. It depends on the keys' values alone.
int32_t kthLargest(const int32_t *keys, int64_t n, int64_t k, int32_t *buffer);

int64_t countEqual(const int32_t *keys, int64_t padded, int32_t bound, int64_t *above);

/// Writes the ids of the keys above `bound`, and of those equal to it but the first `skip` the next
/// `take`: `total` ids.
void writeIds(const int32_t *keys, int64_t padded, int32_t bound, int64_t skip, int64_t take,
              int32_t *out, int64_t total);

} // namespace kvpc::prim
#pragma GCC visibility pop

#endif
