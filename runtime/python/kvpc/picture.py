"""A picture of what a press kept: `kvpc.plot(...)`, an SVG written here.

One band a layer, one line a head, tokens from left to right: the darker, the more of these tokens
are kept. At the right what each layer takes in memory, of what it took before.
"""

import operator
from dataclasses import dataclass
from html import escape

import torch

from .errors import ArgumentError, Error

COLUMNS = 400  # of the picture; more tokens share one
SHADES = ("#eef2f7", "#cfe0f2", "#a9c9e8", "#7fb0dc", "#5595cc", "#3079b8", "#155d9c", "#08427a")
WIDTH, LEFT, TOP, BARS = 760, 64, 54, 150  # in pixels
INK, FAINT, FILL = "#1f2933", "#7b8794", "#3079b8"
FONT = "font-family='system-ui, sans-serif' font-size='11'"


@dataclass
class Kept:
    """One layer of one batch row. whole: bytes before, None where that is not known."""

    number: int
    heads: list  # of int tensors, positions
    total: int  # tokens there were
    bytes: int
    whole: int | None


def plot(result, path=None, *, row=0, tokens=None, title=None):
    """An SVG of which tokens each layer and head kept, and of the memory of each layer.

    result  an Output of a press, several of them (one a layer), or the cache of a model
    path    file to write as well
    row     of the batch
    tokens  how many there were, at least those up to the last one kept; None: as many as a cache
            says, or as the last one kept needs

    Returns the text of the SVG.
    """
    if title is not None and not isinstance(title, str):
        raise ArgumentError(f"`title` is {title!r}; need text, or None", "plot-title")
    layers = _layers(result, row, tokens)
    if not layers:
        raise ArgumentError("nothing here was compressed; need a press's output", "plot-empty")
    text = _draw(layers, title)
    if path is not None:
        try:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        except (OSError, TypeError, ValueError) as error:
            raise Error(f"cannot write `{path}`: {error}", "plot-file") from None
    return text


def _layers(result, row, tokens):
    if hasattr(result, "layers"):
        sealed = [(i, x) for i, x in enumerate(result.layers) if getattr(x, "prefix", None)]
        row = _number("row", row, 0, *(len(x.prefix.rows) - 1 for _, x in sealed))
        heads = [[x.prefix.head(row, i)[2] for i in range(x.prefix.heads)] for _, x in sealed]
        tokens = None if tokens is None else _total(tokens, heads)
        return [_of_cache(i, layer, row, tokens) for i, layer in sealed]
    outputs = _outputs(result)
    row = _number("row", row, 0, *(len(out.tokens) - 1 for out in outputs))
    heads = [[t[t >= 0].cpu() for t in out.tokens[row]] for out in outputs]
    total = _total(tokens, heads)
    return [_of_output(*x, total) for x in zip(range(len(outputs)), outputs, heads)]


def _outputs(result):
    try:
        outputs = [result] if hasattr(result, "tokens") else list(result)
    except TypeError:
        outputs = [result]
    for out in outputs:
        if not all(hasattr(out, name) for name in ("keys", "values", "tokens", "channels")):
            raise ArgumentError(
                f"cannot draw a {type(out).__name__}; need what `press.compress` returned, several of "
                "these, or the cache of a model",
                "plot-input",
            )
    return outputs


def _total(tokens, heads):
    last = max((int(t[-1]) + 1 for layer in heads for t in layer if len(t)), default=1)
    return last if tokens is None else _number("tokens", tokens, last)


