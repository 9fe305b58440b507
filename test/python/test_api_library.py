"""From the library's source to results: kvpc.press and kvpc.compile with the real compiler."""

import re
import subprocess

import pytest
import torch

import kvpc
from kvpc import library

# One variant: what it computes is tested with the presses, here it is the way there.
QUICK = {"dtypes": "f32", "channels": 0}


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVPC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def tensors(tokens=90, batch=2, heads=2, groups=2, channels=16):
    torch.manual_seed(0)
    shape = (batch, heads, tokens, channels)
    return (
        torch.randn(shape),
        torch.randn(shape),
        torch.randn(batch, heads * groups, tokens, channels),
    )


def same(a, b):
    for name in ("keys", "values", "tokens", "lengths", "channels"):
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None) and (x is None or torch.equal(x, y)), name


def test_press_of_the_library():
    press = kvpc.press("snapkv", drop=0.5, window=16)
    assert press.parameters["window"] == 16 and press.inputs == {"queries": 16}
    assert press.doc and press.module.presses["snapkv"].parameters["window"].static
    keys, values, queries = tensors()
    call = {"queries": queries, "lengths": [90, 31]}
    out = press.compress(keys, values, **call)
    assert out.lengths.tolist() == [45, 15] and out.tokens[1, 0, :15].min() >= 59
    # The window is protected, and the newest.
    assert (out.tokens[0, :, -16:] == torch.arange(74, 90)).all()
    same(out, press.compress(keys, values, backend="reference", **call))
    same(out, press.compress_(keys.clone(), values.clone(), **call))
    wanted, protected = press.scores(keys, values, backend="reference", **call)
    scores, marks = press.scores(keys, values, **call)
    torch.testing.assert_close(scores, wanted, equal_nan=True)
    assert torch.equal(marks, protected)
    with pytest.raises(kvpc.MissingInput, match="needs `queries`"):
        press.compress(keys, values)


def test_bf16():
    keys, values, queries = (x.bfloat16() for x in tensors(channels=64))
    press = kvpc.press("snapkv", keep=20, window=16)
    out = press.compress(keys, values, queries=queries)
    assert out.keys.dtype == torch.bfloat16 and out.keys.shape[2] == 20
    same(out, press.compress(keys, values, queries=queries, backend="reference"))


def test_f16():
    keys, values, queries = (x.half() for x in tensors(channels=64))
    press = kvpc.compile("snapkv", dtypes=("f16",), channels=64).press(drop=0.5)
    out = press.compress(keys, values, queries=queries)
    same = press.compress(keys, values, queries=queries, backend="reference")
    assert out.keys.dtype == torch.float16 and torch.equal(out.tokens, same.tokens)
    index = out.tokens[..., None].expand(-1, -1, -1, 64)
    assert torch.equal(out.values, values.gather(2, index))
    with pytest.raises(kvpc.InputError, match="the module has code for `f16`"):
        press.compress(keys.float(), values.float(), queries=queries.float())


def test_source_text_with_a_score_as_parameter():
    source = """
## Chunks of any score.
press mine(inner: score = knorm(), size: int = 10 in 1.., budget: budget = drop(0.5)) =
  inner.sum(head) |> chunk(size) |> topk(budget)
"""
    keys, values, queries = tensors()
    module = kvpc.compile(source, **QUICK)
    assert module.presses["mine"].doc == "Chunks of any score." and module.presses["mine"].uniform
    out = module.press(keep=30).compress(keys, values)
    assert out.lengths.tolist() == [30, 30]
    assert (out.tokens[0, 0].reshape(3, 10) % 10 == torch.arange(10)).all()
    other = kvpc.compile(source, defines={"inner": "tova()", "size": 5}, **QUICK)
    assert other.presses["mine"].inputs == {"queries": 1}
    last = queries[:, :, -1:]
    out = other.press(keep=5).compress(keys, values, queries=last)
    assert out.tokens[0, 0].tolist() == list(range(85, 90))  # the newest token is protected


def test_channels():
    press = kvpc.compile("think", defines={"window": 8}, **QUICK).press(ratio=0.25)
    keys, values, queries = tensors()
    out = press.compress(keys, values, queries=queries)
    assert out.keys.shape == (2, 2, 90, 12) and out.values.shape == values.shape
    picked = keys.gather(3, out.channels[:, :, None].expand(-1, -1, 90, -1))
    assert torch.equal(out.keys, picked)
    same(out, press.compress(keys, values, queries=queries, backend="reference"))


