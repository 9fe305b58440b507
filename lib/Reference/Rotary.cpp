//===- Rotary.cpp - turns of channels by the model's rotary embedding -------------------------===//
#include "lib/Reference/Interpreter.h"

#include "llvm/ADT/STLExtras.h"

#include <cmath>

using namespace kvpc;
using namespace kvpc::reference;

int64_t Rope::partner(int64_t channel) const {
  int64_t half = width() / 2;
  if (channel >= width())
    return channel;
  if (interleaved)
    return channel ^ 1;
  return channel < half ? channel + half : channel - half;
}

double Rope::wave(kvp::Wave wave, int64_t channel, int64_t position, bool back) const {
  int64_t half = width() / 2;
  if (channel >= width())
    return wave == kvp::Wave::Cos ? 1 : 0;
  bool first = interleaved ? channel % 2 == 0 : channel < half;
  int64_t pair = interleaved ? channel / 2 : channel % half;
  double angle = static_cast<double>(back ? -position : position) * frequencies[pair];
  double scale = back ? 1 / scaling : scaling;
  if (wave == kvp::Wave::Cos)
    return std::cos(angle) * scale;
  return (first ? -std::sin(angle) : std::sin(angle)) * scale;
}

/// Offset from each channel to its partner in the tensor's memory.
static std::vector<int64_t> steps(const Tensor &input, llvm::StringRef axis, const Rope &rope) {
  Axes inner;
  for (auto it = llvm::find_if(input.axes, [&](const Axis &a) { return a.name == axis; }) + 1;
       it != input.axes.end(); ++it)
    inner.push_back(*it);
  std::vector<int64_t> out(input.extent(axis));
  for (auto [channel, step] : llvm::enumerate(out))
    step = (rope.partner(channel) - static_cast<int64_t>(channel)) * countOf(inner);
  return out;
}

/// The channel of every entry of a tensor with `axes`.
static std::vector<int64_t> channelOf(const Axes &axes, const Axis &channel) {
  return offsets(axes, Tensor({channel}, Element::Bool));
}

/// For every row of positions, averaged, and every channel.
static std::vector<double> tableOf(kvp::Wave wave, const Tensor &by, const Rows &rows,
                                   int64_t channels, bool back, const Rope &rope) {
  std::vector<double> table;
  for (int64_t row = 0; row < rows.count(); ++row)
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0;
      for (int64_t i = 0; i < rows.length(); ++i)
        sum += rope.wave(wave, c, by.ints[rows.at(row, i)], back);
      table.push_back(sum / static_cast<double>(rows.length()));
    }
  return table;
}

Tensor reference::rotate(const Tensor &input, const Tensor &by,
                         llvm::ArrayRef<llvm::StringRef> mean, const Rope &rope) {
  const Axis channel = *input.find("channel");
  Rows rows(by, mean);
  std::vector<double> tables[] = {tableOf(kvp::Wave::Cos, by, rows, channel.extent, false, rope),
                                  tableOf(kvp::Wave::Sin, by, rows, channel.extent, false, rope)};
  Tensor out(unite(input.axes, rows.kept), Element::Float);
  out.present = both(input.present, mean.empty() ? by.present : nullptr);
  std::vector<int64_t> step = steps(input, "channel", rope);
  std::vector<int64_t> from = offsets(out.axes, input), channels = channelOf(out.axes, channel),
                       turn = offsets(out.axes, Tensor(rows.kept, Element::Bool));
  for (int64_t i = 0; i < out.size(); ++i) {
    int64_t c = channels[i], at = turn[i] * channel.extent + c;
    double x = input.floats[from[i]] * tables[0][at];
    if (step[c] != 0)
      x += input.floats[from[i] + step[c]] * tables[1][at];
    out.floats[i] = static_cast<float>(x);
  }
  return out;
}

Tensor reference::rotary(kvp::Wave wave, const Tensor &by, llvm::ArrayRef<llvm::StringRef> mean,
                         const Axis &channel, bool back, const Rope &rope) {
  Rows rows(by, mean);
  Axes axes = rows.kept;
  axes.push_back(channel);
  Tensor out(axes, Element::Float);
  out.present = mean.empty() ? by.present : nullptr;
  std::vector<double> table = tableOf(wave, by, rows, channel.extent, back, rope);
  for (int64_t i = 0; i < out.size(); ++i)
    out.set(i, table[i]);
  return out;
}

Tensor reference::pair(const Tensor &input, llvm::StringRef axis, const Rope &rope) {
  Tensor out = input;
  std::vector<int64_t> step = steps(input, axis, rope);
  std::vector<int64_t> channels = channelOf(input.axes, *input.find(axis));
  for (int64_t i = 0; i < out.size(); ++i)
    out.floats[i] = input.floats[i + step[channels[i]]];
  return out;
}

Tensor reference::unrotate(const Tensor &keys, const Tensor &positions, const Rope &rope) {
  Tensor out = keys;
  int64_t width = keys.extent("channel");
  for (int64_t entry = 0; entry < positions.size(); ++entry)
    for (int64_t c = 0; c < rope.width(); ++c) {
      int64_t position = positions.ints[entry];
      const float *key = &keys.floats[entry * width];
      out.floats[entry * width + c] =
          static_cast<float>(key[c] * rope.wave(kvp::Wave::Cos, c, position, /*back=*/true) +
                             key[rope.partner(c)] * rope.wave(kvp::Wave::Sin, c, position, true));
    }
  return out;
}
