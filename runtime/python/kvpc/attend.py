"""Attention over a compressed prefix and a dense tail, in plain torch."""

import torch

# Logits are held for all queries of a call at once; more than this many are taken in turns.
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
            return torch.cat([attend(q, prefix, keys, values, m, scale) for q, m in parts], 1)

    rows = queries.reshape(batch, heads, groups * count, width)
    late = rows @ keys.transpose(2, 3)
    if mask is not None:
        hidden = ~mask[:, :, None]
        late = late.view(batch, heads, groups, count, tail)
        late = late.masked_fill(hidden, torch.finfo(late.dtype).min).flatten(2, 3)
    logits = torch.cat([_logits(rows, prefix), late], -1).float().mul_(scale)
    weights = logits.softmax(-1).to(queries.dtype)
    kept = prefix.keys.shape[2]
    out = _mix(weights[..., :kept], prefix) + weights[..., kept:] @ values
    return out.reshape(batch, query_heads, count, -1).transpose(1, 2).contiguous()


def _logits(rows, prefix):
    keys, channels, missing = prefix.keys, prefix.channels, prefix.missing
    if prefix.index is not None:
        keys, channels, missing = (
            x if x is None else x.index_select(0, prefix.index) for x in (keys, channels, missing)
        )
    rows = _fold(rows, prefix.shared)
    if channels is not None:
        rows = rows.gather(3, channels[:, :, None].expand(-1, -1, rows.shape[2], -1))
    logits = rows @ keys.transpose(2, 3)
    if missing is not None:
        logits = logits.masked_fill(missing, torch.finfo(logits.dtype).min)
    return _unfold(logits, prefix.shared)


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
