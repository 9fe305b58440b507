"""Presses that ask for all queries, on a model and by hand: observed_attention."""

import pytest
import torch
from checks import batch, row, same_bits
from model_oracle import Recorded, close, oracle_logits
from small_models import greedy, make, text

import kvpc

QUICK = {"dtypes": "f32", "channels": 0, "targets": "x86-64-v3"}


@pytest.fixture(scope="module")
def press(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVPC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield kvpc.compile("observed_attention", **QUICK).press(drop=0.5)


class Watched(Recorded):
    """Beside what was kept, the scores."""

    def __init__(self, press):
        super().__init__(press)
        self.scores, self.asked = {}, {}

    def compress(self, keys, values, *, layer, state=None, **rest):
        self.asked[layer] = rest["queries"].shape
        self.scores[layer] = self.press.scores(keys, values, layer=layer, **rest)[0]
        return super().compress(keys, values, layer=layer, state=state, **rest)


@torch.no_grad()
def observed(model, ids, mask):
    """layer → mean over query heads of what each entry got, over how many could see it."""
    model.set_attn_implementation("eager")
    paid = model(ids, attention_mask=mask, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    real = mask[:, None, :, None].bool()
    seen = mask.flip(1).cumsum(1).flip(1).clamp(min=1)[:, None]
    out = []
    for weights in paid:
        heads = model.config.num_key_value_heads
        got = weights.masked_fill(~real, 0).sum(2).unflatten(1, (heads, -1)).mean(2)
        out.append(got / seen)
    return out


@pytest.mark.parametrize("padded", [0, 9])
@pytest.mark.parametrize("chunk", [None, 13])
@pytest.mark.parametrize("name", ["Llama", "Qwen3"])
def test_generate(press, name, chunk, padded):
    model, ids = make(name), text(90, 2)
    mask = torch.ones_like(ids)
    mask[0, :padded] = 0
    watched = Watched(press)
    more = {"prefill_chunk_size": chunk} if chunk else {}
    with watched(model):
        out = greedy(model, ids, mask, 12, **more)
    assert len(watched.scores) == 4
    for layer, wanted in enumerate(observed(model, ids, mask)):
        assert watched.asked[layer][2] == 90
        real = mask[:, None].bool().expand_as(wanted)
        mine = watched.scores[layer]
        close(mine[real], wanted[real], 1e-5)
        assert mine[~real].isnan().all()
    full = torch.cat([mask, torch.ones(2, 11, dtype=int)], 1)
    for log in watched.log.values():
        for one, length in zip(log, mask.sum(1).tolist()):
            assert [len(tokens) for tokens in one.tokens] == 2 * [length // 2]
    want = oracle_logits(model, watched.log, out.sequences[:, :-1], 90, full)
    close(torch.stack(out.logits, 1), want[:, 89:])


@torch.no_grad()
def test_right_padding(press):
    model, ids = make(), text(50, 2)
    mask = torch.ones_like(ids)
    mask[1, 31:] = 0
    watched = Watched(press)
    with watched(model):
        model(ids, attention_mask=mask)
    for layer, wanted in enumerate(observed(model, ids, mask)):
        real = mask[:, None].bool().expand_as(wanted)
        close(watched.scores[layer][real], wanted[real], 1e-5)


def test_fewer_queries_than_tokens(press):
    call = batch([row(70, seed=1)], window=None)
    assert press.inputs == {"queries": "all"}
    with pytest.raises(
        kvpc.InputError, match=r"has 69 queries; .* needs the last of all 70 tokens"
    ):
        press.scores(**call | {"queries": call["queries"][:, :, 1:]})
    with pytest.raises(kvpc.InputError, match="needs `queries`"):
        press.scores(**{k: v for k, v in call.items() if k != "queries"})
    # More are left out, from the front.
    more = torch.cat([torch.full_like(call["queries"][:, :, :5], torch.nan), call["queries"]], 2)
    assert same_bits(press.scores(**call)[0], press.scores(**call | {"queries": more})[0])


def test_positions_of_an_older_cache(press):
    """Entries that an earlier press left: queries see those whose original position is theirs or
    before."""
    call = batch([row(70, seed=1)], window=None)
    positions = torch.arange(70).mul(3)[None]
    call |= {"original_positions": positions, "seen": torch.tensor([208])}
    mine, _ = press.scores(**call)
    slow, _ = press.scores(**call, backend="reference")
    close(mine, slow, 1e-6)
    assert same_bits(mine, press.scores(**call)[0])


def test_positions_of_each_head(monkeypatch, tmp_path):
    """What heads have chosen apart lies at other positions: conditions of logits are each head's,
    and what has no head is refused."""
    monkeypatch.setenv("KVPC_CACHE", str(tmp_path))
    source = """
score causal() = attention(queries, keys).max(query, group)
score plain() = keys.norm(channel) + original_position
score turned() = keys.unrotated.max(channel)
"""
    module = kvpc.compile(source, **QUICK)
    call = batch([row(30, seed=2)], window=None) | {"seen": 90}
    positions = torch.stack([torch.arange(30) * 3, torch.arange(30) * 2 + 25])[None]
    rope = {"rope": kvpc.Rope(1.0 / torch.arange(1, 9))}
    scores, _ = module.press("causal", drop=0.5).scores(**call, original_positions=positions)
    for head in range(2):
        own = {k: call[k][:, head : head + 1] for k in ("keys", "values")}
        own["queries"] = call["queries"].unflatten(1, (2, -1))[:, head]
        alone, _ = module.press("causal", drop=0.5).scores(
            **call | own, original_positions=positions[:, head : head + 1]
        )
        close(scores[:, head], alone[:, 0], 1e-6)
    del call["queries"]
    said = (
        r"`original_positions` of row 0 are 0 for head 0 and 25 for head 1; .* same for all heads"
    )
    for name, more in (("plain", {}), ("turned", rope)):
        press = module.press(name, drop=0.5)
        with pytest.raises(kvpc.InputError, match=said):
            press.compress(**call | more, original_positions=positions)
        shared = positions[:, :1].expand(1, 2, 30)
        press.compress(**call | more, original_positions=shared)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_threads(press, threads):
    """Whole heads for each thread, or its share of each sweep: the same bits."""
    call = batch([row(n, seed=n, heads=3) for n in (700, 130, 64, 1)], "left", None)
    before = torch.get_num_threads()
    wanted = press.scores(**call)[0]
    try:
        torch.set_num_threads(threads)
        assert same_bits(press.scores(**call)[0], wanted)
        one = {k: v[:1] for k, v in call.items() if isinstance(v, torch.Tensor)}
        alone = press.scores(**one, padding="left")[0]
        assert same_bits(alone[0], wanted[0])
    finally:
        torch.set_num_threads(before)


def test_followers(monkeypatch, tmp_path):
    """Of two layers that share a choice the second needs no queries."""
    monkeypatch.setenv("KVPC_CACHE", str(tmp_path))
    source = """
press m() = reuse(attention(queries, keys).sum(query).mean(group) |> topk(drop(0.5)), layers = 2)
"""
    press = kvpc.compile(source, **QUICK).press("m")
    call = batch([row(n, seed=n) for n in (200, 70)], "left", None) | {"layers": 2}
    state = kvpc.State()
    leader = press.compress(**call, layer=0, state=state)
    del call["queries"]
    follower = press.compress(**call, layer=1, state=state)
    assert torch.equal(leader.tokens, follower.tokens)


def test_small_workspace(monkeypatch, tmp_path, press):
    """One head at a time, which is less memory, and the same bits."""
    monkeypatch.setenv("KVPC_CACHE", str(tmp_path))
    capped = kvpc.compile("observed_attention", workspace=0, **QUICK).press(drop=0.5)
    call = batch([row(n, seed=n, heads=4) for n in (300, 65)], "left", None)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert same_bits(capped.scores(**call)[0], press.scores(**call)[0])
    finally:
        torch.set_num_threads(before)
