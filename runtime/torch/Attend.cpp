//===- Attend.cpp - attention over a compressed prefix and a dense tail -----------------------===//
//
// Work is cut into items: of one head of one batch row, some query rows and some entries. Few query
// rows (a decoding step): a head's entries are cut into runs of equal length, whatever the number
// of threads, so that heads of unequal counts are shared out evenly and results do not depend on
// threads. Many query rows (a second prompt): the rows are cut, and all entries of the head pass by
// them. In the end the items' sums become weighted means.
//
//===------------------------------------------------------------------------------------------===//
#include "AttendKernel.h"
#include "Parallel.h"
#include "Registry.h"

#include "kvpc/torch.h"

#include <ATen/Functions.h>
#include <algorithm>
#include <cmath>
#include <limits>

using namespace kvpc;
using namespace kvpc::torch;

namespace {

/// Entries of an item, where the entries are cut. 256 KiB of keys and values at 64 channels in f32.
constexpr int64_t itemEntries = 512;
/// Below so many multiplications threads cost more than they bring.
constexpr int64_t serialWork = 1 << 18;

std::string shapeOf(const at::Tensor &tensor) {
  std::string out = "[";
  for (int64_t size : tensor.sizes())
    out += (out.size() > 1 ? ", " : "") + std::to_string(size);
  return out + "]";
}

[[noreturn]] void wrong(const char *name, const at::Tensor &have, const std::string &need) {
  raise({ErrorCode::Shape,
         std::string("`") + name + "` has shape " + shapeOf(have) + "; need " + need});
}

/// int64, contiguous and in bounds.
at::Tensor indicesOf(const char *name, const std::optional<at::Tensor> &tensor) {
  if (!tensor || !tensor->defined())
    return {};
  if (tensor->scalar_type() != at::kLong || !tensor->device().is_cpu())
    raise({ErrorCode::Dtype, std::string("`") + name + "` need to be `int64` on cpu"});
  return tensor->contiguous();
}

struct Item {
  int64_t batchRow, head;
  int64_t firstRow, rows;         // of the head's query rows
  int64_t prefixBegin, prefixEnd; // entries of the prefix
  int64_t tailBegin, tailEnd;
  int64_t sums; // where its sums are, in rows
};

class Attention {
public:
  Attention(const at::Tensor &queries, const Prefix &prefix, const at::Tensor &keys,
            const at::Tensor &values, const std::optional<at::Tensor> &mask, double scale);
  at::Tensor run();

private:
  void check(const std::optional<at::Tensor> &mask);
  void readQueries(double scale);
  void cut();
  void attend(const Item &item);
  void finish(int64_t batchRow, int64_t head);
  int64_t rowOf(int64_t batchRow) const {
    return rows.defined() ? rows.const_data_ptr<int64_t>()[batchRow]
                          : batchRow / (batch / prefixRows);
  }

