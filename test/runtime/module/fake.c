/* Presses written by hand in C, to test the runtime without the compiler. Each is as simple as
 * shows one property of the interface; make_module.py lists them in the module's header.
 * Nothing of the C library is there. */
#include "kvpc/abi.h"

#define EXPORT __attribute__((visibility("default")))

static float load(const kvpc_tensor *tensor, int64_t index, int64_t dtype) {
  if (dtype == KVPC_F32)
    return ((const float *)tensor->data)[index];
  union {
    uint32_t bits;
    float value;
  } x = {(uint32_t)((const uint16_t *)tensor->data)[index] << 16};
  return x.value;
}

static void copy(const kvpc_tensor *to, int64_t toIndex, const kvpc_tensor *from, int64_t fromIndex,
                 int64_t dtype) {
  if (dtype == KVPC_F32)
    ((float *)to->data)[toIndex] = from ? ((const float *)from->data)[fromIndex] : 0;
  else
    ((uint16_t *)to->data)[toIndex] = from ? ((const uint16_t *)from->data)[fromIndex] : 0;
}

static int32_t fail(kvpc_call *call, int32_t status, const char *text) {
  if (call->error) {
    int64_t n = 0;
    for (; text[n] && n + 1 < call->error_size; ++n)
      call->error[n] = text[n];
    call->error[n] = 0;
  }
  return status;
}

static int64_t keptOf(const kvpc_scalar *budget, int64_t n) {
  int64_t count = budget->i >= 0 ? budget->i : (int64_t)((double)n * (1 - budget->f));
  if (count < 1)
    count = 1;
  return count > n ? n : count;
}

/* What is kept of a row: entry `index` of the row's real tokens, as a rule. */
struct choice {
  kvpc_call *call;
  int64_t dtype;
  int64_t (*pick)(struct choice *, int64_t row, int64_t head, int64_t *ids); /* null ids: count */
  int64_t channelStep;
};

static void keepOne(void *context, int64_t begin, int64_t end) {
  struct choice *choice = context;
  kvpc_call *call = choice->call;
  for (int64_t task = begin; task < end; ++task) {
    int64_t row = task / call->heads, head = task % call->heads;
    int64_t *ids = (int64_t *)call->workspace + task * call->tokens;
    int64_t count = choice->pick(choice, row, head, ids);
    const kvpc_tensor *in[] = {&call->keys, &call->values};
    const kvpc_tensor *out[] = {&call->out_keys, &call->out_values};
    for (int which = 0; which < 2; ++which) {
      int64_t channels = which ? call->value_channels : call->kept_channels;
      int64_t step = which ? 1 : choice->channelStep;
      int64_t from = row * in[which]->stride[0] + head * in[which]->stride[1];
      int64_t to = row * out[which]->stride[0] + head * out[which]->stride[1];
      for (int64_t n = 0; n < call->kept; ++n)
        for (int64_t c = 0; c < channels; ++c)
          copy(out[which], to + n * out[which]->stride[2] + c, n < count ? in[which] : 0,
               n < count ? from + (call->start[row] + ids[n]) * in[which]->stride[2] + c * step : 0,
               choice->dtype);
    }
    int64_t *tokens = call->out_tokens.data;
    for (int64_t n = 0; n < call->kept; ++n)
      tokens[row * call->out_tokens.stride[0] + head * call->out_tokens.stride[1] +
             n * call->out_tokens.stride[2]] = n < count ? call->start[row] + ids[n] : -1;
    int64_t *lengths = call->out_lengths.data;
    lengths[row * call->out_lengths.stride[0] + head * call->out_lengths.stride[1]] = count;
    int64_t *channels = call->out_channels.data;
    for (int64_t c = 0; channels && c < call->kept_channels; ++c)
      channels[row * call->out_channels.stride[0] + head * call->out_channels.stride[1] +
               c * call->out_channels.stride[2]] = c * choice->channelStep;
  }
}

static void keepAll(struct choice *choice) {
  kvpc_call *call = choice->call;
  call->parallel_for(call->parallel_context, keepOne, choice, call->batch * call->heads);
}

static void plan(kvpc_call *call, const kvpc_scalar *budget) {
  call->kept = 0;
  for (int64_t row = 0; row < call->batch; ++row) {
    int64_t n = call->length[row];
    int64_t count = !n ? 0 : budget ? keptOf(budget, n) : n;
    if (count > call->kept)
      call->kept = count;
  }
  call->kept_channels = call->channels;
  call->workspace_bytes = call->batch * call->heads * call->tokens * 8;
  call->state_bytes = 0;
}

