"""Scores and choices of kvpress 0.5.5 on the keys and hidden states of a real model, in f32.

Both get the same tensors. Kept sets may differ in near ties alone: entries whose score (by kvpress)
is as near to the threshold as the two scores may differ, and fewer than 1 % of all. Where kvpress is
wrong, the test shows that it is, and checks the right answer instead.
"""

import importlib.metadata
import importlib.util
import inspect
from pathlib import Path
from types import SimpleNamespace

import kvpress
import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import kvpc

ROOT = Path(__file__).resolve().parents[2]
TOKENS = 490  # the last chunk of 20 is short, and the window of 64 begins inside a chunk
LAYERS = (0, 13, 29)
QUICK = {"dtypes": "f32", "channels": 64}
TEXTS = (
    inspect.getsource(kvpress.presses.snapkv_press),
    inspect.getsource(kvpress.PyramidKVPress),  # without the licence that all files begin with
)
# Scores are sums in another order and another exp: relative to the largest of the row.
BOUND = 2e-5


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVPC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def layers():
    """layer → what its attention saw of a batch of two texts: module, hidden, keys, queries, rotary."""
    spec = importlib.util.spec_from_file_location("smollm2", ROOT / "scripts/smollm2.py")
    smollm2 = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(smollm2)
    model, tokenizer = smollm2.load()
    ids = torch.tensor([tokenizer(text)["input_ids"][:TOKENS] for text in TEXTS])
    seen = {}

    def watch(module, args, kwargs):
        seen[module.layer_idx] = (
            module,
            kwargs["hidden_states"].detach(),
            kwargs["position_embeddings"],
        )

    hooks = [
        model.model.layers[i].self_attn.register_forward_pre_hook(watch, with_kwargs=True)
        for i in LAYERS
    ]
    with torch.no_grad():
        past = model(ids, use_cache=True).past_key_values
    for hook in hooks:
        hook.remove()
    made = {}
    for layer, (module, hidden, rotary) in seen.items():
        with torch.no_grad():
            queries = module.q_proj(hidden).unflatten(-1, (-1, module.head_dim)).transpose(1, 2)
        queries, _ = apply_rotary_pos_emb(queries, queries, *rotary)
        made[layer] = SimpleNamespace(
            module=module,
            hidden=hidden,
            rotary=rotary,
            queries=queries,
            keys=past.layers[layer].keys,
            values=past.layers[layer].values,
            layers=model.config.num_hidden_layers,
            layer=layer,
            model=model,
        )
    return made


def numbered(keys):
    """Values that tell which token they belong to: what kvpress keeps shows in them."""
    index = torch.arange(keys.shape[2], dtype=keys.dtype)[:, None]
    return index.expand(keys.shape).contiguous()


def cut(at, tokens):
    """The last tokens of a layer's input alone."""
    return SimpleNamespace(
        **vars(at)
        | {
            "hidden": at.hidden[:, -tokens:],
            "queries": at.queries[:, :, -tokens:],
            "keys": at.keys[:, :, -tokens:],
            "values": at.values[:, :, -tokens:],
            "rotary": tuple(x[:, -tokens:] for x in at.rotary),
        }
    )


def their_arguments(at):
    rest = {"position_embeddings": at.rotary, "hidden_states": at.hidden}
    return at.module, at.hidden, at.keys.clone(), numbered(at.keys), None, rest


def theirs(press, at):
    """(scores, kept tokens ascending)"""
    with torch.no_grad():
        scores = press.score(*their_arguments(at)) if hasattr(press, "score") else None
        _, values = press.compress(*their_arguments(at))
    return scores, values[..., 0].long().sort(-1).values


def ours(press, at, competing=False):
    given = {"layer": at.layer, "layers": at.layers}
    if "queries" in press.inputs:
        given["queries"] = at.queries
    out = press.compress(at.keys, numbered(at.keys), **given)
    told = out.values[..., 0].long()
    assert torch.equal(told.where(out.tokens >= 0, -1) if competing else told, out.tokens)
    return press.scores(at.keys, numbered(at.keys), **given), out