  at::Tensor queries, keys, values, mask;
  Prefix prefix;
  at::Tensor offsets, channels, rows;
  int64_t batch, queryHeads, count, width, heads, tail, valueWidth, groupRows, prefixRows;
  int64_t prefixWidth;
  AttendElement element;
  // f32, scaled, rows padded with zeros: whole channels for the tail, kept ones for the prefix
  std::vector<float> wholeQueries, keptQueries;
  int64_t paddedRows;
  std::vector<Item> items;
  std::vector<int64_t> firstItem; // of each batch row and head
  std::vector<float> largest, total;
  at::Tensor mixed;
  AttendFunction function;
  at::Tensor out;
};

Attention::Attention(const at::Tensor &queries, const Prefix &prefix, const at::Tensor &keys,
                     const at::Tensor &values, const std::optional<at::Tensor> &mask, double scale)
    : queries(queries), keys(keys), values(values), prefix(prefix) {
  check(mask);
  readQueries(scale);
  cut();
}

void Attention::check(const std::optional<at::Tensor> &given) {
  if (queries.dim() != 4)
    wrong("queries", queries, "[batch, query head, query, channel]");
  batch = queries.size(0), queryHeads = queries.size(1), count = queries.size(2);
  width = queries.size(3);
  std::string needed =
      "[" + std::to_string(batch) + ", head, token, " + std::to_string(width) + "]";
  if (keys.dim() != 4 || keys.size(0) != batch || keys.size(3) != width)
    wrong("keys", keys, needed);
  heads = keys.size(1), tail = keys.size(2);
  if (values.dim() != 4 || values.size(0) != batch || values.size(1) != heads ||
      values.size(2) != tail)
    wrong("values", values, "those of `keys`, any channels");
  valueWidth = values.size(3);
  if (heads == 0 || queryHeads % heads)
    wrong("queries", queries, "a multiple of " + std::to_string(heads) + " heads");
  groupRows = queryHeads / heads * count;

  channels = indicesOf("channels", prefix.channels);
  rows = indicesOf("rows", prefix.rows);
  offsets = indicesOf("offsets", prefix.offsets);
  bool flat = offsets.defined();
  if (prefix.keys.dim() != (flat ? 2 : 4) || prefix.values.dim() != prefix.keys.dim())
    wrong("prefix_keys", prefix.keys,
          flat ? "[entry, channel], as there are offsets" : "[row, head, entry, channel]");
  prefixWidth = prefix.keys.size(-1);
  if (flat) {
    if (offsets.dim() != 1 || offsets.numel() % heads != 1 % heads || offsets.numel() < 1)
      wrong("offsets", offsets, "one for each row and head, and the end");
    prefixRows = (offsets.numel() - 1) / heads;
    const int64_t *at = offsets.const_data_ptr<int64_t>();
    if (at[0] != 0 || at[prefixRows * heads] != prefix.keys.size(0) ||
        !std::is_sorted(at, at + prefixRows * heads + 1))
      raise({ErrorCode::Shape, "`offsets` do not ascend from 0 to the number of entries"});
  } else {
    prefixRows = prefix.keys.size(0);
    if (prefix.keys.size(1) != heads)
      wrong("prefix_keys", prefix.keys, std::to_string(heads) + " heads");
  }
  if (prefix.values.sizes().slice(0, prefix.values.dim() - 1) !=
          prefix.keys.sizes().slice(0, prefix.keys.dim() - 1) ||
      prefix.values.size(-1) != valueWidth)
    wrong("prefix_values", prefix.values,
          "the entries of `prefix_keys`, " + std::to_string(valueWidth) + " channels");
  if (channels.defined() ? channels.dim() != 3 || channels.size(0) != prefixRows ||
                               channels.size(1) != heads || channels.size(2) != prefixWidth
                         : prefixWidth != width)
    raise({ErrorCode::Shape, "`channels` do not say which " + std::to_string(prefixWidth) + " of " +
                                 std::to_string(width) + " channels the prefix has"});
  if (channels.defined()) {
    const int64_t *at = channels.const_data_ptr<int64_t>();
    if (std::any_of(at, at + channels.numel(), [&](int64_t c) { return c < 0 || c >= width; }))
      raise({ErrorCode::Shape, "`channels` lie outside of 0.." + std::to_string(width - 1)});
  }
  if (rows.defined()) {
    const int64_t *at = rows.const_data_ptr<int64_t>();
    if (rows.dim() != 1 || rows.numel() != batch ||
        std::any_of(at, at + batch, [&](int64_t row) { return row < 0 || row >= prefixRows; }))
      wrong("rows", rows, "a row of the prefix for each of the " + std::to_string(batch));
  } else if (batch && (!prefixRows || batch % prefixRows)) {
    wrong("prefix_keys", prefix.keys, "a number of rows that divides the batch");
  }

  at::ScalarType type = queries.scalar_type();
  if (type != at::kFloat && type != at::kBFloat16 && type != at::kHalf)
    raise({ErrorCode::Dtype, "`queries` are neither f32, bf16 nor f16"});
  element = type == at::kFloat      ? AttendElement::F32
            : type == at::kBFloat16 ? AttendElement::BF16
                                    : AttendElement::F16;
  for (at::Tensor *tensor : {&queries, &keys, &values, &prefix.keys, &prefix.values}) {
    if (tensor->scalar_type() != type)
      raise({ErrorCode::Dtype, "queries, keys and values have different dtypes; need one"});
    if (!tensor->device().is_cpu())
      raise({ErrorCode::Device, "attention of a compressed cache runs on cpu; have a tensor on " +
                                    tensor->device().str()});
    if (tensor->stride(-1) != 1 && tensor->size(-1) > 1)
      *tensor = tensor->contiguous();
  }
  if (given && given->defined()) {
    mask = *given;
    if (mask.scalar_type() != at::kBool || !mask.device().is_cpu())
      raise({ErrorCode::Dtype, "`mask` needs to be of bools on cpu"});
    if (mask.dim() != 4 || (mask.size(0) != batch && mask.size(0) != 1) || mask.size(1) != 1 ||
        mask.size(2) != count || mask.size(3) != tail)
      wrong("mask", mask, "[batch or 1, 1, query, token] of the tail");
  }
}

void Attention::readQueries(double scale) {
  paddedRows = (groupRows + attendRows - 1) / attendRows * attendRows;
  int64_t whole = (width + attendLanes - 1) / attendLanes * attendLanes;
  int64_t kept = (prefixWidth + attendLanes - 1) / attendLanes * attendLanes;
  wholeQueries.assign(size_t(batch * heads * paddedRows * whole), 0);
  if (channels.defined())
    keptQueries.assign(size_t(batch * heads * paddedRows * kept), 0);
  at::Tensor read = queries.to(at::kFloat);
  const float *data = read.const_data_ptr<float>();
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t r = 0; r < groupRows; ++r) {
        int64_t head = h * (queryHeads / heads) + r / count, at = (b * heads + h) * paddedRows + r;
        const float *from =
            data + b * read.stride(0) + head * read.stride(1) + r % count * read.stride(2);
        float *to = wholeQueries.data() + at * whole;
        for (int64_t c = 0; c < width; ++c)
          to[c] = from[c] * float(scale);
        if (!channels.defined())
          continue;
        const int64_t *index =
            channels.const_data_ptr<int64_t>() + (rowOf(b) * heads + h) * prefixWidth;
        for (int64_t c = 0; c < prefixWidth; ++c)
          keptQueries[size_t(at * kept + c)] = to[index[c]];
      }
}

