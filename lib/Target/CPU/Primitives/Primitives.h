//===- Primitives.h - hand-written primitives of the CPU target -----------===//
//
// The closed list of functions that are written by hand and shared by every compiled module:
// selection, compaction, the contraction microkernel (also of forms and outer products), softmax,
// whole-row orders, elementary functions, rotary tables, random numbers and tree reductions. No
// function here knows a press.
//
// The sources are freestanding. They are compiled to LLVM bitcode once per ISA level when the
// compiler is built (PrimitivesBitcode.h) and linked into every module, and natively for hosts and
// tests (kvpc_primitives_native, which needs x86-64-v3: ask kvpc_primitives_supported() first).
//
//   level 0  x86-64-v3                     8 lanes, panels of 16 rows, micro-tile 6 x 2 vectors
//   level 1  x86-64-v4                    16 lanes, panels of 64 rows, micro-tile 6 x 4 vectors
//   level 2  x86-64-v4 with AVX512-BF16   as level 1, bf16 keys by pairs (vdpbf16ps)
//
// Conventions
// - Counts, strides and extents are int64_t and may be 0. Strides count elements of the array they
//   belong to, unless the name says bytes. `dtype` is kvpc_dtype of kvpc/abi.h.
// - Ids are int32_t, ascending and distinct; a row has fewer than 2^31 entries. Conditions are one
//   byte an entry, 0 or not 0; a null condition of `protect` holds nowhere, of `where` everywhere.
// - `scratch` is 64-byte aligned memory of the caller, as many bytes as the function of the same
//   name ending in _scratch says; contents do not matter. Other pointers need only the alignment of
//   their elements. Outputs may not overlap inputs unless stated.
// - Nothing is read or written outside the stated extents: no padding is asked for.
// - The order of all floating-point operations follows from the level and the arguments alone.
//   "fma" is a fused multiply-add; products and sums are fused nowhere else.
// - No function calls another library, allocates, keeps state or raises a trap.
//
//===----------------------------------------------------------------------===//
#ifndef KVPC_TARGET_CPU_PRIMITIVES_H
#define KVPC_TARGET_CPU_PRIMITIVES_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

//===----------------------------------------------------------------------===//
// Selection
//===----------------------------------------------------------------------===//

/// Bytes of scratch for the selection of any number of n scores.
int64_t kvpc_prim_select_scratch(int64_t n);

/// Writes the ids of the best min(max(k, 0), n) of n scores to `out`, ascending, and returns how
/// many. Protected entries stand above all others; among each kind the higher score wins, with
/// -0 == +0, -inf above NaN and all NaN equal. Of equals the earlier entry wins, except that where
/// more than k entries are protected the newest of equals stay. `within` is reserved: pass null
/// (scores are of the entries that the stage sees).
int64_t kvpc_prim_select(const float *score, const uint8_t *protect, const int32_t *within,
                         int64_t n, int64_t k, int32_t *out, void *scratch);

/// One selection for `heads` heads, head h of n[h] scores at score + h * score_stride (protection
/// at protect + h * protect_stride): the best min(max(k, 0), all there are) of all. floor[h]
/// entries of head h (its best, at most n[h]) are chosen first; together the floors are at most k.
/// Of equals the earlier token wins, then the lower head; among more protected entries than k the
/// later token, then the higher head. Head h's ids go to out + h * out_stride, ascending, their
/// number to counts[h] (at most n[h]); returns the sum of the counts. `longest` is at least every
/// n[h].
int64_t kvpc_prim_select_joint(const float *score, int64_t score_stride, const uint8_t *protect,
                               int64_t protect_stride, int64_t heads, const int64_t *n,
                               int64_t longest, int64_t k, const int64_t *floor, int32_t *out,
                               int64_t out_stride, int64_t *counts, void *scratch);
int64_t kvpc_prim_select_joint_scratch(int64_t heads, int64_t longest);

