/* The binary interface between a compiled module (.kvm) and its host.
 *
 * A module is an ELF shared object that needs no library. Per press and variant it exports two
 * functions over one structure: `plan` computes sizes from shapes and arguments and touches no
 * tensor; `run` is given every buffer and allocates nothing. Both return KVPC_OK or an error code
 * with a message in `error`. Every field is 8 bytes wide, so that the generated code addresses it
 * as offset / 8; the structure only ever grows at its end.
 *
 * Strides count elements. Tensors of tokens need contiguous channels (last stride 1).
 */
#ifndef KVPC_ABI_H
#define KVPC_ABI_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KVPC_ABI_VERSION 1

enum kvpc_status {
  KVPC_OK = 0,
  KVPC_ERROR_ARGUMENT = 1, /* a shape, count or parameter the press cannot take */
  KVPC_ERROR_REQUIRE = 2,  /* a `require` of the program does not hold */
  KVPC_ERROR_NAN = 3       /* a runtime parameter is NaN */
};

/* Storage type of keys, values, queries and hidden states; outputs have the same. */
enum kvpc_dtype { KVPC_F32 = 0, KVPC_BF16 = 1, KVPC_F16 = 2 };

/* A runtime parameter: int in `i`, float and fraction in `f`. A budget `keep(n)` is i = n;
 * `drop(r)` is i = -1, f = r. */
typedef struct kvpc_scalar {
  int64_t i;
  double f;
} kvpc_scalar;

typedef struct kvpc_tensor {
  void *data; /* null: not given */
  int64_t stride[5];
} kvpc_tensor;

/* Calls body(context, begin, end) over disjoint ranges that cover [0, count), on any threads, and
 * returns when all are done. */
typedef void (*kvpc_body)(void *context, int64_t begin, int64_t end);
typedef void (*kvpc_parallel_for)(void *host_context, kvpc_body body, void *context, int64_t count);

typedef struct kvpc_call {
  int64_t size; /* sizeof(kvpc_call) as the host knows it */

  /* Set by the host before plan. */
  int64_t batch, heads, groups, tokens; /* tokens: padded length of the given keys */
  int64_t channels, value_channels;     /* of one key, of one value */
  int64_t queries;                      /* given queries per row, ending at the row's last token */
  int64_t features;                     /* width of hidden, 0 if not given */
  int64_t layer, layers;                /* this attention layer, their number */
  int64_t threads;
  double scale;                  /* of attention logits */
  const int64_t *start;          /* [batch] index of the first real token */
  const int64_t *length;         /* [batch] real tokens, 0 .. tokens - start */
  const int64_t *seen;           /* [batch] tokens ever cached, >= length */
  const kvpc_scalar *parameters; /* runtime scalars and budgets, in the header's order */

  /* Set by plan. Upper bounds over the rows where counts depend on data. */
  int64_t kept;          /* entries: size of the token axis of the outputs */
  int64_t kept_channels; /* channels of the output keys */
  int64_t workspace_bytes, state_bytes;

  /* Set by the host before run. */
  kvpc_tensor keys, values;       /* [batch, head, token, channel] */
  kvpc_tensor queries_rotated;    /* [batch, head, group, query, channel] */
  kvpc_tensor queries_unrotated;  /* same */
  kvpc_tensor hidden;             /* [batch, query, feature] */
  kvpc_tensor output_weight;      /* [head, group, channel, feature] */
  kvpc_tensor original_positions; /* int64 [batch, head, token], null: token - start */
  const kvpc_tensor *weights; /* tensor parameters, f32, contiguous, header order: at this layer, or
                                 of all layers where the header has `layer` among their axes */

  /* Outputs: keys and values [batch, head, kept, channel] (may be the inputs themselves: then
   * compaction is in place), tokens int64 [batch, head, kept] (indices into the given token axis,
   * ascending, -1 past the count; a head stride of 0 is allowed where the selection is the same
   * for all heads), channels int64 [batch, head, kept_channels] or null, lengths int64
   * [batch, head]. Rows past their count are zero in keys and values. */
  kvpc_tensor out_keys, out_values, out_tokens, out_channels, out_lengths;
  /* If given, run writes these only: the first stage's score in its own axes after the batch
   * (f32, NaN at padding) and whether an entry is protected (one byte each, same axes). */
  kvpc_tensor out_scores, out_protected;

  void *workspace; /* workspace_bytes, 64-byte aligned, contents do not matter */
  void *state;     /* state_bytes, 64-byte aligned: kept by the host for one forward pass over all
                      layers; null where the press has none */
  kvpc_parallel_for parallel_for;
  void *parallel_context;

  /* Rotary embedding, for programs that rotate. */
  const double *rope_frequencies; /* inverse frequencies, rope_width / 2 of them */
  int64_t rope_width, rope_interleaved;
  double rope_scaling;

  char *error; /* null, or error_size bytes for a message */
  int64_t error_size;

  const int64_t *weight_sizes; /* five extents for each of `weights`, set before plan */
} kvpc_call;

typedef int32_t (*kvpc_entry)(kvpc_call *call);

#ifdef __cplusplus
}
#endif
#endif