void Attention::cut() {
  bool cutEntries = groupRows <= attendMaxRows;
  int64_t sums = 0;
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h) {
      int64_t entries = prefix.keys.dim() == 4 ? prefix.keys.size(2) : 0;
      if (offsets.defined()) {
        const int64_t *at = offsets.const_data_ptr<int64_t>() + rowOf(b) * heads + h;
        entries = at[1] - at[0];
      }
      firstItem.push_back(int64_t(items.size()));
      auto add = [&](int64_t row, int64_t begin, int64_t end, int64_t tailBegin, int64_t tailEnd) {
        int64_t taken = std::min(groupRows - row, attendMaxRows);
        items.push_back({b, h, row, taken, begin, end, tailBegin, tailEnd, sums});
        sums += taken;
      };
      if (!cutEntries) {
        for (int64_t row = 0; row < groupRows; row += attendMaxRows)
          add(row, 0, entries, 0, tail);
        continue;
      }
      // The tail goes with the prefix's last, short item as far as there is room.
      int64_t at = 0;
      for (; at + itemEntries <= entries; at += itemEntries)
        add(0, at, at + itemEntries, 0, 0);
      int64_t late = std::min(tail, itemEntries - (entries - at));
      add(0, at, entries, 0, late);
      for (; late < tail; late += itemEntries)
        add(0, 0, 0, late, std::min(tail, late + itemEntries));
    }
  firstItem.push_back(int64_t(items.size()));
  largest.assign(size_t(sums), -std::numeric_limits<float>::infinity());
  total.assign(size_t(sums), 0);
  mixed = at::empty({sums, valueWidth}, at::kFloat);
}

