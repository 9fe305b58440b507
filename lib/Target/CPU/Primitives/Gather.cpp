//===- Gather.cpp - compaction of rows and channels -----------------------===//
//
// In place works because ids and channels ascend: what is written never lies behind what is still
// to be read. So rows, and the bytes of a row, are moved in ascending order, and every vector is
// read before a byte at or after its address is written.
//
//===----------------------------------------------------------------------===//
#include "Primitives.h"
#include "Vector.h"

using namespace kvpc::prim;

namespace {

constexpr int64_t kBytes = kLanes * 4; // of one vector
constexpr int64_t kAhead = 8;          // rows prefetched ahead

typedef uint8_t Sixteen __attribute__((ext_vector_type(16)));

template <bool streaming>
KVPC_INLINE void storeWords(char *to, Words v) {
  if constexpr (streaming)
    __builtin_nontemporal_store(v, reinterpret_cast<Words *>(to));
  else
    store(to, v);
}

template <bool streaming>
KVPC_INLINE void copy(char *dst, const char *src, int64_t bytes) {
  int64_t i = 0;
  for (; i + 4 * kBytes <= bytes; i += 4 * kBytes) {
    Words a = load<Words>(src + i), b = load<Words>(src + i + kBytes);
    Words c = load<Words>(src + i + 2 * kBytes), d = load<Words>(src + i + 3 * kBytes);
    storeWords<streaming>(dst + i, a);
    storeWords<streaming>(dst + i + kBytes, b);
    storeWords<streaming>(dst + i + 2 * kBytes, c);
    storeWords<streaming>(dst + i + 3 * kBytes, d);
  }
  for (; i + kBytes <= bytes; i += kBytes)
    storeWords<streaming>(dst + i, load<Words>(src + i));
  for (; i + 8 <= bytes; i += 8)
    store(dst + i, load<uint64_t>(src + i));
#pragma clang loop vectorize(disable) unroll(disable)
  for (; i < bytes; ++i)
    dst[i] = src[i];
}

KVPC_INLINE void prefetchRow(const char *row, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64)
    __builtin_prefetch(row + i, 0, 0);
}

template <bool streaming>
void gather(const char *src, int64_t srcStride, char *dst, int64_t dstStride, const int32_t *ids,
            int64_t count, int64_t rowBytes) {
  bool dense = srcStride == rowBytes && dstStride == rowBytes;
  int64_t ahead = least(rowBytes, 1024);
  for (int64_t i = 0; i < count;) {
    int64_t run = 1;
    if (dense)
      while (i + run < count && ids[i + run] == ids[i] + run)
        ++run;
    for (int64_t next = i + kAhead, end = least(next + least(run, kAhead), count); next < end;
         ++next)
      prefetchRow(src + ids[next] * srcStride, ahead);
    const char *from = src + ids[i] * srcStride;
    char *to = dst + i * dstStride;
    if (from != to)
      copy<streaming>(to, from, run * rowBytes);
    i += run;
  }
}

/// What one 16-byte group of a row gives: a byte shuffle to its front, and how many bytes.
struct Group {
  uint8_t shuffle[16];
  int32_t from, bytes;
};
constexpr int64_t kGroups = 256; // 4 KB of a row: 1,024 channels of f32

/// The groups that hold a channel, or -1 if there are too many.
int64_t groupChannels(const int32_t *channels, int64_t nchannels, int64_t elementBytes,
                      Group *groups) {
  int64_t count = 0;
  for (int64_t j = 0; j < nchannels;) {
    int64_t byte = channels[j] * elementBytes, from = byte / 16 * 16;
    if (count == kGroups)
      return -1;
    Group &g = groups[count++];
    g.from = int32_t(from);
    g.bytes = 0;
    for (; j < nchannels && (byte = channels[j] * elementBytes) < from + 16; ++j)
      for (int64_t b = 0; b < elementBytes; ++b)
        g.shuffle[g.bytes++] = uint8_t(byte - from + b);
    for (int64_t b = g.bytes; b < 16; ++b)
      g.shuffle[b] = 0x80;
  }
  return count;
}

