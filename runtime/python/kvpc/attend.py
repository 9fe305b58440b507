"""Attention over a compressed prefix and a dense tail.

On the CPU in f32, bf16 and f16 by the operator of runtime/torch, which reads each entry once and takes
no room for heads that keep fewer; anywhere else, and where gradients are wanted, in plain torch.
"""

import torch

from .cache import Prefix

# In plain torch logits are held for all queries of a call at once; more than this many are taken
# in turns.
LOGITS_AT_ONCE = 1 << 26


def attend(queries, prefix, keys, values, mask, scale):
    """One softmax over what the prompt left and all that came later.

    queries  [batch, query head, query, channel]
    prefix   needs no mask: padding is gone from it, and all of it lies in the past
    keys, values: the tail, [batch, head, token, channel], ending with the tokens of these queries
    mask     of the tail: bool [batch or 1, 1, query, token], True where visible; None for plain
             causal order
    Returns [batch, query, query head, channel].
    """
    if _native(queries, prefix, keys, values):
        kept = prefix.keys, prefix.values, prefix.offsets, prefix.channels, prefix.index
        return torch.ops.kvpc.attend(queries, *kept, keys, values, mask, scale)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        prefix.outside_inference()
    if prefix.offsets is None:
        return _dense(queries, prefix, keys, values, mask, scale)
    groups = queries.shape[1] // prefix.heads
    out = []
    for row in range(queries.shape[0]):
        at, seen = slice(row, row + 1), mask
        if mask is not None and mask.shape[0] > 1:
            seen = mask[at]
        for head in range(prefix.heads):
            own = slice(head, head + 1)
            part = _dense(
                queries[at, head * groups : (head + 1) * groups],
                _one_head(prefix, row, head),
                keys[at, own],
                values[at, own],
                seen,
                scale,
            )
            out.append(part)
    out = torch.cat(out, 2)  # [1, query, row * query head, channel]
    return out.unflatten(2, (queries.shape[0], -1))[0].transpose(0, 1).contiguous()


def _native(queries, *others):
    prefix, keys, values = others
    if queries.device.type != "cpu" or queries.dtype not in (
        torch.float32,
        torch.bfloat16,
        torch.float16,
    ):
        return False
    taken = (queries, keys, values, prefix.keys, prefix.values)
    if any(x.dtype != queries.dtype for x in taken):
        return False
    return not (torch.is_grad_enabled() and any(x.requires_grad for x in taken))


def _one_head(prefix, row, head):
    keys, values, tokens = (x[None, None] for x in prefix.head(row, head))
    channels = prefix.channels
    if channels is not None:
        channels = channels[prefix.rows[row], head][None, None]
    return Prefix.of_parts(keys, values, tokens, None, channels, 1, [0])


def _dense(queries, prefix, keys, values, mask, scale):
    batch, query_heads, count, width = queries.shape
    heads, tail = keys.shape[1:3]
    groups = query_heads // heads
    if mask is None and count > 1:
        mask = torch.ones(count, tail, dtype=torch.bool, device=queries.device)
        mask = mask.tril(tail - count)[None, None]
    if count > 1 and not torch.compiler.is_compiling():
        at_once = max(1, LOGITS_AT_ONCE // (batch * query_heads * (prefix.keys.shape[2] + tail)))
        if count > at_once:
            parts = zip(queries.split(at_once, 2), mask.split(at_once, 2))
            return torch.cat([_dense(q, prefix, keys, values, m, scale) for q, m in parts], 1)

    rows = queries.reshape(batch, heads, groups * count, width)
    late = rows @ keys.transpose(2, 3)
    if mask is not None:
        hidden = ~mask[:, :, None]
        late = late.view(batch, heads, groups, count, tail)
        late = late.masked_fill(hidden, torch.finfo(late.dtype).min).flatten(2, 3)
    logits = torch.cat([_logits(rows, prefix), late], -1)
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    weights = (logits * scale).softmax(-1).to(queries.dtype)
    kept = prefix.keys.shape[2]
    out = _mix(weights[..., :kept], prefix) + weights[..., kept:] @ values
    return out.reshape(batch, query_heads, count, -1).transpose(1, 2).contiguous()


def _logits(rows, prefix):
    keys, channels = prefix.keys, prefix.channels
    if prefix.index is not None:
        keys = keys.index_select(0, prefix.index)
        channels = None if channels is None else channels.index_select(0, prefix.index)
    rows = _fold(rows, prefix.shared)
    if channels is not None:
        rows = rows.gather(3, channels[:, :, None].expand(-1, -1, rows.shape[2], -1))
    return _unfold(rows @ keys.transpose(2, 3), prefix.shared)


def _mix(weights, prefix):
    values = prefix.values
    if prefix.index is not None:
        values = values.index_select(0, prefix.index)
    return _unfold(_fold(weights, prefix.shared) @ values, prefix.shared)


def _fold(x, shared):
    """[row * shared, head, n, m] -> [row, head, shared * n, m]: batch rows over one prefix row are
    more queries."""
    if shared == 1:
        return x
    return x.unflatten(0, (-1, shared)).transpose(1, 2).flatten(2, 3)


def _unfold(x, shared):
    if shared == 1:
        return x
    return x.unflatten(2, (shared, -1)).transpose(1, 2).flatten(0, 1)


def unrotate(queries, cos, sin):
    """Queries before RoPE, from rotated ones and the tables that rotated them.

    For the half layout; partial rotary widths show in the tables' width, attention scaling in their
    norm.
    """
    cos, sin = cos.unsqueeze(1).float(), sin.unsqueeze(1).float()
    turned, rest = queries[..., : cos.shape[-1]].float(), queries[..., cos.shape[-1] :]
    a, b = turned.chunk(2, -1)
    plain = (turned * cos - torch.cat([-b, a], -1) * sin) / (cos**2 + sin**2)
    return torch.cat([plain.to(queries.dtype), rest], -1)


def rotate(queries, positions, inverse_frequencies):
    """Queries turned on by a position of their row, [row], in the half layout."""
    angles = positions[:, None].float() * inverse_frequencies.float()
    cos, sin = angles.cos()[:, None, None], angles.sin()[:, None, None]
    width = 2 * inverse_frequencies.shape[-1]
    a, b = queries[..., :width].float().chunk(2, -1)
    turned = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    return torch.cat([turned.to(queries.dtype), queries[..., width:]], -1)
