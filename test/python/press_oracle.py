"""A test oracle in the place of a compiled press: the same `compress`, in plain torch, one batch
row at a time.

It lets the hook's tests speak of the hook alone. Every call is logged, for the oracle model to mask
by.
"""

from collections import namedtuple

import torch

Result = namedtuple("Result", "keys values tokens channels lengths")
Row = namedtuple(
    "Row", "tokens channels start length"
)  # tokens: per head, counted from the row's first real token


class OraclePress:
    """kind: snapkv (same count per head), pyramid (per layer), ragged (per head), chunk (whole
    chunks, the same for all heads, with room for an upper bound), think (channels), all (pyramid,
    ragged and channels together)."""

    def __init__(
        self, kind="snapkv", keep=0.5, window=8, unrotated=False, hidden=False, rope=False
    ):
        self.kind, self.keep, self.window = kind, keep, window
        self.inputs = {"queries": window}
        self.inputs |= {"unrotated_queries": window} if unrotated else {}
        self.inputs |= {"hidden": "all"} if hidden else {}
        self.inputs |= {"rope": True} if rope else {}
        self.log, self.seen, self.hidden, self.states, self.calls = {}, [], [], [], 0
        self.ropes = []  # (keys, rope) of every call
        self.layers = set()  # how many there are, as told in every call

    def inputs_at(self, layer):
        return self.inputs

    def __call__(self, model, **kwargs):
        from kvpc.hook import attach

        return attach(model, self, **kwargs)

    def compress(
        self,
        keys,
        values,
        *,
        queries,
        unrotated_queries=None,
        hidden=None,
        rope=None,
        scale,
        layer,
        layers,
        lengths,
        padding,
        state,
    ):
        batch, heads, tokens, _ = keys.shape
        assert queries.shape[2] == min(self.window, tokens) and padding in ("left", "right")
        assert hidden is None or hidden.shape[:2] == (batch, tokens)
        self.calls += 1
        self.layers.add(layers)
        self.seen.append(
            (
                layer,
                queries.clone(),
                None if unrotated_queries is None else unrotated_queries.clone(),
            )
        )
        self.hidden.append(hidden)
        self.ropes.append((keys, rope))
        self.states.append(state)
        picked = []
        for b in range(batch):
            n = tokens if lengths is None else int(lengths[b])
            start = tokens - n if padding == "left" else 0
            w = min(self.window, n)
            row = queries[b, :, queries.shape[2] - w :]
            picked.append(
                self.pick(row, keys[b, :, start : start + n], scale, layer, layers, start)
            )
        self.log.setdefault(layer, []).extend(picked)

        room = max(len(t) for row in picked for t in row.tokens) + (
            3 if self.kind == "chunk" else 0
        )
        width = keys.shape[3] if picked[0].channels is None else picked[0].channels.shape[-1]
        out = Result(
            keys.new_zeros(batch, heads, room, width),
            values.new_zeros(batch, heads, room, values.shape[3]),
            torch.full((batch, heads, room), -1),
            None if picked[0].channels is None else torch.stack([row.channels for row in picked]),
            torch.tensor([[len(t) for t in row.tokens] for row in picked]),
        )
        for b, row in enumerate(picked):
            for h, index in enumerate(row.tokens):
                index = index + row.start
                kept = keys[b, h, index]
                out.keys[b, h, : len(index)] = (
                    kept if row.channels is None else kept[:, row.channels[h]]
                )
                out.values[b, h, : len(index)] = values[b, h, index]
                out.tokens[b, h, : len(index)] = index
        return out

    def pick(self, queries, keys, scale, layer, layers, start):
        h, n, d = keys.shape
        keep = max(1, int(n * self.keep))
        if self.kind in ("pyramid", "all"):
            keep = max(1, int(n * (0.7 - 0.5 * layer / layers)))
        q = queries.reshape(h, -1, d)
        score = (q @ keys.transpose(-1, -2) * scale).softmax(-1).mean(1)
        if self.kind in ("ragged", "all"):
            top = score.flatten().topk(keep * h).indices
            tokens = [(top[top // n == j] % n).sort().values for j in range(h)]
        elif self.kind == "chunk":
            parts = list(score.sum(0).split(4))  # the last may be short
            best = (
                torch.stack([p.mean() for p in parts])
                .topk(max(1, int(len(parts) * self.keep)))
                .indices.sort()
                .values
            )
            one = torch.cat([torch.arange(n)[4 * i : 4 * i + 4] for i in best.tolist()])
            tokens = [one] * h
        elif self.kind == "think":
            tokens = [torch.arange(n)] * h
        else:
            tokens = list(score.topk(keep).indices.sort(-1).values)
        channels = None
        if self.kind in ("think", "all"):
            channels = (
                (q.square().mean(1) * keys.square().mean(1))
                .topk(d * 5 // 8)
                .indices.sort(-1)
                .values
            )
        return Row(tokens, channels, start, n)