def held(tokens, n):
    out = torch.zeros(*tokens.shape[:2], n, dtype=torch.bool)
    return out.scatter_(2, tokens, True)


def check(press, peer, at):
    scores, wanted = theirs(peer, at)
    (mine, protected), out = ours(press, at)
    assert out.tokens.shape == wanted.shape
    mine, protected = (x.expand_as(scores) if x.dim() == 3 else x[:, None].expand_as(scores)
                       for x in (mine, protected))  # fmt: skip
    size = scores.masked_fill(protected, 0).abs().amax(-1, keepdim=True)
    error = (mine - scores).abs().masked_fill(protected, 0)
    assert (error <= BOUND * size).all(), (error / size).max()
    compare_sets(out.tokens, wanted, scores.masked_fill(protected, torch.inf), BOUND * size)


def compare_sets(tokens, wanted, scores, bound):
    n = scores.shape[-1]
    mine, peer = held(tokens, n), held(wanted, n)
    threshold = scores.masked_fill(~peer, torch.inf).amin(-1, keepdim=True)
    excused = (mine != peer) & ((scores - threshold).abs() <= 2 * bound)
    assert torch.equal(mine != peer, excused), "sets differ far from the threshold"
    assert excused.float().mean() < 0.01


def test_version():
    assert importlib.metadata.version("kvpress") == "0.5.5"


@pytest.mark.parametrize("ratio", [0.3, 0.75])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", ["knorm", "keydiff", "snapkv", "tova", "pyramidkv"])
def test_scorer(layers, name, layer, ratio):
    peers = {
        "knorm": kvpress.KnormPress,
        "keydiff": kvpress.KeyDiffPress,
        "snapkv": kvpress.SnapKVPress,
        "tova": kvpress.TOVAPress,
        "pyramidkv": kvpress.PyramidKVPress,
    }
    press = kvpc.compile(name, **QUICK).press(drop=ratio)
    check(press, peers[name](compression_ratio=ratio), layers[layer])


@pytest.mark.parametrize("ratio", [0.3, 0.75])
@pytest.mark.parametrize("layer", LAYERS)
def test_observed_attention(layers, layer, ratio):
    """kvpress takes the weights that a model's attention has held; ours makes them from queries."""
    at = layers[layer]
    groups = at.queries.shape[1] // at.keys.shape[1]
    logits = at.queries @ at.keys.repeat_interleave(groups, 1).mT * at.module.scaling
    causal = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
    weights = logits.masked_fill(~causal, -torch.inf).softmax(-1)
    peer = kvpress.ObservedAttentionPress(compression_ratio=ratio)
    keys, values = at.keys.clone(), numbered(at.keys)
    with torch.no_grad():
        scores = peer.score(at.module, at.hidden, keys, values, weights, {})
        _, kept = peer.compress(at.module, at.hidden, keys, values, weights, {})
    press = kvpc.compile("observed_attention", **QUICK).press(drop=ratio)
    (mine, protected), out = ours(press, at)
    assert not protected.any()
    size = scores.abs().amax(-1, keepdim=True)
    assert ((mine - scores).abs() <= BOUND * size).all()
    compare_sets(out.tokens, kept[..., 0].long().sort(-1).values, scores, BOUND * size)


@pytest.mark.parametrize("window", [16, 33])
def test_windows(layers, window):
    at = cut(layers[13], 120)
    press = kvpc.compile("snapkv", defines={"window": window, "kernel": 7}, **QUICK)
    peer = kvpress.SnapKVPress(compression_ratio=0.6, window_size=window, kernel_size=7)
    check(press.press(drop=0.6), peer, at)


