"""Whether what was timed is right. Each function returns None, or what is wrong in a few words.

The reference are the formulas in f32 on the same inputs. Kept sets may differ from it in near ties
alone: entries whose reference score is as near to the threshold as scores may differ, and of ours
fewer than 1 % of all.
"""

import torch
from formulas import Channels, Parts
from measure import tokens_of

import kvpc

# Relative to the largest score. Ours are f32 for every dtype: sums in another order, another exp.
OURS = 2e-5
# Peers compute in the dtype of the cache, and round there at every step.
PEERS = {torch.float32: 2e-5, torch.bfloat16: 2**-6}
DIFFERENT = 0.01


def held(index, n):
    """bool [..., n] of indices along the last axis; negative ones are none."""
    out = torch.zeros(*index.shape[:-1], n + 1, dtype=torch.bool)
    return out.scatter_(-1, index.masked_fill(index < 0, n), True)[..., :n]


def best(scores, count):
    """bool, like scores: the largest, ties to the earlier entry."""
    order = scores.sort(stable=True, dim=-1, descending=True).indices
    return held(order[..., :count], scores.shape[-1])


def sets(mine, scores, count, bound, strict):
    """mine: bool, like scores; `count` of the largest should be in it.

    strict: near ties have to be few
    """
    if not (mine.sum(-1) == count).all():
        return f"keeps {mine.sum(-1).flatten().tolist()}, not {count}"
    wanted = best(scores, count)
    threshold = scores.masked_fill(~wanted, torch.inf).amin(-1, keepdim=True)
    scale = scores.masked_fill(scores.isinf(), 0).abs().amax(-1, keepdim=True)
    different = mine != wanted
    far = different & ((scores - threshold).abs() > 2 * bound * scale)
    if far.any():
        return f"{int(far.sum())} entries are not near ties"
    if strict and different.float().mean() >= DIFFERENT:
        return "too many near ties"
    return None


def tokens(stage, given, keys, mine, bound, strict):
    """The choice `mine` [1, head, token] of a stage of tokens or of parts."""
    scores = stage.scores(given, keys)
    if isinstance(stage, Parts):
        if not (mine == mine[:, :1]).all():
            return "heads keep different runs"
        n = mine.shape[-1]
        runs = held(torch.arange(n)[mine[0, 0]] // stage.size, scores.shape[-1])
        whole = runs.repeat_interleave(stage.size)[:n]
        if not torch.equal(whole, mine[0, 0]):
            return "a run is not kept whole"
        mine = runs[None]
    return sets(mine, scores, stage.kept(given, scores.shape[-1]), bound, strict)


def after(stage, given, mine, strict):
    """Of two stages of tokens, the second. What the first kept is not seen in the end: the
    reference's own is taken, so that near ties of both are counted, not excused one by one."""
    first, second = stage
    keys, values = first(given, given.keys, index_values(given.keys))
    left = tokens_of(values)
    count = second.kept(given, left.shape[-1])
    wanted = best(second.scores(given, keys), count)
    if not (mine.sum(-1) == count).all():
        return f"keeps {mine.sum(-1).flatten().tolist()}, not {count}"
    agreed = (mine.gather(-1, left) & wanted).sum() / wanted.sum()
    return None if agreed > (1 - DIFFERENT if strict else 0.9) else "another choice of tokens"


def choice(stages, given, mine, channels, bound, strict=True):
    """Kept tokens [1, head, token] and channels [1, head, channel] (None: all), as bool."""
    given = given.float()
    thick = [stage for stage in stages if not isinstance(stage, Channels)]
    wrong = None
    if len(thick) == 1:
        wrong = tokens(thick[0], given, given.keys, mine, bound, strict)
    elif thick:
        wrong = after(thick, given, mine, strict)
    for stage in stages[len(thick) :]:
        kept = [given.keys[:, head][:, mine[0, head]] for head in range(mine.shape[1])]
        scores = stage.scores(given, torch.stack(kept, 1))
        count = stage.kept(given, scores.shape[-1])
        wrong = wrong or sets(channels, scores, count, bound, strict=False)
    return wrong


def index_values(keys):
    values = torch.zeros_like(keys)
    index = torch.arange(keys.shape[2], dtype=keys.dtype)
    values[..., 0], values[..., 1] = index.div(256, rounding_mode="floor"), index % 256
    return values


def ours(stages, given, out, reference):
    """An Output of kvpc, as its tensors: its entries are the inputs' bits, its choice is the
    formulas'; where there are none, that of `reference()`."""
    out = kvpc.Output(*out[:3], *(out[3:] if len(out) == 5 else (None, out[3])))
    n, width = given.keys.shape[2:]
    index = out.tokens.clamp(min=0)
    real = (out.tokens >= 0)[..., None]
    keys = given.keys.gather(2, index[..., None].expand(*index.shape, width))
    values = given.values.gather(2, index[..., None].expand(*index.shape, given.values.shape[3]))
    if (out.tokens.diff(dim=-1) <= 0)[out.tokens[..., 1:] >= 0].any():
        return "tokens do not ascend"
    channels = None
    if out.channels is not None:
        keys = keys.gather(3, out.channels[:, :, None].expand(-1, -1, keys.shape[2], -1))
        channels = held(out.channels, width)
    if not torch.equal(out.keys, keys * real) or not torch.equal(out.values, values * real):
        return "keys or values are not those of the tokens"
    mine = held(out.tokens, n)
    if not stages:
        want = reference()
        same = torch.equal(out.tokens, want.tokens) and torch.equal(out.keys, want.keys)
        return None if same else "not what the reference keeps"
    return choice(stages, given, mine, channels, OURS)


def peer(stages, given, out):
    """(keys, values) of a peer. What it kept is read from its values, see random_inputs.

    stages: none if its choice is another on purpose.
    """
    keys, values = out
    index = tokens_of(values)
    n = given.keys.shape[2]
    thin = any(isinstance(stage, Channels) for stage in stages)
    channels = (keys != 0).any(2) if thin else None  # the others are zeros
    wanted = given.keys.gather(2, index[..., None].expand(*index.shape, given.keys.shape[3]))
    if thin:
        wanted = wanted * channels[:, :, None]
    if not torch.equal(keys, wanted):
        return "keys are not those of the tokens"
    if not stages:
        return None
    return choice(stages, given, held(index, n), channels, PEERS[given.keys.dtype], strict=False)


def selection(scores, kept, tokens, exact):
    """The best of each row, ascending and ties to the earlier entry; a peer's: as good ones."""
    wanted = best(scores, kept).nonzero()[:, 1].unflatten(0, (-1, kept))
    if exact:
        return None if torch.equal(tokens, wanted) else "another choice"
    same = torch.equal(
        scores.gather(-1, tokens).sort(-1).values, scores.gather(-1, wanted).sort(-1).values
    )
    return None if same else "another choice"