/// Ids where `cond` holds, ascending; if it holds nowhere, the newest, n - 1, alone. Returns how
/// many: 0 only if n is 0. `out` holds n ids.
int64_t kvpc_prim_mask_select(const uint8_t *cond, int64_t n, int32_t *out);

/// Tokens from + [p * size, (p + 1) * size), those below `to`, of the parts p of `parts`,
/// ascending; of no parts the newest of n tokens, n - 1, alone. Returns how many.
int64_t kvpc_prim_parts_to_tokens(const int32_t *parts, int64_t nparts, int64_t size, int64_t from,
                                  int64_t to, int64_t n, int32_t *tokens);

/// out[i] = outer[inner[i]]: a set of entries of a set. `out` may be `inner`.
void kvpc_prim_compose_sets(const int32_t *outer, const int32_t *inner, int64_t count,
                            int32_t *out);

/// Ids 0 .. n-1 that are not in `ids`, ascending. Returns how many: n - count.
int64_t kvpc_prim_complement(const int32_t *ids, int64_t count, int64_t n, int32_t *out);

//===----------------------------------------------------------------------===//
// Compaction
//===----------------------------------------------------------------------===//

/// Row i of dst becomes row ids[i] of src. In place (dst == src, dst_stride_bytes <=
/// src_stride_bytes, row_bytes <= dst_stride_bytes) is allowed, otherwise the two may not overlap.
/// `streaming`: dst is large, is not src and is not read soon; it is then written past the cache
/// where its alignment allows, and the stores are fenced.
void kvpc_prim_gather_rows(const void *src, int64_t src_stride_bytes, void *dst,
                           int64_t dst_stride_bytes, const int32_t *ids, int64_t count,
                           int64_t row_bytes, int64_t streaming);

/// The same for some channels: element j of row i of dst becomes element channels[j] of row ids[i]
/// of src; null `ids` means every row. element_bytes is 2 or 4. In place as above.
void kvpc_prim_gather_rows_channels(const void *src, int64_t src_stride_bytes, void *dst,
                                    int64_t dst_stride_bytes, const int32_t *ids, int64_t count,
                                    const int32_t *channels, int64_t nchannels,
                                    int64_t element_bytes);

/// Zeroes `rows` rows.
void kvpc_prim_zero_rows(void *dst, int64_t dst_stride_bytes, int64_t rows, int64_t row_bytes);

/// out[i] = start + ids[i] for i < count (start + i if `ids` is null), -1 for the others of
/// `total`.
void kvpc_prim_tokens_out(const int32_t *ids, int64_t count, int64_t start, int64_t *out,
                          int64_t total);

//===----------------------------------------------------------------------===//
// Contraction: S[token][row] = scale * sum over c of K[token][c] * Q[row][c], rows on lanes
//===----------------------------------------------------------------------===//

/// Rows of one panel: 16 or 64.
int64_t kvpc_prim_panel_rows(void);

/// Bytes of one panel for keys of that dtype. A panel is f32 [channel][panel row]; for bf16 keys
/// with an even number of channels at level 2 it is `parts` times bf16 [channel / 2][panel row][2].
int64_t kvpc_prim_panel_bytes(int64_t key_dtype, int64_t channels, int64_t parts);

/// Packs groups * queries rows, row g * queries + w from q + g * group_stride + w * query_stride,
/// its elements channel_stride apart, into ceil(rows / kvpc_prim_panel_rows()) panels; rows that
/// are missing in the last are 0. `channel_ids`, if not null, names the `channels` channels of q to
/// take. An element becomes q * scale in f32. Where panels hold bf16 it is then rounded to nearest
/// even (exact with scale 1 and q of bf16: give the contraction the scale); with parts = 2 the rest
/// is rounded as a second part, for queries that were computed. Elsewhere `parts` is ignored.
void kvpc_prim_pack_rows(const void *q, int64_t q_dtype, int64_t group_stride, int64_t query_stride,
                         int64_t channel_stride, int64_t groups, int64_t queries, int64_t channels,
                         const int32_t *channel_ids, float scale, int64_t key_dtype, int64_t parts,
                         void *panels);