void Attention::attend(const Item &item) {
  AttendSums sums = {largest.data() + item.sums, total.data() + item.sums,
                     mixed.data_ptr<float>() + item.sums * valueWidth};
  std::fill_n(sums.mixed, item.rows * valueWidth, 0.0F);
  const int64_t size = element == AttendElement::F32 ? 4 : 2;
  auto at = [&](const at::Tensor &tensor, int64_t offset) -> const void * {
    return static_cast<const char *>(tensor.const_data_ptr()) + offset * size;
  };
  int64_t queryAt = (item.batchRow * heads + item.head) * paddedRows + item.firstRow;
  auto queriesAt = [&](const std::vector<float> &from, int64_t channelCount) {
    int64_t padded = (channelCount + attendLanes - 1) / attendLanes * attendLanes;
    return from.data() + queryAt * padded;
  };
  AttendRun run = {};
  run.rows = item.rows;
  run.firstRow = item.firstRow;
  run.queryCount = count;
  run.valueWidth = valueWidth;
  if (item.prefixEnd > item.prefixBegin) {
    const at::Tensor &k = prefix.keys, &v = prefix.values;
    int64_t row = rowOf(item.batchRow), keyAt, valueAt;
    if (offsets.defined()) {
      int64_t first = offsets.const_data_ptr<int64_t>()[row * heads + item.head];
      run.keyStride = k.stride(0), run.valueStride = v.stride(0);
      keyAt = first * run.keyStride, valueAt = first * run.valueStride;
    } else {
      run.keyStride = k.stride(2), run.valueStride = v.stride(2);
      keyAt = row * k.stride(0) + item.head * k.stride(1);
      valueAt = row * v.stride(0) + item.head * v.stride(1);
    }
    run.keys = at(k, keyAt + item.prefixBegin * run.keyStride);
    run.values = at(v, valueAt + item.prefixBegin * run.valueStride);
    run.count = item.prefixEnd - item.prefixBegin;
    run.keyWidth = prefixWidth;
    run.queries = queriesAt(channels.defined() ? keptQueries : wholeQueries, prefixWidth);
    function(run, sums);
  }
  if (item.tailEnd > item.tailBegin) {
    run.keyStride = keys.stride(2), run.valueStride = values.stride(2);
    run.keys = at(keys, item.batchRow * keys.stride(0) + item.head * keys.stride(1) +
                            item.tailBegin * run.keyStride);
    run.values = at(values, item.batchRow * values.stride(0) + item.head * values.stride(1) +
                                item.tailBegin * run.valueStride);
    run.count = item.tailEnd - item.tailBegin;
    run.keyWidth = width;
    run.queries = queriesAt(wholeQueries, width);
    if (mask.defined()) {
      run.visible = reinterpret_cast<const uint8_t *>(mask.const_data_ptr<bool>()) +
                    (mask.size(0) > 1 ? item.batchRow * mask.stride(0) : 0) +
                    item.tailBegin * mask.stride(3);
      run.queryStride = mask.stride(2);
      run.entryStride = mask.stride(3);
    } else if (count > 1) {
      run.isCausal = true;
      run.causal = tail - count - item.tailBegin;
    }
    function(run, sums);
  }
}

