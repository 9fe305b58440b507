"""What one attention layer remembers: a compressed prefix that never changes, and a dense tail.

The prefix holds what a press kept of the prompt; the tail holds the whole tokens that came later.
Nothing here knows where the tokens come from: the model's library is the hook's business, attention
over both is `attend`'s.
"""

import torch


class Prefix:
    """The kept entries of a prompt, one set per distinct batch row and KV head.

    Where all heads keep as many, entries are [row, head, kept]; where counts differ, those of all
    rows and heads lie one after the other and nothing is padded: [entry].

    keys      [row, head, kept, D'] or [entry, D']: D' < D where channels were dropped
    values    [row, head, kept, D] or [entry, D]
    tokens    int32 [row, head, kept] or [entry]: positions in the prompt as given, padding included
    offsets   None, or int64 [row * head + 1]: where each row and head begins, and the end
    channels  int64 [row, head, D'] or None: which channels of a whole key these are
    heads     how many
    rows      for every batch row the prefix row it reads; several may share one (beams of one
              prompt)
    """

    def __init__(self, keys, values, tokens, channels=None):
        self.channels, self.heads, self.offsets = channels, keys.shape[1], None
        present = tokens >= 0
        counts = present.sum(-1).flatten()
        if (counts == counts[:1]).all():
            if int(counts[0]) < tokens.shape[2]:  # the press returned room for an upper bound
                keys, values, tokens = (
                    x[:, :, : int(counts[0])].clone() for x in (keys, values, tokens)
                )
            self.keys, self.values, self.tokens = owned(keys), owned(values), _narrow(tokens)
        else:
            self.keys, self.values = keys[present], values[present]
            self.tokens = tokens[present].to(torch.int32)
            self.offsets = _offsets(counts)
        self._arrange(list(range(keys.shape[0])))

    @classmethod
    def of_parts(cls, keys, values, tokens, offsets, channels, heads, rows):
        """From the tensors of another one, as they are."""
        out = object.__new__(cls)
        out.keys, out.values, out.tokens, out.offsets = keys, values, tokens, offsets
        out.channels, out.heads = channels, heads
        out._arrange(rows)
        return out

    def _arrange(self, rows):
        """shared: how many successive batch rows read one prefix row; index: any other order, else
        None."""
        count = self.count()
        self.rows, self.shared, self.index = rows, len(rows) // count, None
        if rows != [row for row in range(count) for _ in range(self.shared)]:
            self.shared, self.index = 1, torch.tensor(rows, device=self.keys.device)

    def count(self):
        """Distinct rows."""
        if self.offsets is None:
            return self.keys.shape[0]
        return (self.offsets.shape[0] - 1) // self.heads

    @property
    def lengths(self):
        """How many entries every batch row and head keeps, int64 [batch, head]."""
        if self.offsets is None:
            counts = torch.full((self.count(), self.heads), self.keys.shape[2], device="cpu")
        else:
            counts = self.offsets.diff().view(-1, self.heads).cpu()
        return counts[torch.tensor(self.rows, device="cpu")]

    def head(self, row, head):
        """(keys [kept, D'], values, tokens) of one head of one batch row; views."""
        row = self.rows[row]
        if self.offsets is None:
            return tuple(x[row, head] for x in (self.keys, self.values, self.tokens))
        begin, end = self.offsets[row * self.heads + head :][:2].tolist()
        return tuple(x[begin:end] for x in (self.keys, self.values, self.tokens))

    def tensors(self):
        """All that takes memory."""
        optional = (self.channels, self.offsets, self.index)
        return [self.keys, self.values, self.tokens, *(x for x in optional if x is not None)]

    def outside_inference(self):
        """Read with gradients where it was made without (torch.inference_mode)."""
        for name in ("keys", "values", "channels", "index"):
            x = getattr(self, name)
            if x is not None and x.is_inference():
                setattr(self, name, x.clone())

    def __deepcopy__(self, memo):
        return self  # never written again

    def select(self, index):
        """Batch rows in another order, some repeated, some left out. Shares what it can, copies no
        entry twice."""
        rows = [self.rows[i] for i in index]
        used = sorted(set(rows))
        parts = {n: getattr(self, n) for n in ("keys", "values", "tokens", "offsets", "channels")}
        if len(used) < self.count():
            keep = torch.tensor(used, device=self.keys.device)
            entries = keep
            if self.offsets is not None:
                counts = self.offsets.diff().view(-1, self.heads)
                chosen = torch.zeros_like(counts, dtype=torch.bool)
                chosen[keep] = True
                entries = chosen.flatten().repeat_interleave(counts.flatten()).nonzero()[:, 0]
                parts["offsets"] = _offsets(counts[keep].flatten())
            for name in ("keys", "values", "tokens"):
                parts[name] = parts[name].index_select(0, entries)
            if self.channels is not None:
                parts["channels"] = self.channels.index_select(0, keep)
            rows = [used.index(row) for row in rows]
        return Prefix.of_parts(**parts, heads=self.heads, rows=rows)