/// out[t * out_stride + r] for all t < tokens and r < rows. Token t is row t of keys, or row ids[t]
/// if `ids` is not null. f32 panels: one fma a channel, channels ascending, from 0. bf16 panels:
/// one vdpbf16ps a pair of channels, ascending, part after part. Up to 4 rows of up to 512 channels
/// go otherwise: one fma a channel in f32, channels ascending, into the lane of the channel modulo
/// the lanes, and the lanes are folded by halves. The sum is then multiplied by scale. Hence a
/// result depends on the token's key, the row, the number of rows and the level alone.
void kvpc_prim_contract_f32(const float *keys, int64_t key_stride, const int32_t *ids,
                            int64_t tokens, int64_t channels, const void *panels, int64_t rows,
                            float scale, float *out, int64_t out_stride);
void kvpc_prim_contract_bf16(const uint16_t *keys, int64_t key_stride, const int32_t *ids,
                             int64_t tokens, int64_t channels, const void *panels, int64_t parts,
                             int64_t rows, float scale, float *out, int64_t out_stride);
void kvpc_prim_contract_f16(const uint16_t *keys, int64_t key_stride, const int32_t *ids,
                            int64_t tokens, int64_t channels, const void *panels, int64_t rows,
                            float scale, float *out, int64_t out_stride);

//===----------------------------------------------------------------------===//
// Quadratic forms: S[token][form] = sum over a, b of K[token][a] * M[a][b] * K[token][b]
//===----------------------------------------------------------------------===//

/// Bytes of one packed matrix for keys of that dtype.
int64_t kvpc_prim_form_bytes(int64_t key_dtype, int64_t channels, int64_t parts);

/// Packs a matrix, element (a, b) at matrix + a * row_stride + b * column_stride, folded onto one
/// side of its diagonal: M[a][b] + M[b][a] in f32. Where panels of that dtype hold bf16 (see
/// kvpc_prim_panel_bytes) the sum is then rounded, with parts = 2 the rest as a second part.
void kvpc_prim_pack_form(const float *matrix, int64_t row_stride, int64_t column_stride,
                         int64_t channels, int64_t key_dtype, int64_t parts, void *panels);

/// out[t * out_stride + f] for all t < tokens and f < forms, matrix f behind matrix f - 1. Token t
/// is as of the contraction, and so are a column's sums over the channels up to it, ascending.
/// Times the key's own channels (one fma each) they add up per lane over all vectors of columns,
/// ascending; then the lanes are folded by halves.
void kvpc_prim_form_f32(const float *keys, int64_t key_stride, const int32_t *ids, int64_t tokens,
                        int64_t channels, const void *panels, int64_t forms, float *out,
                        int64_t out_stride);
void kvpc_prim_form_bf16(const uint16_t *keys, int64_t key_stride, const int32_t *ids,
                         int64_t tokens, int64_t channels, const void *panels, int64_t parts,
                         int64_t forms, float *out, int64_t out_stride);
void kvpc_prim_form_f16(const uint16_t *keys, int64_t key_stride, const int32_t *ids,
                        int64_t tokens, int64_t channels, const void *panels, int64_t forms,
                        float *out, int64_t out_stride);

//===----------------------------------------------------------------------===//
// Sums of outer products
//===----------------------------------------------------------------------===//

/// out[i * columns + j] = out[i * columns + j] (0 if `first`) + sum over entries t of left[t][i] *
/// right[t][j], one fma an entry, ascending. Rows of both sides are `stride` numbers apart, a
/// multiple of 64 that holds rows and columns; what lies past those is finite. `symmetric`: left is
/// right, rows are columns, and only j >= i is promised.
void kvpc_prim_outer(const float *left, const float *right, int64_t stride, int64_t entries,
                     int64_t rows, int64_t columns, int64_t symmetric, int64_t first, float *out);