def _number(name, value, least, *most):
    """A whole number, from `least` to the least of `most`."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except (TypeError, RuntimeError):
        number = None
    if number is None or number < least or any(number > bound for bound in most):
        need = f"from {least} to {min(most)}" if most else f"of at least {least}"
        raise ArgumentError(f"`{name}` is {value!r}; need a whole number {need}", f"plot-{name}")
    return number


def _of_cache(number, layer, row, tokens):
    prefix = layer.prefix
    parts = [prefix.head(row, head) for head in range(prefix.heads)]
    held = sum(x.numel() * x.element_size() for keys, values, _ in parts for x in (keys, values))
    entry = (layer.keys.shape[3] + layer.values.shape[3]) * layer.keys.element_size()
    heads = [positions.cpu() for *_, positions in parts]
    total = tokens or layer.sealed
    return Kept(number, heads, total, held, total * prefix.heads * entry)


def _of_output(number, out, heads, total):
    size = out.keys.element_size()
    held = sum(map(len, heads)) * (out.keys.shape[3] + out.values.shape[3]) * size
    whole = None
    if out.channels is None:
        whole = total * len(heads) * (out.keys.shape[3] + out.values.shape[3]) * size
    return Kept(number, heads, total, held, whole)


def _shares(positions, total, columns):
    """How much of each column's tokens is kept, in 0..1."""
    edges = [column * total // columns for column in range(columns + 1)]
    counts = torch.zeros(total + 1, dtype=torch.float32, device="cpu")
    counts[1:][positions.long()] = 1
    edges = torch.tensor(edges, device="cpu")
    return (counts.cumsum(0)[edges].diff() / edges.diff()).tolist()


def _runs(shades):
    """(begin, end, shade) of equal neighbours."""
    begin = 0
    for i in range(1, len(shades) + 1):
        if i == len(shades) or shades[i] != shades[begin]:
            yield begin, i, shades[begin]
            begin = i


def _draw(layers, title):
    rows = sum(len(layer.heads) for layer in layers)
    line = max(2, min(12, 560 // rows))
    gap = 3 if line > 3 else 2
    map_width = WIDTH - LEFT - BARS - 40
    longest = max(layer.total for layer in layers)
    most = max(max(layer.bytes, layer.whole or 0) for layer in layers) or 1
    out, y, labelled = [], TOP, -100
    bars = LEFT + map_width + 24
    for layer in layers:
        height = line * len(layer.heads)
        columns = min(COLUMNS, layer.total)
        step = map_width * layer.total / longest / columns
        out.append(f"<g><title>{escape(_says(layer))}</title>")
        out.append(_rect(LEFT, y, columns * step, height, SHADES[0]))
        outlines = {}
        for head, positions in enumerate(layer.heads):
            # any token at all shows: only nothing is blank
            shares = _shares(positions, layer.total, columns)
            shades = [0 if s == 0 else max(1, round(s * (len(SHADES) - 1))) for s in shares]
            for begin, end, shade in _runs(shades):
                width = f"{(end - begin) * step:.2f}"
                box = f"M{LEFT + begin * step:.2f} {y + head * line}h{width}v{line}h-{width}z"
                outlines.setdefault(shade, []).append(box)
        outlines.pop(0, None)
        for shade, boxes in sorted(outlines.items()):
            out.append(f"<path fill='{SHADES[shade]}' d='{''.join(boxes)}'/>")
        bar = (BARS - 10) / most
        if layer.whole:
            out.append(_rect(bars, y, layer.whole * bar, height, SHADES[0]))
        out.append(_rect(bars, y, layer.bytes * bar, height, FILL) + "</g>")
        middle = y + height / 2 + 4
        if middle - labelled >= 13:
            out.append(_text(LEFT - 8, middle, str(layer.number), "end", FAINT))
            labelled = middle
        y += height + gap
    held = sum(layer.bytes for layer in layers)
    whole = [layer.whole for layer in layers]
    memory = _size(held) + ("" if None in whole else f" of {_size(sum(whole))}")
    out += [
        _text(LEFT, 20, title or "tokens kept, by layer and head", "start", INK, "600"),
        _text(LEFT, TOP - 10, "token 0", "start", FAINT),
        _text(LEFT + map_width, TOP - 10, f"{longest:,}", "end", FAINT),
        _text(LEFT - 8, TOP - 10, "layer", "end", FAINT),
        _text(bars, TOP - 10, f"memory: {memory}", "start", FAINT),
    ]
    y += 12
    out.append(_text(LEFT, y + 9, "kept: none", "start", FAINT))
    for i, shade in enumerate(SHADES):
        out.append(_rect(LEFT + 62 + 14 * i, y, 14, 10, shade))
    out.append(_text(LEFT + 68 + 14 * len(SHADES), y + 9, "all", "start", FAINT))
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {y + 24}' "
        f"width='{WIDTH}' height='{y + 24}' role='img'>\n"
        f"<rect width='100%' height='100%' fill='white'/>\n" + "\n".join(out) + "\n</svg>\n"
    )


def _says(layer):
    counts = [len(positions) for positions in layer.heads]
    low, high = min(counts), max(counts)
    kept = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"layer {layer.number}: {kept} of {layer.total:,} tokens a head, {_size(layer.bytes)}"


def _rect(x, y, width, height, fill):
    return f"<rect x='{x:.1f}' y='{y}' width='{width:.2f}' height='{height}' fill='{fill}'/>"


def _text(x, y, text, anchor, fill, weight="400"):
    return (
        f"<text x='{x}' y='{y}' text-anchor='{anchor}' fill='{fill}' font-weight='{weight}' "
        f"{FONT}>{escape(text)}</text>"
    )


def _size(size):
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