def _offsets(counts):
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _narrow(tokens):
    """Positions in half the memory, once where all heads keep the same."""
    heads, first = tokens.shape[1], tokens[:, :1]
    tokens = first if heads > 1 and (tokens == first).all() else tokens
    return owned(tokens.to(torch.int32)).expand(-1, heads, -1)


def owned(x):
    """`x`, or a copy where it is a part of something larger, which it would keep alive: values cut
    from a fused projection, say."""
    if not torch.compiler.is_compiling():  # a tracer sees no storage: there always a copy
        held = x.untyped_storage().nbytes()
        if held <= x.numel() * x.element_size():
            return x
    return x.clone()


class Layer:
    """Keys and values of one attention layer. Whole tokens until `seal`, then prefix and tail."""

    def __init__(self):
        self.keys = self.values = None  # whole tokens; once sealed: the tail
        self.prefix = None
        self.sealed = 0  # logical length of the prefix: tokens of the prompt, dropped ones included

    def tail(self):
        return 0 if self.keys is None else self.keys.shape[2]

    def length(self):
        """Tokens ever cached: positions and masks count by it."""
        return self.sealed + self.tail()

    def append(self, keys, values):
        if self.tail() == 0:
            self.keys, self.values = owned(keys), owned(values)
        else:
            self.keys = torch.cat([self.keys, keys], 2)
            self.values = torch.cat([self.values, values], 2)

    def seal(self, prefix, length):
        self.prefix, self.sealed = prefix, length
        # new tensors: an empty slice would keep the whole prompt alive
        self.keys, self.values = (
            x.new_empty(x.shape[:2] + (0, x.shape[3])) for x in (self.keys, self.values)
        )

    def cut(self, length):
        """Forget the tokens from `length` on; all of them in the tail."""
        if length < self.length() and self.keys is not None:
            self.keys, self.values = (
                x[:, :, : length - self.sealed].clone() for x in (self.keys, self.values)
            )

    def select(self, index):
        if self.keys is not None:
            index = torch.arange(self.keys.shape[0], device=self.keys.device)[
                index.to(self.keys.device)
            ]
            self.keys, self.values = self.keys[index], self.values[index]
            if self.prefix is not None:
                self.prefix = self.prefix.select(index.tolist())

    def tensors(self):
        own = [x for x in (self.keys, self.values) if x is not None]
        return own + (self.prefix.tensors() if self.prefix is not None else [])


def storage_bytes(cache):
    """Bytes a cache keeps alive, over distinct storages: a view counts as all of what it is a view
    of."""
    held = {}
    for layer in cache.layers:
        tensors = layer.tensors() if isinstance(layer, Layer) else (layer.keys, layer.values)
        for tensor in tensors:
            if tensor is not None:
                storage = tensor.untyped_storage()
                held[storage.data_ptr()] = storage.nbytes()
    return sum(held.values())