def test_what_differs_by_layer(tmp_path):
    from safetensors.torch import save_file

    keys, values, _ = tensors()
    whole = torch.randn(3, 2, 16)
    save_file({"filter": whole}, tmp_path / "filter.safetensors")
    module = kvpc.compile("qfilter", **QUICK)
    ratios = kvpc.compile("per_layer", defines={"inner": "knorm()"}, **QUICK)
    for layer in range(3):
        call = {"layer": layer, "layers": 3}
        press = module.press(filter=tmp_path / "filter.safetensors", keep=20)
        scores, _ = press.scores(keys, values, **call)
        wanted = -torch.einsum("bhtc,hc->bht", keys, whole[layer])
        torch.testing.assert_close(scores, wanted, rtol=1e-4, atol=1e-4)
        same(
            press.compress(keys, values, **call),
            press.compress(keys, values, backend="reference", **call),
        )
        press = ratios.press(ratios=[0.1, 0.5, 0.75])
        assert press.compress(keys, values, **call).keys.shape[2] == [81, 45, 22][layer]


OWN_AXES = """
score small(w: float[channel, mid], b: float[mid], u: float[layer, mid, head]) =
  (relu((keys * w).sum(channel) + b) * u).sum(mid) + 0.01 * extent(mid)
score turned(basis: float[head, channel, channel']) =
  (keys * basis).sum(channel).norm(channel')
"""