void Attention::finish(int64_t batchRow, int64_t head) {
  int64_t first = firstItem[size_t(batchRow * heads + head)];
  int64_t last = firstItem[size_t(batchRow * heads + head + 1)];
  std::vector<float> sum(static_cast<size_t>(valueWidth));
  for (int64_t i = first; i < last; ++i) {
    const Item &item = items[size_t(i)];
    // items of other entries of these rows follow; those of other rows are met in turn
    if (i > first && item.firstRow == items[size_t(first)].firstRow)
      break;
    for (int64_t r = 0; r < item.rows; ++r) {
      float most = -std::numeric_limits<float>::infinity(), all = 0;
      int64_t end = groupRows <= attendMaxRows ? last : i + 1;
      for (int64_t j = i; j < end; ++j)
        most = std::max(most, largest[size_t(items[size_t(j)].sums + r)]);
      std::fill(sum.begin(), sum.end(), 0.0F);
      for (int64_t j = i; j < end; ++j) {
        int64_t at = items[size_t(j)].sums + r;
        if (total[size_t(at)] == 0)
          continue;
        float weight = std::exp(largest[size_t(at)] - most);
        all += weight * total[size_t(at)];
        const float *from = mixed.const_data_ptr<float>() + at * valueWidth;
        for (int64_t c = 0; c < valueWidth; ++c)
          sum[size_t(c)] += weight * from[c];
      }
      int64_t row = item.firstRow + r;
      int64_t queryHead = head * (queryHeads / heads) + row / count;
      int64_t at = ((batchRow * count + row % count) * queryHeads + queryHead) * valueWidth;
      float scale = all > 0 ? 1 / all : 0; // a row of padding sees nothing
      auto write = [&](auto *to) {
        for (int64_t c = 0; c < valueWidth; ++c)
          to[at + c] = sum[size_t(c)] * scale;
      };
      if (element == AttendElement::F32)
        write(out.data_ptr<float>());
      else if (element == AttendElement::BF16)
        write(out.data_ptr<at::BFloat16>());
      else
        write(out.data_ptr<at::Half>());
    }
  }
}

at::Tensor Attention::run() {
  function = attendFunction(element);
  out = at::empty({batch, count, queryHeads, valueWidth}, queries.options().requires_grad(false));
  if (out.numel() == 0)
    return out;
  int64_t entries = 0;
  for (const Item &item : items)
    entries += (item.prefixEnd - item.prefixBegin + item.tailEnd - item.tailBegin) * item.rows;
  auto each = [&](kvpc_body body, int64_t n) {
    if (entries * (width + valueWidth) < serialWork)
      body(this, 0, n);
    else
      parallelFor(nullptr, body, this, n);
  };
  each(
      [](void *self, int64_t begin, int64_t end) {
        auto *attention = static_cast<Attention *>(self);
        for (int64_t i = begin; i < end; ++i)
          attention->attend(attention->items[size_t(i)]);
      },
      int64_t(items.size()));
  each(
      [](void *self, int64_t begin, int64_t end) {
        auto *attention = static_cast<Attention *>(self);
        for (int64_t i = begin; i < end; ++i)
          attention->finish(i / attention->heads, i % attention->heads);
      },
      batch * heads);
  return out;
}

} // namespace

Prefix Prefix::of(const Output &output) {
  Prefix out;
  out.channels = output.channels;
  at::Tensor present = output.tokens.ge(0);
  if (present.all().item<bool>()) {
    out.keys = output.keys;
    out.values = output.values;
    return out;
  }
  at::Tensor counts = present.sum(-1).flatten();
  out.offsets = at::cat({at::zeros({1}, at::kLong), counts.cumsum(0)});
  at::Tensor index = present.flatten().nonzero().select(1, 0);
  out.keys = output.keys.flatten(0, 2).index_select(0, index);
  out.values = output.values.flatten(0, 2).index_select(0, index);
  return out;
}

at::Tensor kvpc::torch::attend(const at::Tensor &queries, const Prefix &prefix,
                               const at::Tensor &keys, const at::Tensor &values,
                               const std::optional<at::Tensor> &mask, double scale) {
  return Attention(queries, prefix, keys, values, mask, scale).run();
}
