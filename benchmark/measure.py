"""Timing: variants in turn, each on the same inputs, with a known state of the allocator."""

import ctypes
import gc
import statistics
import time
from dataclasses import dataclass, fields

import torch

import kvpc

WINDOW = 64  # queries given, as many as any press asks
_TRIM, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of mallopt(3)


def allocator(kind):
    """How glibc hands out memory from now on.

    recycled  freed memory is kept and handed out again: its pages are there already
    default   as a process has it after a while: pieces above 32 MiB come from the system, and go
              back to it
    fresh     all large pieces come from the system: each page of an output is a page fault
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    largest = 2**31 - 1
    mmaps, threshold, trim = {
        "recycled": (0, 32 << 20, largest),
        "default": (65536, 32 << 20, 64 << 20),
        "fresh": (65536, 128 << 10, 128 << 10),
    }[kind]
    libc.mallopt(_MMAP_MAX, mmaps)
    libc.mallopt(_MMAP_THRESHOLD, threshold)
    libc.mallopt(_TRIM, trim)
    libc.malloc_trim(0)


class Inputs:
    """Keys and values that calls may overwrite, and what they are restored from."""

    def __init__(self, keys, values):
        self.given = keys, values
        self.keys, self.values = keys.clone(), values.clone()

    def restored(self):
        """Copied before every call, so that all of them find the same in memory and caches."""
        self.keys.copy_(self.given[0])
        self.values.copy_(self.given[1])
        return self.keys, self.values


@dataclass(frozen=True)
class Variant:
    """memory: the kind of allocator; call: a function of (keys, values)."""

    memory: str
    call: callable


def copied(out):
    """All tensors of an output, copied: what it views may be overwritten."""
    if isinstance(out, torch.Tensor):
        return [out.clone()]
    if isinstance(out, kvpc.Output):
        out = [getattr(out, f.name) for f in fields(out)]
    return [tensor for one in out if one is not None for tensor in copied(one)]


def interleaved(variants, inputs, repetitions, limit):
    """name → seconds of each turn; name → tensors of the last output; names whose outputs changed
    from one turn to the next.

    Variants of one allocator take turns. The first turn is not counted; after two that are, who
    used more than `limit` seconds stops.
    """
    seconds, outputs, unsteady = {name: [] for name in variants}, {}, set()
    gc.collect()
    gc.disable()
    for memory in ("fresh", "default", "recycled"):  # the last leaves its memory behind
        allocator(memory)
        turn = {name: one.call for name, one in variants.items() if one.memory == memory}
        for n in range(repetitions + 1):
            for name, call in turn.items():
                if n > 2 and sum(seconds[name]) > limit:
                    continue
                keys, values = inputs.restored()
                if memory == "fresh":
                    allocator(memory)
                start = time.perf_counter()
                out = call(keys, values)
                stop = time.perf_counter()
                if n:
                    seconds[name].append(stop - start)
                made = copied(out)
                if n and not all(map(torch.equal, made, outputs[name])):
                    unsteady.add(name)
                outputs[name] = made
                del out, made
    gc.enable()
    return seconds, outputs, unsteady


def summary(seconds):
    """Minimum and median, in milliseconds."""
    return {
        "min_ms": 1e3 * min(seconds),
        "median_ms": 1e3 * statistics.median(seconds),
        "turns": len(seconds),
    }


def random_inputs(tokens, dtype, heads=8, groups=4, channels=128, layers=32, queries=WINDOW):
    """keys, values, the last queries, filters. Values tell in their first two channels which token they
    belong to, exactly in every dtype: what a peer keeps shows in them."""
    rand = torch.Generator().manual_seed(0)
    keys = torch.randn(1, heads, tokens, channels, generator=rand)
    values = torch.randn(1, heads, tokens, channels, generator=rand)
    index = torch.arange(tokens, dtype=torch.float32)
    values[..., 0], values[..., 1] = index.div(256, rounding_mode="floor"), index % 256
    queries = torch.randn(1, heads * groups, min(queries, tokens), channels, generator=rand)
    filters = torch.randn(layers, heads, channels, generator=rand)
    return (x.to(dtype) for x in (keys, values, queries, filters))


def tokens_of(values):
    """Which tokens random_inputs' values are of."""
    return (values[..., 0].float() * 256 + values[..., 1].float()).long()
