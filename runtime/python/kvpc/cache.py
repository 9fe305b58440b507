"""What one attention layer remembers: a compressed prefix that never changes, and a dense tail.

The prefix holds what a press kept of the prompt; the tail holds the whole tokens that came later.
Nothing here knows where the tokens come from: the model's library is the hook's business, attention
over both is `attend`'s.
"""

import torch


class Prefix:
    """The kept entries of a prompt, one set per distinct batch row and KV head.

    keys      [row, head, kept, D']: D' < D where channels were dropped
    values    [row, head, kept, D]
    tokens    int32 [row, head, kept]: positions in the prompt as given, padding included; -1 where
              a head has fewer
    channels  int64 [row, head, D'] or None: which channels of a whole key these are
    missing   bool [row, head, 1, kept] or None: entries that do not exist; None where all counts
              are equal
    rows      for every batch row the prefix row it reads; several may share one (beams of one
              prompt)
    """

    def __init__(self, keys, values, tokens, channels=None, rows=None):
        missing = tokens < 0
        if missing.any():
            used = (~missing).flatten(0, 1).any(0)
            if not used.all():  # the press returned room for an upper bound
                index = used.nonzero()[:, 0]
                keys, values, tokens, missing = (
                    x.index_select(2, index) for x in (keys, values, tokens, missing)
                )
        self.keys, self.values = keys, values
        self.tokens = _narrow(tokens)
        self.channels = channels
        self.missing = missing[:, :, None] if missing.any() else None
        self._arrange(list(range(keys.shape[0])) if rows is None else rows)

    def _arrange(self, rows):
        """shared: how many successive batch rows read one prefix row; index: any other order, else
        None."""
        count = self.keys.shape[0]
        self.rows, self.shared, self.index = rows, len(rows) // count, None
        if rows != [row for row in range(count) for _ in range(self.shared)]:
            self.shared, self.index = 1, torch.tensor(rows, device=self.keys.device)

    @property
    def lengths(self):
        """How many entries every batch row and head keeps, int64 [batch, head]."""
        counts = (self.tokens >= 0).sum(-1)
        return counts[torch.tensor(self.rows, device=counts.device)]

    def tensors(self):
        """All that takes memory."""
        optional = (self.channels, self.missing, self.index)
        return [self.keys, self.values, self.tokens, *(x for x in optional if x is not None)]

    def __deepcopy__(self, memo):
        return self  # never written again

    def select(self, index):
        """Batch rows in another order, some repeated, some left out. Shares what it can, copies no
        entry twice."""
        rows = [self.rows[i] for i in index]
        used = sorted(set(rows))
        out = object.__new__(Prefix)
        out.__dict__.update(self.__dict__)
        if len(used) < self.keys.shape[0]:
            keep = torch.tensor(used, device=self.keys.device)
            for name in ("keys", "values", "tokens", "channels", "missing"):
                value = getattr(self, name)
                setattr(out, name, None if value is None else value.index_select(0, keep))
            rows = [used.index(row) for row in rows]
        out._arrange(rows)
        return out


def _narrow(tokens):
    """Positions in half the memory, once where all heads keep the same."""
    first = tokens[:, :1]
    tokens = first if tokens.shape[1] > 1 and (tokens == first).all() else tokens
    return tokens.to(torch.int32).expand(-1, tokens.shape[1], -1)


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
            self.keys, self.values = keys, values
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
        if length < self.length():
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