template <typename Element>
KVPC_INLINE void copyChannels(char *dst, const char *src, const int32_t *channels,
                              int64_t nchannels) {
#pragma clang loop vectorize(disable)
  for (int64_t j = 0; j < nchannels; ++j)
    store(dst + j * int64_t(sizeof(Element)),
          load<Element>(src + channels[j] * int64_t(sizeof(Element))));
}

/// Groups are read and written whole while 16 bytes fit into both rows (`whole` says how many
/// groups do); what a store writes behind its bytes is overwritten by the next.
KVPC_INLINE void shuffleRow(char *dst, const char *src, const Group *groups, int64_t whole) {
  for (int64_t g = 0; g < whole; ++g) {
    Sixteen v = load<Sixteen>(src + groups[g].from);
    v = Sixteen(_mm_shuffle_epi8(__m128i(v), __m128i(load<Sixteen>(groups[g].shuffle))));
    store(dst, v);
    dst += groups[g].bytes;
  }
}

} // namespace

extern "C" {

void kvpc_prim_gather_rows(const void *src, int64_t src_stride_bytes, void *dst,
                           int64_t dst_stride_bytes, const int32_t *ids, int64_t count,
                           int64_t row_bytes, int64_t streaming) {
  const char *from = static_cast<const char *>(src);
  char *to = static_cast<char *>(dst);
  bool aligned = (uintptr_t(to) | uintptr_t(dst_stride_bytes)) % kBytes == 0;
  if (!streaming || !aligned) {
    gather<false>(from, src_stride_bytes, to, dst_stride_bytes, ids, count, row_bytes);
    return;
  }
  gather<true>(from, src_stride_bytes, to, dst_stride_bytes, ids, count, row_bytes);
  _mm_sfence();
}

void kvpc_prim_gather_rows_channels(const void *src, int64_t src_stride_bytes, void *dst,
                                    int64_t dst_stride_bytes, const int32_t *ids, int64_t count,
                                    const int32_t *channels, int64_t nchannels,
                                    int64_t element_bytes) {
  Group groups[kGroups];
  int64_t ngroups = groupChannels(channels, nchannels, element_bytes, groups);
  // A group that would be read past the last channel or written past the row's end is left to the
  // element loop, with the channels from `done` on.
  int64_t whole = 0, done = 0;
  if (ngroups > 0) {
    int64_t rowEnd = (channels[nchannels - 1] + 1) * element_bytes;
    int64_t written = 0, outEnd = nchannels * element_bytes;
    while (whole < ngroups && groups[whole].from + 16 <= rowEnd && written + 16 <= outEnd)
      written += groups[whole++].bytes;
    done = written / element_bytes;
  }
  for (int64_t i = 0; i < count; ++i) {
    const char *from =
        static_cast<const char *>(src) + (ids ? int64_t(ids[i]) : i) * src_stride_bytes;
    char *to = static_cast<char *>(dst) + i * dst_stride_bytes;
    if (ids && i + kAhead < count)
      prefetchRow(static_cast<const char *>(src) + ids[i + kAhead] * src_stride_bytes,
                  least(src_stride_bytes, 1024));
    shuffleRow(to, from, groups, whole);
    if (element_bytes == 2)
      copyChannels<uint16_t>(to + done * 2, from, channels + done, nchannels - done);
    else
      copyChannels<uint32_t>(to + done * 4, from, channels + done, nchannels - done);
  }
}

void kvpc_prim_zero_rows(void *dst, int64_t dst_stride_bytes, int64_t rows, int64_t row_bytes) {
  char *row = static_cast<char *>(dst);
  if (dst_stride_bytes == row_bytes)
    row_bytes *= rows, rows = rows > 0;
  for (; rows > 0; --rows, row += dst_stride_bytes) {
    int64_t i = 0;
    for (; i + kBytes <= row_bytes; i += kBytes)
      store(row + i, Words(0));
    for (; i < row_bytes; ++i)
      row[i] = 0;
  }
}

void kvpc_prim_tokens_out(const int32_t *ids, int64_t count, int64_t start, int64_t *out,
                          int64_t total) {
  int64_t i = 0;
  if (ids)
    for (; i < count; ++i)
      out[i] = start + ids[i];
  else
    for (; i < count; ++i)
      out[i] = start + i;
  for (; i < total; ++i)
    out[i] = -1;
}
}