@pytest.mark.parametrize("optimization", ["O2", "O0"])
@pytest.mark.parametrize("hidden", [1, 5, 40])
def test_axes_that_weights_alone_have(tmp_path, hidden, optimization):
    from safetensors.torch import save_file

    keys, values, _ = tensors(channels=8, heads=3)
    module = kvpc.compile(OWN_AXES, optimization=optimization, **QUICK)
    w, b, u = torch.randn(8, hidden), torch.randn(hidden), torch.randn(2, hidden, 3)
    save_file({"w": w}, tmp_path / "w.safetensors")
    press = module.press("small", w=tmp_path / "w.safetensors", b=b, u=u, drop=0.6)
    call = {"layer": 1, "layers": 2, "lengths": [90, 17]}
    scores, _ = press.scores(keys, values, **call)
    wanted = torch.einsum("bhtm,mh->bht", (keys @ w + b).relu(), u[1]) + 0.01 * hidden
    torch.testing.assert_close(scores[0], wanted[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores[1, :, -17:], wanted[1, :, -17:], rtol=1e-4, atol=1e-4)
    same(
        press.compress(keys, values, **call),
        press.compress(keys, values, backend="reference", **call),
    )
    # The same axis is as long in every weight.
    longer = module.press("small", w=w, b=torch.randn(hidden + 1), u=u)
    for backend in ("compiled", "reference"):
        with pytest.raises(kvpc.InputError, match=rf"`b` has shape .* need \[mid {hidden}\]"):
            longer.compress(keys, values, backend=backend, **call)
    basis = torch.randn(3, 8, 8)
    scores, _ = module.press("turned", basis=basis).scores(keys, values)
    wanted = (keys @ basis).norm(dim=-1)
    torch.testing.assert_close(scores, wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(kvpc.InputError, match=r"need \[head 3, channel 8, channel' 8\]"):
        module.press("turned", basis=torch.randn(3, 8, 9)).scores(keys, values)


def test_groups_are_those_of_queries():
    """A press that counts by groups asks for a query, of followers too: nothing else tells."""
    keys, values, queries = tensors()
    one = queries[:, :, -1:]
    for source in ("groups", "extent(group)"):
        source = f"press m() = keys.norm(channel) |> topk(keep(10 * {source}))"
        press = kvpc.compile(source, **QUICK).press()
        assert press.inputs == {"queries": 1}
        for backend in ("compiled", "reference"):
            out = press.compress(keys, values, queries=one, backend=backend)
            assert out.keys.shape[2] == 20
        with pytest.raises(kvpc.MissingInput, match="needs `queries`"):
            press.compress(keys, values)
    source = "press m() = reuse(knorm() |> topk(keep(10 * groups)), layers = 2)"
    press, state = kvpc.compile(source, **QUICK).press(), kvpc.State()
    assert press.inputs_at(1) == {"queries": 1}
    leader = press.compress(keys, values, queries=one, layers=2, state=state)
    follower = press.compress(keys, values, queries=one, layer=1, layers=2, state=state)
    assert torch.equal(leader.tokens, follower.tokens)
    with pytest.raises(kvpc.StateError, match=r"keeps 40 entries, .* layer 0, which kept 20"):
        press.compress(keys, values, queries=one.repeat(1, 2, 1, 1), layer=1, layers=2, state=state)


def test_scores_of_rows_without_tokens():
    keys, values, _ = tensors(tokens=6)
    for source in (
        "score m() = keys.std(token)",
        "score m() = keys.max(token)",
        "score m() = knorm()",
    ):
        press = kvpc.compile(source, **QUICK).press()
        for backend in ("compiled", "reference"):
            scores, marks = press.scores(keys, values, lengths=[6, 0], backend=backend)
            assert scores[1].isnan().all() and not scores[0].isnan().any() and not marks.any()


def test_layers_that_share_a_choice():
    press = kvpc.compile("chunkkv_reuse", **QUICK).press(drop=0.5)
    assert press.reuse == 2 and press.inputs_at(0) == {"queries": 64} and press.inputs_at(1) == {}
    leader = None
    states = {"compiled": kvpc.State(), "reference": kvpc.State()}
    for layer in range(4):
        keys, values, queries = tensors()
        keys = keys * (layer + 1)
        call = {"layer": layer, "layers": 4} | ({} if layer % 2 else {"queries": queries * layer})
        outs = [
            press.compress(keys, values, state=state, backend=backend, **call)
            for backend, state in states.items()
        ]
        same(*outs)
        if layer % 2:
            assert torch.equal(outs[0].tokens, leader.tokens)
        leader = outs[0]
    with pytest.raises(kvpc.StateError, match="no state is given"):
        press.compress(keys, values, layer=1, layers=4)


def test_budgets_and_their_shorthands():
    source = (
        "press p(keep: int = 8 in 1..) = "
        "attention(queries.last(keep), keys).mean(query, group) |> topk(drop(0.5))"
    )
    with pytest.raises(kvpc.ArgumentError, match=r"`keep=` is a budget here.*defines"):
        kvpc.press(source, keep=4)
    assert kvpc.press(source, defines={"keep": 4}).inputs == {"queries": 4}
    two = "press p(a: budget = keep(9), b: budget = keep(9)) = compose(knorm() |> topk(a), keydiff() |> topk(b))"
    module = kvpc.compile(two, **QUICK)
    for name, advice in (("compression_ratio", "drop(0.5)"), ("keep", "keep(1024)")):
        with pytest.raises(kvpc.ArgumentError, match=re.escape(f"`a` = `{advice}`")):
            module.press(**{name: 0.5})
    with pytest.raises(kvpc.ArgumentError, match="`a` is not a number of 64 bits"):
        module.press(a=10**400, b=kvpc.keep(3))


def test_conditions_are_0_and_1():
    module = kvpc.compile("press p(whole: bool[head]) = mask(whole or position > 3)", **QUICK)
    keys, values, _ = tensors()
    out = module.press(whole=torch.tensor([True, False])).compress(keys, values)
    assert out.lengths[0].tolist() == [90, 86]
    with pytest.raises(kvpc.ArgumentError, match="`whole` holds other numbers than 0 and 1"):
        module.press(whole=torch.tensor([0.5, 1]))


def test_static_parameters_of_wrong_types():
    for given, need in (
        ({"window": "3"}, "a whole number"),
        ({"window": [3]}, "a whole number"),
        ({"window": torch.ones(3)}, "a whole number"),
    ):
        with pytest.raises(kvpc.ArgumentError, match=f"^`window` is .*; need {need}") as caught:
            kvpc.press("snapkv", drop=0.5, **given)
        assert type(caught.value) is kvpc.ArgumentError and caught.value.code == "kvm-parameter"
    with pytest.raises(kvpc.ArgumentError, match=r"`inner` is 'tova'; need source text of a score"):
        kvpc.press("chunkkv", inner="tova", drop=0.5)


def test_queries_of_tokens_are_those_of_one_pass():
    source = "press m() = queries.norm(channel).mean(group).rename(query -> token) |> topk(keep(3))"
    press = kvpc.compile(source, **QUICK).press()
    keys, values, queries = (torch.randn(1, h, 9, 8) for h in (2, 2, 4))
    norms = queries.norm(dim=-1).view(1, 2, 2, 9).mean(2)
    kept = press.compress(keys, values, queries=queries).tokens
    assert torch.equal(kept, norms.topk(3, -1).indices.sort(-1).values)
    positions = torch.arange(9)[None] * 2
    for backend in ("compiled", "reference"):
        with pytest.raises(kvpc.RequireError, match="needs the queries of all tokens"):
            press.compress(
                keys, values, queries=queries, original_positions=positions, seen=20,
                backend=backend,
            )  # fmt: skip


def test_what_is_not_there():
    with pytest.raises(kvpc.CompileError, match="no press of that name") as caught:
        kvpc.press("snapvk")
    assert caught.value.code == "kvpc-program"
    with pytest.raises(kvpc.CompileError, match="cannot read") as caught:
        kvpc.compile("nowhere.kv")
    assert caught.value.code == "kvpc-file"


def test_wrong_programs():
    with pytest.raises(kvpc.CompileError) as caught:
        kvpc.compile("score s() = keys.norm(chanel)\n")
    [first, *_] = caught.value.diagnostics
    assert (first.file, first.line, first.code) == ("source.kv", 1, "kv-axis-unknown")
    assert "did you mean `channel`" in first.notes[0].message
    with pytest.raises(kvpc.CompileError):
        kvpc.compile("no_such_press")


def test_traced_by_torch_compile():
    press = kvpc.compile("knorm", **QUICK).press(drop=0.5)
    keys, values, _ = tensors()
    run = torch.compile(
        lambda k, v: press.compress(k, v).keys * 2, fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(run(keys, values), press.compress(keys, values).keys * 2)


def test_example_without_python():
    module = kvpc.compile("snapkv", defines={"window": 16}, **QUICK)
    example = next(
        p / "bin/kvpc_example" for p in library._prefixes() if (p / "bin/kvpc_example").exists()
    )
    done = subprocess.run([example, module.path], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "-> [2, 2, 500, 64]" in done.stdout, done


MEETING = """
score product() = (keys * values).sum(channel)
score angle() = cosine(keys, values, channel)
score looks() = attention(queries.last(2), values).mean(query, group)
score changed() = dot(values, keys.mean(token).rename(channel -> other).rename(other -> channel), channel)
score apart() = keys.norm(channel) * values.norm(channel)
press channels() = values.norm(token) |> topk(drop(0.5))
"""


def test_values_of_other_channels():
    """Where keys and values meet along channels, they have as many; elsewhere any number."""
    module = kvpc.compile(MEETING, **QUICK)
    make = torch.Generator().manual_seed(0)
    keys, queries = (torch.randn(1, h, 9, 16, generator=make) for h in (2, 4))
    values = torch.randn(1, 2, 9, 24, generator=make)
    for name in ("product", "angle", "looks", "changed", "channels"):
        press = module.press(name)
        asked = {"queries": queries} if "queries" in press.inputs else {}
        for backend in ("compiled", "reference"):
            with pytest.raises(kvpc.Error, match=r"16 and 24 channels.*as many") as raised:
                press.compress(keys, values, **asked, backend=backend)
            assert raised.value.code == "kvm-channels"
    scores, _ = module.press("apart").scores(keys, values)
    torch.testing.assert_close(scores, keys.norm(dim=-1) * values.norm(dim=-1))


@pytest.mark.parametrize(
    "kind, wrong, right, need",
    [
        ("int", 1.5, 2.0, "whole numbers"),
        ("fraction", 1.0, 0.5, "fractions, at least 0 and less than 1"),
        ("float in 0..1", 1.25, 1.0, "numbers, 0.0 at least, 1.0 at most"),
    ],
)
def test_elements_of_weights(kind, wrong, right, need):
    kind, _, bounds = kind.partition(" ")
    source = f"score s(b: {kind}[head] {bounds}) = keys.norm(channel) * b"
    module = kvpc.compile(source, **QUICK)
    keys, values = torch.randn(2, 1, 2, 9, 16, generator=torch.Generator().manual_seed(0))
    press = module.press("s", b=torch.tensor([right, wrong]))
    with pytest.raises(kvpc.ArgumentError, match=f"`b` holds {wrong}; need {need}"):
        press.scores(keys, values)
    scores, _ = module.press("s", b=torch.tensor([right, right])).scores(keys, values)
    torch.testing.assert_close(scores, keys.norm(dim=-1) * right)