/* Scores over [batch, head, token]; NaN and 0 elsewhere were written by the host. */
static void score(kvpc_call *call, int64_t dtype,
                  float (*of)(kvpc_call *, int64_t dtype, int64_t row, int64_t head, int64_t n)) {
  for (int64_t row = 0; row < call->batch; ++row)
    for (int64_t head = 0; head < call->heads; ++head)
      for (int64_t n = 0; n < call->length[row]; ++n) {
        const int64_t *stride = call->out_scores.stride;
        int64_t at = row * stride[0] + head * stride[1] + (call->start[row] + n) * stride[2];
        ((float *)call->out_scores.data)[at] = of(call, dtype, row, head, n);
        stride = call->out_protected.stride;
        at = row * stride[0] + head * stride[1] + (call->start[row] + n) * stride[2];
        ((uint8_t *)call->out_protected.data)[at] = n == call->length[row] - 1;
      }
}

/* last: the newest entries. One choice for all heads. */
static int64_t pickLast(struct choice *choice, int64_t row, int64_t head, int64_t *ids) {
  kvpc_call *call = choice->call;
  int64_t n = call->length[row], count = n ? keptOf(call->parameters, n) : 0;
  for (int64_t i = 0; i < count; ++i)
    ids[i] = n - count + i;
  return count;
}

static float position(kvpc_call *call, int64_t dtype, int64_t row, int64_t head, int64_t n) {
  return (float)n;
}

static int32_t planLast(kvpc_call *call) {
  plan(call, call->parameters);
  return KVPC_OK;
}

static int32_t runLast(kvpc_call *call, int64_t dtype) {
  struct choice choice = {call, dtype, pickLast, 1};
  if (call->out_scores.data)
    score(call, dtype, position);
  else
    keepAll(&choice);
  return KVPC_OK;
}

/* window: needs 4 queries; parameters budget, gain, share, seed. */
static float gained(kvpc_call *call, int64_t dtype, int64_t row, int64_t head, int64_t n) {
  const int64_t *q = call->queries_rotated.stride, *k = call->keys.stride;
  float sum = 0;
  int64_t taken = call->length[row] < 4 ? call->length[row] : 4;
  for (int64_t group = 0; group < call->groups; ++group)
    for (int64_t query = call->queries - taken; query < call->queries; ++query)
      sum += load(&call->queries_rotated, row * q[0] + head * q[1] + group * q[2] + query * q[3],
                  dtype);
  return (float)call->parameters[1].f * sum *
         load(&call->keys, row * k[0] + head * k[1] + (call->start[row] + n) * k[2], dtype);
}

static int32_t planWindow(kvpc_call *call) {
  if (call->parameters[1].f == 7)
    return fail(call, KVPC_ERROR_REQUIRE, "`gain` may not be 7");
  plan(call, call->parameters);
  return KVPC_OK;
}

static int32_t runWindow(kvpc_call *call, int64_t dtype) {
  struct choice choice = {call, dtype, pickLast, 1};
  if (call->out_scores.data)
    score(call, dtype, gained);
  else
    keepAll(&choice);
  return KVPC_OK;
}

/* positive: entries whose first channel is above 0, else the newest. Counts depend on data. */
static int64_t pickPositive(struct choice *choice, int64_t row, int64_t head, int64_t *ids) {
  kvpc_call *call = choice->call;
  const int64_t *k = call->keys.stride;
  int64_t count = 0;
  for (int64_t n = 0; n < call->length[row]; ++n)
    if (load(&call->keys, row * k[0] + head * k[1] + (call->start[row] + n) * k[2], choice->dtype) >
        0)
      ids[count++] = n;
  if (!count && call->length[row])
    ids[count++] = call->length[row] - 1;
  return count;
}

static int32_t planPositive(kvpc_call *call) {
  plan(call, 0);
  return KVPC_OK;
}

static int32_t runPositive(kvpc_call *call, int64_t dtype) {
  struct choice choice = {call, dtype, pickPositive, 1};
  keepAll(&choice);
  return KVPC_OK;
}

/* thin: all entries, the even channels of keys. */
static int64_t pickAll(struct choice *choice, int64_t row, int64_t head, int64_t *ids) {
  int64_t count = choice->call->length[row];
  for (int64_t i = 0; i < count; ++i)
    ids[i] = i;
  return count;
}

static int32_t planThin(kvpc_call *call) {
  plan(call, 0);
  call->kept_channels = (call->channels + 1) / 2;
  return KVPC_OK;
}

static int32_t runThin(kvpc_call *call, int64_t dtype) {
  struct choice choice = {call, dtype, pickAll, 2};
  if (call->out_scores.data)
    for (int64_t i = 0; i < call->batch * call->heads * call->channels; ++i)
      ((float *)call->out_scores.data)[i] = i % call->channels % 2 ? 0 : 1;
  else
    keepAll(&choice);
  return KVPC_OK;
}