def test_pyramid_budgets(layers):
    """The counts of all layers, in each regime of the formula."""
    module = kvpc.compile("pyramidkv", **QUICK)
    for tokens in (100, 490):
        at = cut(layers[0], tokens)
        for ratio in (0.1, 0.5, 0.9):
            press = module.press(drop=ratio)
            peer = kvpress.PyramidKVPress(compression_ratio=ratio)
            for layer in range(at.layers):
                fake = SimpleNamespace(
                    config=at.module.config, layer_idx=layer, head_dim=at.module.head_dim
                )
                out = press.compress(
                    at.keys, at.keys, queries=at.queries, layer=layer, layers=at.layers
                )
                assert out.tokens.shape[2] == peer.get_layer_budget(fake, tokens), (tokens, ratio)


@pytest.mark.parametrize("ratio", [0.3, 0.75])
def test_qfilter(layers, ratio):
    at = layers[13]
    filters = torch.randn(at.layers, 3, 64, generator=torch.Generator().manual_seed(0))
    peer = kvpress.QFilterPress(compression_ratio=ratio)
    peer.q_filters = filters
    check(kvpc.compile("qfilter", **QUICK).press(drop=ratio, filter=filters), peer, at)


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.9])
def test_streaming_llm(layers, ratio):
    """Sets alone: scores say an order that kvpress leaves open."""
    for sink in (0, 4, 9):
        peer = kvpress.StreamingLLMPress(compression_ratio=ratio, n_sink=sink)
        _, wanted = theirs(peer, layers[0])
        press = kvpc.compile("streaming_llm", press="streaming_llm", **QUICK)
        _, out = ours(press.press(drop=ratio, sink=sink), layers[0])
        assert torch.equal(out.tokens, wanted)


@pytest.mark.parametrize("ratio", [0.25, 0.5])
@pytest.mark.parametrize("layer", LAYERS)
def test_think(layers, layer, ratio):
    at = layers[layer]
    with torch.no_grad():
        keys, _ = kvpress.ThinKPress(key_channel_compression_ratio=ratio).compress(
            *their_arguments(at)
        )
    gone = (keys == 0).all(2)
    press = kvpc.compile("think", **QUICK).press(ratio=ratio)
    (scores, _), out = ours(press, at)
    mine = torch.ones_like(gone).scatter_(2, out.channels, False)
    # Ours frees the memory, theirs writes zeros.
    assert out.keys.shape[3] == 64 - int(64 * ratio)
    window = at.queries[:, :, -32:].unflatten(1, (3, -1))
    wanted = (window**2).mean((2, 3)) * (at.keys**2).mean(2)
    torch.testing.assert_close(scores, wanted, rtol=BOUND, atol=0)
    edge = wanted.masked_fill(gone, torch.inf).amin(-1, keepdim=True)
    excused = (mine != gone) & ((wanted - edge).abs() <= 2 * BOUND * edge)
    assert torch.equal(mine != gone, excused) and excused.float().mean() < 0.01


def chunks_of(scores, ratio, size=20):
    """The right answer, row by row: tokens of the best chunks; from kvpress's own scores."""
    kept = []
    for row in scores.sum(1):
        parts = row.split(size)
        means = torch.stack([p.mean() for p in parts])
        n = max(1, int(len(parts) * (1 - ratio)))
        best = means.topk(n).indices.sort().values.tolist()
        kept.append(torch.cat([torch.arange(i * size, i * size + len(parts[i])) for i in best]))
    return kept


@pytest.mark.parametrize("ratio", [0.3, 0.75])
@pytest.mark.parametrize("layer", LAYERS)
def test_chunkkv(layers, layer, ratio):
    at = layers[layer]
    inner = kvpress.SnapKVPress(compression_ratio=ratio)
    scores, _ = theirs(inner, at)
    _, wanted = theirs(kvpress.ChunkKVPress(inner, chunk_length=20), at)
    press = kvpc.compile("chunkkv", **QUICK).press(drop=ratio)
    _, out = ours(press, at)
    right = chunks_of(scores, ratio)
    for row, tokens in enumerate(right):
        for head in range(3):
            assert torch.equal(out.tokens[row, head, : len(tokens)], tokens)
            assert (out.tokens[row, head, len(tokens) :] == -1).all()
    # kvpress gives every row the chunks of the first.
    assert torch.equal(wanted[0, 0], right[0])
    assert torch.equal(wanted[1], wanted[0])
    if layer and ratio == 0.3:
        assert not torch.equal(right[0], right[1]), "the texts are too alike to tell"


