"""The scores of the library's presses in plain PyTorch: what torch.compile gets, and in f32 the
reference of what is kept. Written as kvpress writes them, without its module and rotary embedding.

A score is a function of (given, keys): higher stays, inf always stays.
"""

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Given:
    """Inputs of a call: keys, values [1, head, token, channel], queries [1, query head, query,
    channel], filters [layer, head, channel]; the call is of layer `layer` of `layers`.

    wide: the formulas multiply in f32 whatever the dtype is, for machines that are slow at others.
    """

    keys: torch.Tensor
    values: torch.Tensor
    queries: torch.Tensor
    filters: torch.Tensor
    layer: int = 0
    layers: int = 1
    wide: bool = False

    def tensors(self):
        return self.keys, self.values, self.queries, self.filters

    def float(self):
        return Given(*(x.float() for x in self.tensors()), self.layer, self.layers)


def knorm(given, keys):
    return -torch.linalg.vector_norm(keys, dim=-1, dtype=torch.float32)


def streaming_llm(given, keys, sink=4):
    # The newest have the highest position.
    position = torch.arange(keys.shape[2], dtype=torch.float32)
    return position.masked_fill(position < sink, math.inf).expand(keys.shape[:3])


def keydiff(given, keys):
    anchor = F.normalize(keys, p=2, dim=-1).mean(dim=2, keepdim=True)
    return -F.cosine_similarity(keys, anchor, dim=-1)


def qfilter(given, keys):
    return -(given.filters[given.layer][None, :, None].to(keys.dtype) * keys).sum(dim=-1)


def attention(given, keys, window):
    """Of the last queries on what lies before them [batch, head, group and query, token]."""
    queries = given.queries[:, :, -window:].unflatten(1, (keys.shape[1], -1)).flatten(2, 3)
    if given.wide:
        queries, keys = queries.float(), keys.float()
    logits = queries @ keys.transpose(-1, -2) / math.sqrt(keys.shape[-1])
    later = torch.ones(window, keys.shape[2], dtype=torch.bool).triu(keys.shape[2] - window + 1)
    logits = logits.unflatten(2, (-1, window)).masked_fill(later, -math.inf).flatten(2, 3)
    return logits.softmax(-1, dtype=torch.float32).to(keys.dtype)[..., :-window]