/// The half of a square matrix below its diagonal becomes the mirror of the other.
void kvpc_prim_mirror(float *matrix, int64_t rows);

//===----------------------------------------------------------------------===//
// Softmax over tokens, rows on lanes: x[t * row_stride + r]
//===----------------------------------------------------------------------===//
// Masked entries are x = -inf. A row's statistics are its maximum m, NaN left out, and z = sum of
// exp(x - m); of a row that has seen only -inf they are m = -inf, z = 0. A NaN makes z NaN.

/// m = -inf, z = 0.
void kvpc_prim_softmax_begin(float *m, float *z, int64_t rows);

/// Adds a tile to the statistics: M = max(m, the tile's x, tokens ascending); z = z * exp(m - M),
/// then z = z + exp(x - M) over ascending tokens; m = M. A masked token changes no bit of z.
void kvpc_prim_softmax_tile(const float *x, int64_t tokens, int64_t row_stride, int64_t rows,
                            float *m, float *z);

/// The same, and x becomes exp(x - M), -0 where masked, reference[r] becomes M. For a second sweep
/// without exps.
void kvpc_prim_softmax_tile_store(float *x, int64_t tokens, int64_t row_stride, int64_t rows,
                                  float *m, float *z, float *reference);

/// (m, z) = (m, z) combined with (m2, z2): M = max(m, m2), z = z * exp(m - M) + z2 * exp(m2 - M).
void kvpc_prim_softmax_merge(float *m, float *z, const float *m2, const float *z2, int64_t rows);

/// x becomes exp(x - m) * (1 / z); 0 where x is -inf or z is 0.
void kvpc_prim_softmax_weights(float *x, int64_t tokens, int64_t row_stride, int64_t rows,
                               const float *m, const float *z);

/// The exponents that softmax_tile_store left in `x`, of logits that stand there again, from the
/// reference that it gave.
void kvpc_prim_softmax_exponents(float *x, int64_t tokens, int64_t row_stride, int64_t rows,
                                 const float *reference);

/// Factors of a stored tile: w = exp(reference - m) * (1 / z), 0 where reference is -inf or z is 0.
void kvpc_prim_softmax_factors(const float *reference, const float *m, const float *z, int64_t rows,
                               float *w);

//===----------------------------------------------------------------------===//
// Orders of a whole row
//===----------------------------------------------------------------------===//

int64_t kvpc_prim_order_scratch(int64_t n);

/// rank[i] = how many entries come before entry i: 0 for the highest. The order is that of
/// kvpc_prim_select: protected first, scores descending, NaN last; of equals the earlier first, of
/// equal protected ones the newest. So rank < k is the selection of k, whatever k. Entries outside
/// `where` come after all others, in ascending order of i.
void kvpc_prim_rank(const float *x, const uint8_t *protect, const uint8_t *where, int64_t n,
                    int64_t *rank, void *scratch);

/// The values inside `where` in descending order, NaN last, equals (-0 and +0) in their order; the
/// rest of the n places holds `fill`. `out` may be x.
void kvpc_prim_sort(const float *x, const uint8_t *where, int64_t n, float fill, float *out,
                    void *scratch);

/// out[i] = x[0] + ... + x[i], ascending in double, each rounded to f32. Entries outside `where`
/// add nothing and get 0. `out` may be x.
void kvpc_prim_cumsum(const float *x, const uint8_t *where, int64_t n, float *out);

/// Index of the largest, of equals the first; NaN is left out. 0 if nothing is left.
int64_t kvpc_prim_argmax(const float *x, const uint8_t *where, int64_t n);

//===----------------------------------------------------------------------===//
// Elementary functions: at most 2.1 ulp (gelu: of its larger factor), exact at 0, inf and NaN
//===----------------------------------------------------------------------===//
// exp of results below the smallest normal number is 0. gelu is x / 2 * (1 + erf(x / sqrt 2)).
// The scalar functions have no branches and may be vectorised by LLVM; they give the same bits as
// the vector forms, whose argument is one register: 8 lanes at level 0, else 16.