def test_chunkkv_shorter_than_a_chunk(layers):
    """kvpress then chooses tokens, in each head by itself; a chunk that is short is still one."""
    at = cut(layers[13], 15)
    inner = kvpress.SnapKVPress(compression_ratio=0.6, window_size=4)
    _, wanted = theirs(kvpress.ChunkKVPress(inner, chunk_length=20), at)
    assert wanted.shape[2] == 6
    press = kvpc.compile("chunkkv", defines={"inner": "snapkv(window = 4)"}, **QUICK)
    _, out = ours(press.press(drop=0.6), at)
    assert torch.equal(out.tokens, torch.arange(15).expand(2, 3, 15))


def test_random_is_uniform(layers):
    """Another generator than kvpress's: compared by what both promise, a fair choice per head."""
    module = kvpc.compile("random", **QUICK)
    at = layers[0]
    total = torch.zeros(TOKENS)
    for seed in range(60):
        _, out = ours(module.press(drop=0.5, seed=seed), at)
        _, wanted = theirs(kvpress.RandomPress(compression_ratio=0.5, seed=seed), at)
        assert out.tokens.shape == wanted.shape
        total += held(out.tokens[:1], TOKENS).float().sum((0, 1))
    # 180 fair coins a token: 6 standard deviations of 6.7 about 90.
    assert (total - 90).abs().max() < 41 and abs(total.mean() - 90) < 1e-3


def heads_of(out, n):
    """bool [batch, head, token] of an output whose heads keep different counts."""
    mask = torch.zeros(*out.tokens.shape[:2], n + 1, dtype=torch.bool)
    return mask.scatter_(2, out.tokens.where(out.tokens >= 0, n), True)[..., :n]


def unmasked(peer, at):
    """What kvpress leaves: it masks entries of each head instead of freeing them."""
    with torch.no_grad():
        keys, _ = peer.compress(*their_arguments(at))
    left = torch.ones(keys.shape[:3], dtype=torch.bool)
    left[at.module.masked_key_indices] = False
    at.module.masked_key_indices = None
    return left


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.7])
@pytest.mark.parametrize("ratio", [0.3, 0.75])
@pytest.mark.parametrize("layer", LAYERS)
def test_adakv(layers, layer, ratio, alpha):
    at = layers[layer]
    inner = kvpress.SnapKVPress(compression_ratio=ratio)
    scores, _ = theirs(inner, at)
    peer = unmasked(kvpress.AdaKVPress(inner, alpha_safeguard=alpha), at)
    press = kvpc.compile("adakv", **QUICK).press(drop=ratio, alpha=alpha)
    (_, protected), out = ours(press, at, competing=True)
    left = heads_of(out, TOKENS)
    kept = int(TOKENS * (1 - ratio))
    assert (left.sum((1, 2)) == 3 * kept).all() and torch.equal(left.sum(2), out.lengths)
    assert (out.lengths >= max(1, int(kept * alpha))).all()
    # Near the threshold of all heads, or of the share that a head has for certain.
    bound = BOUND * scores.masked_fill(protected, 0).amax((1, 2), keepdim=True)
    ranks = scores.argsort(-1, descending=True).argsort(-1)
    certain = ranks < max(1, int(kept * alpha))
    joint = scores.masked_fill(~peer | certain, torch.inf).amin((1, 2), keepdim=True)
    own = scores.masked_fill(~certain, torch.inf).amin(-1, keepdim=True)
    near = ((scores - joint).abs() <= 2 * bound) | ((scores - own).abs() <= 2 * bound)
    assert torch.equal((left != peer) & near, left != peer)
    assert (left != peer).float().mean() < 0.01


def with_values(at):
    """What criticalkv is given: values and their way out."""
    return {
        "keys": at.keys,
        "values": at.values,
        "queries": at.queries,
        "output_weight": at.module.o_proj.weight.detach(),
        "layer": at.layer,
        "layers": at.layers,
    }


