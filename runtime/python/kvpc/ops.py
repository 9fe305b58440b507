"""Sizes of what the operators return, for torch.compile and torch.export.

Where a count depends on data (a mask, a short last chunk, lengths of padded rows) or on a size that
is not fixed, it is a new unknown; else it is computed by the press itself.
"""

import functools
import json

import torch

from . import library


@functools.cache
def _info(handle):
    from .module import _info

    digest, rest = handle.split("/", 1)
    name = rest.split("?", 1)[0]
    header = json.loads(library.ops().header(digest))
    return _info(next(p for p in header["presses"] if p["name"] == name))


def _fixed(*tensors):
    shapes = [size for tensor in tensors if tensor is not None for size in tensor.shape]
    return all(type(size) is int for size in shapes)


def _shape(tensor):
    return [] if tensor is None else list(tensor.shape)


def _planned(press, keys, values, queries, unrotated, hidden, weight, rope, layer, layers):
    """What the press's plan says of fixed shapes, without padding."""
    inputs = map(_shape, (keys, values, queries, unrotated, hidden, weight))
    width = 0 if rope is None else 2 * rope.shape[0]
    return torch.ops.kvpc.sizes(press, keys.dtype, *inputs, width, layer, layers)


def _sizes(press, keys, values, queries, unrotated, hidden, weight, rope, layer, layers, lengths):
    """(entries, channels) of the output, unknowns among them."""
    info = _info(press)
    known = _fixed(keys, values, queries, unrotated, hidden, weight, rope)

    if known:
        sizes = _planned(
            press, keys, values, queries, unrotated, hidden, weight, rope, layer, layers
        )
    if known and lengths is None and not info.data_counts:
        return sizes[0], sizes[1]
    kept = torch.library.get_ctx().new_dynamic_size()
    if not info.drops_channels:
        return kept, keys.shape[3]
    if known:
        return kept, sizes[1]
    return kept, torch.library.get_ctx().new_dynamic_size()


def _indices(press, keys, kept, channels):
    info = _info(press)
    batch, heads = keys.shape[:2]
    tokens = keys.new_empty((batch, 1 if info.uniform else heads, kept), dtype=torch.int64)
    return (
        tokens.expand(batch, heads, kept),
        keys.new_empty((batch, heads, channels if info.drops_channels else 0), dtype=torch.int64),
        keys.new_empty((batch, heads) if info.ragged else (batch,), dtype=torch.int64),
    )


def _compress(
    keys, values, queries, unrotated, hidden, weight, rope, rope_scaling, rope_interleaved, scale,
    layer, layers, lengths, pad_right, original_positions, seen, weights, state, press,
):  # fmt: skip
    kept, channels = _sizes(
        press, keys, values, queries, unrotated, hidden, weight, rope, layer, layers, lengths
    )
    info, batch, heads = _info(press), *keys.shape[:2]
    # Nothing stands for a tensor that is left whole: the caller has it.
    whole = lengths is None and not info.drops_tokens
    return (
        keys.new_empty(
            (0,) if whole and not info.drops_channels else (batch, heads, kept, channels)
        ),
        values.new_empty((0,) if whole else (batch, heads, kept, values.shape[3])),
        *_indices(press, keys, kept, channels),
    )


def _compress_in_place(
    keys, values, queries, unrotated, hidden, weight, rope, rope_scaling, rope_interleaved, scale,
    layer, layers, lengths, pad_right, original_positions, seen, weights, state, press,
):  # fmt: skip
    kept, channels = _sizes(
        press, keys, values, queries, unrotated, hidden, weight, rope, layer, layers, lengths
    )
    return _indices(press, keys, kept, channels)


def _plan(
    keys, values, queries, unrotated, hidden, weight, rope, rope_scaling, rope_interleaved, scale,
    layer, layers, lengths, pad_right, original_positions, seen, weights, state, scores, press,
):  # fmt: skip
    if not _fixed(keys, values, queries, unrotated, hidden, weight, rope):
        raise NotImplementedError("what layers share has a known size for fixed shapes only")
    return _planned(press, keys, values, queries, unrotated, hidden, weight, rope, layer, layers)


def _scores(
    keys, values, queries, unrotated, hidden, weight, rope, rope_scaling, rope_interleaved, scale,
    layer, layers, lengths, pad_right, original_positions, seen, weights, press,
):  # fmt: skip
    context, info = torch.library.get_ctx(), _info(press)
    extents = {"head": keys.shape[1], "token": keys.shape[2], "channel": keys.shape[3]}
    shape = [keys.shape[0]]
    for axis in info.score_axes or ():
        shape.append(extents[axis] if axis in extents else context.new_dynamic_size())
    return keys.new_empty(shape, dtype=torch.float32), keys.new_empty(shape, dtype=torch.bool)


def _select(scores, protected, drop, keep, lengths, pad_right):
    tokens = scores.shape[-1]
    if lengths is None and type(tokens) is int:
        kept = keep if keep is not None else int(tokens * (1 - drop))
        kept = max(1, min(kept, tokens))
    else:
        kept = torch.library.get_ctx().new_dynamic_size()
    batch = scores.shape[:-1]
    return (
        scores.new_empty((*batch, kept), dtype=torch.int64),
        scores.new_empty(batch, dtype=torch.int64),
    )


def _attend(
    queries, prefix_keys, prefix_values, offsets, channels, rows, keys, values, mask, scale
):  # fmt: skip
    batch, heads, count, _ = queries.shape
    return queries.new_empty((batch, count, heads, values.shape[3]))


def register():
    """Called once, after the library is loaded."""
    for name, kernel in (
        ("plan", _plan),
        ("compress", _compress),
        ("compress_", _compress_in_place),
        ("scores", _scores),
        ("select", _select),
        ("attend", _attend),
    ):
        torch.library.register_fake(f"kvpc::{name}", kernel)