float kvpc_prim_exp(float x);
float kvpc_prim_exp2(float x);
float kvpc_prim_log(float x);
float kvpc_prim_tanh(float x);
float kvpc_prim_sigmoid(float x);
float kvpc_prim_erf(float x);
float kvpc_prim_gelu(float x);
float kvpc_prim_pow(float x, float y);
float kvpc_prim_mod(float x, float y);

// Vector forms, of the type Lanes of Vector.h (not declared here, C has no such type):
//   Lanes kvpc_prim_exp_v(Lanes), exp2_v, log_v, tanh_v, sigmoid_v, erf_v, gelu_v, pow_v(Lanes,
//   Lanes), mod_v(Lanes, Lanes)
// In LLVM IR: <8 x float> or <16 x float> by value.

//===----------------------------------------------------------------------===//
// Rotary tables
//===----------------------------------------------------------------------===//

/// What the model's rotary embedding multiplies a channel (kind 0) and its partner (kind 1, with
/// its sign) by at a position: cos or sin of position * frequency, angle and wave in double, times
/// scaling, rounded once. kind + 2: of the turn that undoes it, -position and 1 / scaling. width /
/// 2 frequencies; pairs are channels i and i + width / 2, or neighbours. Channels from width on
/// have 1 and 0. Within 1e-15 of the product's cosine before rounding, for angles below 2^50.
float kvpc_prim_rotary(int64_t kind, int64_t position, int64_t channel, const double *frequencies,
                       int64_t width, int64_t interleaved, double scaling);

// Vector form: Lanes kvpc_prim_rotary_v, of the channels from `channel` on; the same bits.

/// Adds the same, before it is rounded, to sums[i] for the `count` channels from `channel` on.
void kvpc_prim_rotary_add(int64_t kind, int64_t position, int64_t channel,
                          const double *frequencies, int64_t width, int64_t interleaved,
                          double scaling, double *sums, int64_t count);

//===----------------------------------------------------------------------===//
// Random numbers: Random.h fixes counter, key and conversion
//===----------------------------------------------------------------------===//
// `extra` is the row-major linear index over the axes that are not layer, head or token;
// coordinates that the value does not have are 0.

/// In [0, 1), a multiple of 2^-24.
float kvpc_prim_uniform(int64_t seed, int64_t layer, int64_t head, int64_t position, int64_t extra);

/// Normal, mean 0, variance 1.
float kvpc_prim_gaussian(int64_t seed, int64_t layer, int64_t head, int64_t position,
                         int64_t extra);

/// out[i] is the number at positions[i], or at first + i if `positions` is null.
void kvpc_prim_uniform_row(int64_t seed, int64_t layer, int64_t head, const int64_t *positions,
                           int64_t first, int64_t extra, int64_t n, float *out);
void kvpc_prim_gaussian_row(int64_t seed, int64_t layer, int64_t head, const int64_t *positions,
                            int64_t first, int64_t extra, int64_t n, float *out);

//===----------------------------------------------------------------------===//
// Trees over segments: partials[segment * width + i]
//===----------------------------------------------------------------------===//
// Neighbours are combined, lower segment first; of an odd number the last passes up unchanged. The
// result stands in segment 0; the others are used up. No segments: nothing is written. max and min:
// NaN if either is, the second of equals.

void kvpc_prim_tree_add(float *partials, int64_t segments, int64_t width);
void kvpc_prim_tree_max(float *partials, int64_t segments, int64_t width);
void kvpc_prim_tree_min(float *partials, int64_t segments, int64_t width);
void kvpc_prim_tree_softmax(float *m, float *z, int64_t segments, int64_t width);

//===----------------------------------------------------------------------===//
// Native build only
//===----------------------------------------------------------------------===//

/// Not 0 if this machine runs x86-64-v3, which the native build of all of the above needs.
int kvpc_primitives_supported(void);

#ifdef __cplusplus
}
#endif
#endif