def snapkv(given, keys, window=64, kernel=5):
    if keys.shape[2] <= window:
        return torch.full(keys.shape[:3], math.inf)
    scores = attention(given, keys, window).mean(2)
    scores = F.avg_pool1d(scores, kernel, stride=1, padding=kernel // 2)
    return F.pad(scores, (0, window), value=math.inf)


def tova(given, keys):
    scores = attention(given, keys, 1).mean((1, 2))
    return F.pad(scores, (0, 1), value=math.inf)[:, None].expand(keys.shape[:3])


def weights(given, keys, heads):
    """Attention of all queries of these heads [head, group, query, token]: as large as the text is
    long, squared."""
    queries = given.queries[0].unflatten(0, (keys.shape[1], -1))[heads]
    keys = keys[0, heads, None]
    if given.wide:
        queries, keys = queries.float(), keys.float()
    logits = queries @ keys.transpose(-1, -2) / math.sqrt(keys.shape[-1])
    later = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
    logits = logits.masked_fill(later, -math.inf)
    return logits.softmax(-1, dtype=torch.float32).to(given.keys.dtype)


def observed_attention(given, keys):
    """Head by head: the weights of all heads would not fit most machines."""
    n = keys.shape[2]
    heads = [weights(given, keys, slice(h, h + 1)).sum(2).mean(1) for h in range(keys.shape[1])]
    return (torch.cat(heads) / torch.arange(n, 0, -1))[None]


def chunk_means(scores, size):
    """Of runs of tokens, over all heads; the last run may be short."""
    total = scores.sum(1)
    short = -total.shape[-1] % size
    count = torch.full((total.shape[-1] // size + bool(short),), float(size))
    count[-1] -= short
    return F.pad(total, (0, short)).unflatten(-1, (-1, size)).sum(-1) / count.to(total.dtype)


def think(given, keys, window=32):
    queries = given.queries[:, :, -window:].unflatten(1, (keys.shape[1], -1))
    return (queries**2).mean((2, 3)) * (keys**2).mean(2)


@functools.cache
def statistics(heads, groups, channels):
    """Mean [layer, head, group, channel] and covariance of queries before their rotation."""
    rand = torch.Generator().manual_seed(1)
    mean = torch.randn(1, heads, groups, channels, generator=rand)
    root = torch.randn(1, heads, groups, channels, channels, generator=rand)
    return mean, root @ root.mT / channels


def inverse_frequencies(channels):
    return 10000.0 ** (-torch.arange(0, channels, 2) / channels)


def rotary(like, positions):
    """cos and sin, as a model's rotary_emb makes them."""
    angles = positions[..., None].float() * inverse_frequencies(like.shape[-1])
    angles = torch.cat([angles, angles], -1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def expected(given, keys, mean, covariance, ahead=512, sink=4):
    """mean, covariance: [head, group, ...]"""
    n, channels = keys.shape[2:]
    if given.wide:
        keys, mean, covariance = keys.float(), mean.float(), covariance.float()
    cos, sin = rotary(mean, torch.arange(n, n + ahead))
    half = torch.eye(channels // 2, dtype=cos.dtype)
    none = torch.zeros_like(half)
    swap = torch.cat([torch.cat([none, -half], 1), torch.cat([half, none], 1)], 0)
    turn = (cos[:, None] * torch.eye(channels, dtype=cos.dtype) + sin[:, None] * swap).mean(0)
    mean, covariance = mean @ turn.T, turn @ covariance @ turn.T
    keys, values = keys[:, :, sink:], given.values[:, :, sink:]
    wide = keys[:, :, None].expand(-1, -1, mean.shape[1], -1, -1)
    logits = (wide @ mean[None, ..., None]).squeeze(-1) / math.sqrt(channels)
    logits = logits + ((wide @ covariance[None]) * wide).sum(-1) / channels / 2
    scores = logits.softmax(-1, dtype=torch.float32).to(given.keys.dtype).mean(2)
    return F.pad(scores * values.norm(dim=-1), (sink, 0), value=math.inf)


def expected_attention(given, keys, sink=4):
    queries = given.queries.unflatten(1, (keys.shape[1], -1))[..., sink:, :]
    if given.wide:
        queries = queries.float()
    mean = queries.mean(3, keepdim=True)
    far = queries - mean
    return expected(given, keys, mean[0, :, :, 0], (far.mT @ far)[0] / far.shape[3], sink=sink)


def expected_attention_stats(given, keys):
    groups = given.queries.shape[1] // keys.shape[1]
    mean, covariance = statistics(keys.shape[1], groups, keys.shape[3])
    return expected(given, keys, mean[0].to(keys.dtype), covariance[0].to(keys.dtype))


def gathered(index, *tensors):
    return tuple(x.gather(2, index.expand(-1, x.shape[1], -1, x.shape[3])) for x in tensors)


@dataclass(frozen=True)
class Tokens:
    """Each head keeps its best tokens; `kept(given, tokens)` of them. They need their order where
    another stage has a window."""

    score: callable
    kept: callable
    ordered: bool = False

    def scores(self, given, keys):
        return self.score(given, keys)

    def __call__(self, given, keys, values):
        index = self.scores(given, keys).topk(self.kept(given, keys.shape[2])).indices
        index = (index.sort(-1).values if self.ordered else index)[..., None]
        return gathered(index, keys, values)


@dataclass(frozen=True)
class Parts:
    """All heads keep the same best runs of tokens."""

    score: callable
    size: int
    kept: callable

    def scores(self, given, keys):
        return chunk_means(self.score(given, keys), self.size)

    def __call__(self, given, keys, values):
        scores = self.scores(given, keys)
        best = scores.topk(self.kept(given, scores.shape[-1])).indices.sort(-1).values
        index = (best[..., None] * self.size + torch.arange(self.size)).flatten(1)
        # Of a short last run the entries that are none come last. One batch row is meant.
        index = index[:, None, : int((index < keys.shape[2]).sum()), None]
        return gathered(index, keys, values)


@dataclass(frozen=True)
class Channels:
    """Each head keeps its best channels; the others become zero."""

    score: callable
    kept: callable

    def scores(self, given, keys):
        return self.score(given, keys)

    def __call__(self, given, keys, values):
        best = self.scores(given, keys).topk(self.kept(given, keys.shape[3])).indices
        held = torch.zeros_like(keys[:, :, 0]).scatter(-1, best, 1)
        return keys * held[:, :, None], values


def compress(stages, given):
    """(keys, values) after all stages."""
    keys, values = given.keys, given.values
    for stage in stages:
        keys, values = stage(given, keys, values)
    return keys, values


def share(ratio):
    """The count of a budget that drops `ratio`."""
    return lambda given, n: max(1, int(n * (1 - ratio)))


def pyramid(ratio, window=64, beta=20):
    """The count of pyramidkv."""

    def kept(given, n):
        mean = n * (1 - ratio)
        top = min(2 * mean - mean / beta, n - window)
        low = 2 * mean - top
        slope = (top - low) / max(given.layers - 1, 1)
        straight = top >= low >= window
        return max(1, round(top - given.layer * slope if straight else mean))

    return kept
