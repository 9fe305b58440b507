"""Turns by the model's rotary embedding, before and after: against the formula in double."""

import math

import pytest
import torch
from checks import CAST, same_bits

import kvpc

LAYOUTS = ("half", "interleaved")


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVPC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def rope_of(width, layout="half", scaling=1.0, base=10000.0):
    return kvpc.Rope(base ** (-torch.arange(0, width, 2) / width), scaling, layout, width)


def turns(rope, positions, channels):
    """[position, channel, channel]: the matrices of the turns, in double."""
    out = torch.eye(channels, dtype=torch.double).repeat(len(positions), 1, 1)
    half = len(rope.inverse_frequencies)
    for i, frequency in enumerate(rope.inverse_frequencies.double()):
        a, b = (2 * i, 2 * i + 1) if rope.layout == "interleaved" else (i, i + half)
        angle = positions.double() * frequency
        cos, sin = angle.cos() * rope.attention_scaling, angle.sin() * rope.attention_scaling
        out[:, a, a], out[:, b, b], out[:, a, b], out[:, b, a] = cos, cos, -sin, sin
    return out


def compiled(source, dtype="f32", **options):
    return kvpc.compile(source, dtypes=dtype, channels=0, **options)


@pytest.mark.parametrize("optimization", ["O0", "O2"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("width", [24, 16])
def test_turns(layout, width, optimization):
    """By the tokens' own positions, by one of the host, forth and back."""
    source = """
score own(w: float[head, channel]) = dot(rotate(keys, position), w, channel)
score fixed(w: float[head, channel]) = dot(rotate(keys, -37), w, channel)
score sizes(w: float[channel]) = (rotate(keys, 3 * position) * w).norm(channel)
score before(w: float[head, channel]) = dot(keys.unrotated, w, channel)
score turned(w: float[head, channel]) = dot(rotate(keys.unrotated, position), w, channel)
"""
    keys = torch.randn(2, 2, 70, 24, generator=torch.Generator().manual_seed(0))
    w = torch.randn(2, 24, generator=torch.Generator().manual_seed(1))
    rope = rope_of(width, layout, 1.25)
    position = torch.arange(70)
    forth = torch.einsum("tij,bhtj->bhti", turns(rope, position, 24), keys.double())
    far = torch.einsum("ij,bhtj->bhti", turns(rope, torch.tensor([-37]), 24)[0], keys.double())
    thrice = torch.einsum("tij,bhtj->bhti", turns(rope, 3 * position, 24), keys.double())
    back = torch.einsum("tij,bhtj->bhti", turns(rope, position, 24).inverse(), keys.double())

    def dot(x):
        return torch.einsum("bhtc,hc->bht", x, w.double())

    module = compiled(source, optimization=optimization)
    for name, weight, wanted in (
        ("own", w, dot(forth)),
        ("fixed", w, dot(far)),
        ("sizes", w[0], (thrice * w[0]).norm(dim=-1)),
        ("before", w, dot(back)),
        ("turned", w, dot(keys.double())),
    ):
        press = module.press(name, drop=0.5, w=weight)
        for backend in ("compiled", "reference"):
            scores, _ = press.scores(keys, keys, rope=rope, backend=backend)
            assert (scores - wanted).abs().max() <= 2e-6 * wanted.abs().max(), (name, backend)


def test_unrotated_keys_of_a_compressed_cache():
    """They were turned to where they were first cached, not to where they are now."""
    w = torch.randn(16, generator=torch.Generator().manual_seed(2))
    source = "score before(w: float[channel]) = dot(keys.unrotated, w, channel)"
    press = compiled(source).press(drop=0.5, w=w)
    plain = torch.randn(1, 2, 30, 16, generator=torch.Generator().manual_seed(3))
    rope, places = rope_of(16), torch.arange(0, 900, 30)
    keys = torch.einsum("tij,bhtj->bhti", turns(rope, places, 16), plain.double()).float()
    scores, _ = press.scores(keys, keys, rope=rope, original_positions=places[None], seen=900)
    assert (scores - plain @ w).abs().max() <= 1e-5


def expected(
    keys, values, mu, cov, rope, seen, ahead, sink=4, covariance=True, vnorm=True, eps=0.0
):
    """What Devoto et al. score by, in double; mu and cov over [head, group, ...]."""
    k, channels = keys.double(), keys.shape[-1]
    turn = turns(rope, seen + torch.arange(ahead), channels).mean(0)
    mu, cov = mu.double() @ turn.T, turn @ cov.double() @ turn.T
    logits = torch.einsum("...hsc,...hgc->...hgs", k, mu) / math.sqrt(channels)
    if covariance:
        logits += torch.einsum("...hsi,...hgij,...hsj->...hgs", k, cov, k) / channels / 2
    logits[..., :sink] = -torch.inf
    scores = logits.softmax(-1).mean(-2)
    return (scores + eps) * values.double().norm(dim=-1) if vnorm else scores


def statistics(heads, groups, channels):
    make = torch.Generator().manual_seed(4)
    mu = torch.randn(1, heads, groups, channels, generator=make)
    root = torch.randn(1, heads, groups, channels, channels, generator=make)
    return mu, root @ root.mT / channels


def error(scores, wanted, sink=4):
    wanted, scores = wanted[..., sink:], scores[..., sink:]
    return ((scores - wanted).abs() / wanted.amax(-1, keepdim=True)).max().item()


@pytest.mark.parametrize("dtype", CAST)
@pytest.mark.parametrize("channels, width", [(64, 64), (80, 32), (24, 24)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_expected_attention_stats(layout, channels, width, dtype):
    """With partial turns, scaled tables, any layout, covariance of no symmetry asked for."""
    make = torch.Generator().manual_seed(5)
    keys, values = (
        torch.randn(2, 2, 300, channels, generator=make).to(CAST[dtype]) for _ in range(2)
    )
    mu, cov = statistics(2, 3, channels)
    rope = rope_of(width, layout, 1.3)
    for options in ({}, {"covariance": False}, {"vnorm": False, "ahead": 33}):
        module = kvpc.compile(
            "expected_attention_stats",
            defines={"ahead": 64} | options,
            dtypes=dtype,
            channels=channels,
        )
        weights = {"mu": mu, "cov": cov} if options.get("covariance", True) else {"mu": mu}
        if "cov" in module.presses["expected_attention_stats"].weights:
            weights["cov"] = cov
        scores, _ = module.press(drop=0.5, eps=0.01, **weights).scores(keys, values, rope=rope)
        options = {"ahead": 64} | options
        wanted = expected(keys, values, mu[0], cov[0], rope, 300, eps=0.01, **options)
        assert error(scores, wanted) <= 1e-5


def test_far_positions():
    """At 100,000 tokens angles are right to the tables' last bit; tables of f32 angles are not."""
    make = torch.Generator().manual_seed(6)
    keys, values = (torch.randn(1, 2, 40, 64, generator=make) for _ in range(2))
    mu, cov = statistics(2, 2, 64)
    rope = rope_of(64)
    module = kvpc.compile("expected_attention_stats", dtypes="f32", channels=64)
    press = module.press(drop=0.5, mu=mu, cov=cov)
    for seen in (100_000, 131_072, 10_000_000):
        wanted = expected(keys, values, mu[0], cov[0], rope, seen, 512)
        for backend in ("compiled", "reference"):
            scores, _ = press.scores(keys, values, rope=rope, seen=seen, backend=backend)
            assert error(scores, wanted) <= 2e-6, (seen, backend)
    one = compiled("score s(w: float[channel]) = dot(rotate(keys, seen), w, channel)")
    w = torch.eye(64)
    exact = torch.einsum(
        "ij,bhtj->bhti", turns(rope, torch.tensor([100_000]), 64)[0], keys.double()
    )
    # As transformers has it: positions and frequencies of f32, a product of f32.
    angle = torch.tensor([100_000.0]) * rope.inverse_frequencies
    cos, sin = angle.cos().repeat(2), angle.sin().repeat(2)
    theirs = keys * cos + torch.cat([-keys[..., 32:], keys[..., :32]], -1) * sin
    ours = torch.stack(
        [one.press(drop=0.5, w=row).scores(keys, keys, rope=rope, seen=100_000)[0] for row in w], -1
    )
    assert (ours - exact).abs().max() < 1e-6 < 1e-4 < (theirs - exact).abs().max()


def test_needs_rope():
    module = compiled("score s() = rotate(keys, position).norm(channel)")
    press, keys = module.press(drop=0.5), torch.randn(1, 1, 9, 8)
    assert press.inputs == {"rope": True}
    with pytest.raises(kvpc.MissingInput, match=r"`s` needs `rope` \(used at .*1:13\)"):
        press.compress(keys, keys)
    with pytest.raises(kvpc.InputError, match="5 inverse frequencies; keys of 8 channels"):
        press.compress(keys, keys, rope=torch.ones(5))


def test_unrotated_queries():
    """The last of them, by the microkernel and without."""
    source = """
score asked() = dot(queries.unrotated.last(4).mean(query), keys, channel).mean(group)
score single() = dot(queries.unrotated.last(4), keys, channel).max(query, group)
"""
    make = torch.Generator().manual_seed(7)
    keys = torch.randn(1, 2, 50, 24, generator=make)
    given = torch.randn(1, 4, 9, 24, generator=make)
    last = given[:, :, -4:].unflatten(1, (2, 2))
    products = torch.einsum("bhgqc,bhtc->bhgqt", last, keys)
    module = compiled(source)
    for name, wanted in (("asked", products.mean((2, 3))), ("single", products.amax((2, 3)))):
        press = module.press(name, drop=0.5)
        assert press.inputs == {"unrotated_queries": 4}
        for backend in ("compiled", "reference"):
            scores, _ = press.scores(keys, keys, unrotated_queries=given, backend=backend)
            assert (scores - wanted).abs().max() <= 2e-6 * wanted.abs().max(), backend


def test_same_bits_alone_and_beside_others():
    """Rows of other lengths have other coming positions, and so other tables."""
    make = torch.Generator().manual_seed(8)
    keys, values = (torch.randn(2, 2, 200, 24, generator=make) for _ in range(2))
    mu, cov = statistics(2, 2, 24)
    rope = rope_of(16)
    press = kvpc.compile("expected_attention_stats", dtypes="f32", channels=0).press(
        drop=0.5, mu=mu, cov=cov
    )
    lengths = torch.tensor([200, 77])
    for padding in ("left", "right"):
        together, _ = press.scores(keys, values, rope=rope, lengths=lengths, padding=padding)
        for index, n in enumerate(lengths.tolist()):
            part = slice(200 - n, 200) if padding == "left" else slice(n)
            own = keys[index : index + 1, :, part], values[index : index + 1, :, part]
            alone, _ = press.scores(*own, rope=rope)
            assert same_bits(together[index : index + 1, :, part], alone)


def queries_before(model, name, ids):
    """layer → what its projection (and norm) makes, before RoPE: [batch, query head, query, channel]."""
    caught = {}

    def catch(layer):
        def hook(module, args, out):
            if name == "Phi3":  # a slice of the fused projection
                out = out[..., :64]
            out = out.view(*out.shape[:2], 4, 16) if out.dim() == 3 else out
            caught[layer] = out if out.shape[1] == 4 else out.transpose(1, 2)

        return hook

    part = {"Gemma3": "q_norm", "Qwen3": "q_norm", "Phi3": "qkv_proj"}.get(name, "q_proj")
    handles = [
        getattr(layer.self_attn, part).register_forward_hook(catch(i))
        for i, layer in enumerate(model.model.layers)
    ]
    with torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    return caught


@pytest.mark.parametrize(
    "name, rope",
    [("Llama", None), ("Llama", "yarn"), ("Llama", "llama3")]
    + [("Qwen3", None), ("Phi3", None), ("Gemma3", None)],
)
@pytest.mark.parametrize("chunks", [1, 3])
def test_model(name, rope, chunks):
    """expected_attention in a model, by the queries that its layers had before they were turned;
    Phi-3 turns half of its channels, Gemma 3 has another table for each kind of layer."""
    from small_models import make, text
    from transformers import DynamicCache

    from kvpc.hook import attach

    model, ids, cache = make(name, rope=rope), text(66, 2), DynamicCache()
    plain, calls = queries_before(model, name, ids), []
    press = kvpc.compile(
        "expected_attention",
        defines={"ahead": 32},
        dtypes="f32",
        channels=0,
        press="expected_attention",
    ).press(drop=0.5, eps=0.01)

    class Watched:
        inputs, inputs_at = press.inputs, press.inputs_at

        def compress(self, keys, values, **call):
            out = press.compress(keys, values, **call)
            calls.append((keys.clone(), values.clone(), call, out))
            return out

    with attach(model, Watched(), prompt_tokens=66), torch.no_grad():
        for part in ids.split(66 // chunks, 1):
            model(part, past_key_values=cache)
    full = [i for i, layer in enumerate(cache.layers) if hasattr(layer, "prefix")]
    assert len(calls) == len(full)
    for layer, (keys, values, call, out) in zip(full, calls):
        q = plain[layer].unflatten(1, (2, 2))[..., 4:, :].double()
        centred = q - q.mean(3, keepdim=True)
        cov = torch.einsum("bhgqi,bhgqj->bhgij", centred, centred) / q.shape[3]
        told = kvpc.Rope.of(call["rope"])
        turned = kvpc.Rope(told.inverse_frequencies, told.attention_scaling)
        wanted = expected(keys, values, q.mean(3), cov, turned, 66, 32, eps=0.01)
        given = {k: x for k, x in call.items() if k != "state"}
        scores, _ = press.scores(keys, values, **given)
        # Queries are turned and turned back in f32 by the model's tables.
        assert error(scores, wanted) <= 5e-4
        assert out.tokens.shape == (2, 2, 33) and (out.tokens[..., :4] == torch.arange(4)).all()