/* shared: the first of two layers takes the oldest or the newest entries, by the sign of its last
 * query; the second does the same. */
static int64_t pickShared(struct choice *choice, int64_t row, int64_t head, int64_t *ids) {
  kvpc_call *call = choice->call;
  int64_t n = call->length[row], count = n ? keptOf(call->parameters, n) : 0;
  for (int64_t i = 0; i < count; ++i)
    ids[i] = *(int64_t *)call->state ? i : n - count + i;
  return count;
}

static int32_t planShared(kvpc_call *call) {
  plan(call, call->parameters);
  call->state_bytes = 8;
  return KVPC_OK;
}

static int32_t runShared(kvpc_call *call, int64_t dtype) {
  struct choice choice = {call, dtype, pickShared, 1};
  if (call->layer % 2 == 0)
    *(int64_t *)call->state =
        load(&call->queries_rotated, (call->queries - 1) * call->queries_rotated.stride[3], dtype) >
        0;
  keepAll(&choice);
  return KVPC_OK;
}

/* weighted: score dot(keys, filter); a share per layer. */
static float filtered(kvpc_call *call, int64_t dtype, int64_t row, int64_t head, int64_t n) {
  const int64_t *k = call->keys.stride;
  const float *filter = call->weights[0].data;
  float sum = 0;
  for (int64_t c = 0; c < call->channels; ++c)
    sum += filter[head * call->weights[0].stride[0] + c] *
           load(&call->keys, row * k[0] + head * k[1] + (call->start[row] + n) * k[2] + c, dtype);
  return sum;
}

static int64_t pickShare(struct choice *choice, int64_t row, int64_t head, int64_t *ids) {
  kvpc_call *call = choice->call;
  kvpc_scalar budget = {-1, call->parameters[0].f};
  int64_t n = call->length[row], count = n ? keptOf(&budget, n) : 0;
  for (int64_t i = 0; i < count; ++i)
    ids[i] = n - count + i;
  return count;
}

static int32_t planWeighted(kvpc_call *call) {
  kvpc_scalar budget = {-1, call->parameters[0].f};
  plan(call, &budget);
  return KVPC_OK;
}

static int32_t runWeighted(kvpc_call *call, int64_t dtype) {
  struct choice choice = {call, dtype, pickShare, 1};
  if (call->out_scores.data)
    score(call, dtype, filtered);
  else
    keepAll(&choice);
  return KVPC_OK;
}

/* everything: a score of all that a host can give. */
static float summed(kvpc_call *call, int64_t dtype, int64_t row, int64_t head, int64_t n) {
  const int64_t *hidden = call->hidden.stride, *q = call->queries_unrotated.stride;
  const int64_t *weight = call->output_weight.stride, *place = call->original_positions.stride;
  int64_t last = call->queries - 1;
  float sum = load(&call->hidden, row * hidden[0] + last * hidden[1], dtype);
  sum += load(&call->queries_unrotated,
              row * q[0] + head * q[1] + (call->groups - 1) * q[2] + last * q[3], dtype);
  sum += load(&call->output_weight,
              head * weight[0] + (call->groups - 1) * weight[1] +
                  (call->value_channels - 1) * weight[2] + (call->features - 1) * weight[3],
              dtype);
  sum += (float)(call->scale + call->rope_frequencies[call->rope_width / 2 - 1] +
                 call->rope_scaling + (double)call->seen[row]);
  int64_t original =
      call->original_positions.data
          ? ((int64_t *)call->original_positions
                 .data)[row * place[0] + head * place[1] + (call->start[row] + n) * place[2]]
          : n;
  return sum + (float)original;
}

static int32_t planEverything(kvpc_call *call) {
  plan(call, call->parameters);
  return KVPC_OK;
}

static int32_t runEverything(kvpc_call *call, int64_t dtype) {
  struct choice choice = {call, dtype, pickLast, 1};
  if (call->out_scores.data)
    score(call, dtype, summed);
  else
    keepAll(&choice);
  return KVPC_OK;
}

#define PRESS(name, Name)                                                                          \
  EXPORT int32_t plan_##name(kvpc_call *call) { return plan##Name(call); }                         \
  EXPORT int32_t run_##name##_f32(kvpc_call *call) { return run##Name(call, KVPC_F32); }           \
  EXPORT int32_t run_##name##_bf16(kvpc_call *call) { return run##Name(call, KVPC_BF16); }

PRESS(last, Last)
PRESS(window, Window)
PRESS(positive, Positive)
PRESS(thin, Thin)
PRESS(shared, Shared)
PRESS(weighted, Weighted)
PRESS(everything, Everything)