def their_values(at):
    rest = {"position_embeddings": at.rotary, "hidden_states": at.hidden}
    return at.module, at.hidden, at.keys, at.values, None, rest


@pytest.mark.parametrize("ratio", [0.3, 0.75])
@pytest.mark.parametrize("layer", LAYERS)
def test_criticalkv(layers, layer, ratio):
    at = layers[layer]
    peer = kvpress.CriticalKVPress(kvpress.SnapKVPress(compression_ratio=ratio))
    with torch.no_grad():
        scores = peer.score(*their_values(at))
    press = kvpc.compile("critical_snapkv", **QUICK).press(drop=ratio)
    out = press.compress(**with_values(at))
    mine, protected = press.scores(**with_values(at))
    # Theirs knows two kinds of protection: the largest number, and the window's scores.
    size = scores.masked_fill(protected, 0).amax(-1, keepdim=True)
    assert ((mine - scores).abs().masked_fill(protected, 0) <= BOUND * size).all()
    wanted = scores.topk(int(TOKENS * (1 - ratio))).indices
    compare_sets(out.tokens, wanted, scores.masked_fill(protected, torch.inf), BOUND * size)


def critical_adakv_of(scores, norms, kept, alpha=0.2, first=0.5, eps=1e-4):
    """The right answer for one row: counts from one budget, then each head in two stages."""
    heads, n = scores.shape
    certain = scores.topk(max(1, int(kept * alpha))).indices
    safe = scores.scatter(-1, certain, torch.inf)
    best = safe.flatten().topk(heads * kept).indices
    left = torch.zeros(heads, n, dtype=torch.bool)
    for head, count in enumerate(torch.bincount(best // n, minlength=heads).tolist()):
        forced = scores[head].topk(int(count * first)).indices
        second = ((scores[head] + eps) * norms[head]).scatter(-1, forced, torch.inf)
        left[head, second.topk(count).indices] = True
    return left


@pytest.mark.parametrize("ratio", [0.3, 0.75])
@pytest.mark.parametrize("layer", LAYERS)
def test_critical_adakv(layers, layer, ratio):
    at = layers[layer]
    inner = kvpress.SnapKVPress(compression_ratio=ratio)
    with torch.no_grad():
        scores = inner.score(*their_values(at))
        norms = kvpress.CriticalKVPress.vwl1norm(at.values, at.module)
    press = kvpc.compile("critical_adakv", **QUICK).press(drop=ratio)
    left = heads_of(press.compress(**with_values(at)), TOKENS)
    kept = int(TOKENS * (1 - ratio))
    for row in range(2):
        right = critical_adakv_of(scores[row], norms[row], kept)
        assert left[row].sum() == right.sum() and (left[row] != right).float().mean() < 0.003
    # kvpress agrees where there is one row; of several it adds up the budgets of their heads.
    one = SimpleNamespace(**vars(at))
    for name in ("hidden", "keys", "values", "queries"):
        setattr(one, name, getattr(at, name)[:1])
    one.rotary = tuple(x[:1] for x in at.rotary)
    with torch.no_grad():
        kvpress.CriticalAdaKVPress(inner).compress(*their_values(one))
    peer = torch.ones(one.keys.shape[:3], dtype=torch.bool)
    peer[one.module.masked_key_indices] = False
    at.module.masked_key_indices = None
    assert (left[:1] != peer).float().mean() < 0.003
    if ratio == 0.3:
        with torch.no_grad(), pytest.raises(RuntimeError, match="index k out of range"):
            kvpress.CriticalAdaKVPress(inner).compress(*their_values(at))


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_duo_attention(layers, ratio):
    """Of equal heads kvpress leaves open which ones stream; here none are equal."""
    pattern = torch.rand(30, 3, generator=torch.Generator().manual_seed(3))
    peer = kvpress.DuoAttentionPress(head_compression_ratio=ratio)
    scores = pattern.clamp(0, 1).numpy()
    streaming = np.zeros(scores.shape, dtype=bool)
    order = np.argsort(scores, axis=None, kind="stable")[: round(90 * ratio)]
    streaming[np.unravel_index(order, scores.shape)] = True
    peer.sink_size, peer.recent_size = 30, 100
    peer.streaming_mask = torch.from_numpy(streaming)
    press = kvpc.compile("duo_attention", **QUICK)
    press = press.press(pattern=pattern, ratio=ratio, sink=30, recent=100)
    for layer in LAYERS:
        at = layers[layer]
        out = press.compress(at.keys, at.values, layer=at.layer, layers=at.layers)
        left = heads_of(out, TOKENS)
        assert torch.equal(left, unmasked(peer, at))
        assert (left.sum(2) == torch.where(peer.streaming_mask[layer], 130, TOKENS)).all()


def with_rotary(layers, layer):
    """What expected attention is given beside keys and values: how the model turns, and queries
    before it turned them."""
    at = layers[layer]
    with torch.no_grad():
        plain = at.module.q_proj(at.hidden).unflatten(-1, (-1, at.module.head_dim)).transpose(1, 2)
    at.module.rotary_emb = layers[LAYERS[0]].model.model.rotary_emb
    source = at.module.rotary_emb
    rope = kvpc.Rope(source.inv_freq, float(source.attention_scaling))
    return at, {"unrotated_queries": plain, "rope": rope, "layer": at.layer, "layers": at.layers}


def check_expected(press, peer, at, given):
    with torch.no_grad():
        scores = peer.score(*their_values(at))
        kept, _ = peer.compress(*their_arguments(at)[:3], at.values.clone(), *their_values(at)[4:])
    scores, protected = scores.clone(), torch.arange(TOKENS) < peer.n_sink
    wanted = scores.topk(kept.shape[2]).indices
    given = {k: x for k, x in given.items() if k in (*press.inputs, "rope", "layer", "layers")}
    mine, mark = press.scores(at.keys, at.values, **given)
    assert torch.equal(mark, protected.expand_as(mark))
    size = scores.masked_fill(protected, 0).abs().amax(-1, keepdim=True)
    error = (mine - scores).abs().masked_fill(protected, 0)
    assert (error <= BOUND * size).all(), (error / size).max()
    out = press.compress(at.keys, at.values, **given)
    compare_sets(out.tokens, wanted, scores.masked_fill(protected, torch.inf), BOUND * size)


@pytest.mark.parametrize("covariance, vnorm, eps", [(1, 1, 0.0), (0, 1, 0.01), (1, 0, 0.02)])
@pytest.mark.parametrize("ratio", [0.3, 0.75])
@pytest.mark.parametrize("layer", LAYERS)
def test_expected_attention(layers, layer, ratio, covariance, vnorm, eps):
    at, given = with_rotary(layers, layer)
    options = {"covariance": bool(covariance), "vnorm": bool(vnorm)}
    press = kvpc.compile("expected_attention", defines=options, press="expected_attention", **QUICK)
    peer = kvpress.ExpectedAttentionPress(
        ratio, use_covariance=covariance, use_vnorm=vnorm, epsilon=eps
    )
    check_expected(press.press(drop=ratio, eps=eps), peer, at, given)


@pytest.mark.parametrize("layer", LAYERS)
def test_expected_attention_stats(layers, layer):
    """With statistics of other queries; kvpress has them by query head."""
    at, given = with_rotary(layers, layer)
    make = torch.Generator().manual_seed(0)
    mu = torch.randn(at.layers, 9, 64, generator=make)
    root = torch.randn(at.layers, 9, 64, 64, generator=make) / 8
    peer = kvpress.ExpectedAttentionStatsPress(0.5, n_future_positions=128)
    peer.mu, peer.cov = mu, root @ root.mT
    press = kvpc.compile("expected_attention_stats", defines={"ahead": 128}, **QUICK)
    press = press.press(drop=0.5, mu=mu.unflatten(1, (3, 3)), cov=peer.cov.unflatten(1, (3, 3)))
    check_expected(press, peer, at, given)
