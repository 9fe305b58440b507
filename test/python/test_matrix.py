"""Each press of the library, compiled, against the reference interpreter.

Every sequence is computed alone, and in batches of three with both paddings: that must not change a
bit, nor may the number of threads. All sequences together are one call of the reference, for its
processes take their time.
"""

from dataclasses import dataclass, field

import pytest
import torch
from checks import (
    CAST,
    batch,
    check_output,
    kept,
    row,
    same_bits,
    selected_by_reference,
)

import kvpc

TOKENS = (1, 7, 63, 64, 65, 1000)
DTYPES = ("f32", "bf16")
# Longest first, so that the rows after it are padded by much.
TRIPLES = ((1000, 64, 1), (65, 7, 63))
LAYER = {"layer": 1, "layers": 3}


@dataclass(frozen=True)
class Case:
    """How a press is compiled and called, and how far its scores may lie from the reference's.

    bound     of the difference of f32 scores, relative to the largest score of the row and head: what
              sums of another order and the approximated functions cost. 0: exact
    window    queries that it asks for
    features  of the output projection that it asks for
    element   what a score selects: token, part or channel
    competing heads share a budget: a near tie in one may show in the counts of others
    rope      whether it turns by the model's rotary embedding
    unrotated whether it asks for all queries before their rotation
    whole     whether it asks for all queries
    many      tokens of the longest test
    """

    bound: float
    window: int = 0
    features: int = 0
    element: str = "token"
    size: int = 1
    program: str = ""
    defines: dict = field(default_factory=dict)
    arguments: dict = field(default_factory=dict)
    call: dict = field(default_factory=dict)
    stages: int = 1
    competing: bool = False
    rope: bool = False
    unrotated: bool = False
    whole: bool = False
    many: int = 4096


def _filter(channels):
    return torch.randn(3, 2, channels, generator=torch.Generator().manual_seed(5))


def _mean(channels):
    return torch.randn(3, 2, 2, channels, generator=torch.Generator().manual_seed(6))


def _covariance(channels):
    make = torch.Generator().manual_seed(8)
    root = torch.randn(3, 2, 2, channels, channels, generator=make)
    return root @ root.mT / channels**2


HALF = {"drop": 0.5}
CASES = {
    "knorm": Case(1e-6, arguments=HALF),
    "random": Case(0, arguments={"keep": 40, "seed": 7}, call=LAYER),
    "streaming_llm": Case(0, arguments={"drop": 0.3, "sink": 4}),
    "keydiff": Case(2e-6, arguments=HALF),
    "tova": Case(4e-6, window=1, arguments=HALF),
    "snapkv": Case(4e-6, window=64, arguments=HALF),
    "pyramidkv": Case(4e-6, window=64, arguments=HALF, call=LAYER),
    "qfilter": Case(2e-6, arguments={"drop": 0.7, "filter": _filter}, call=LAYER),
    "chunkkv": Case(4e-6, window=64, element="part", size=20, arguments=HALF),
    "chunkkv_reuse": Case(4e-6, window=64, element="part", size=10, arguments=HALF),
    "per_layer": Case(4e-6, window=64, arguments={"ratios": [0.9, 0.4, 0.1]}, call=LAYER),
    "adakv": Case(4e-6, window=64, arguments=HALF | {"alpha": 0.3}, competing=True),
    "adakv_snapkv": Case(4e-6, window=64, arguments={"drop": 0.9}, competing=True),
    # Sums of the values' shares over all features and channels.
    "criticalkv": Case(1e-5, window=64, features=200, arguments=HALF),
    "critical_snapkv": Case(1e-5, window=64, features=129, arguments=HALF),
    "critical_adakv": Case(1e-5, window=64, features=64, arguments=HALF, competing=True),
    # Exponents of up to 20, of sums over all pairs of channels.
    "expected_attention_stats": Case(
        1e-5,
        window=0,
        defines={"ahead": 20},
        arguments=HALF | {"mu": _mean, "cov": _covariance, "eps": 0.01},
        call=LAYER,
        rope=True,
        many=600,  # the reference holds a token's channels times channels
    ),
    "expected_attention": Case(
        1e-5,
        defines={"ahead": 20},
        arguments=HALF | {"sink": 5},
        rope=True,
        unrotated=True,
        many=600,
    ),
    # Sums over as many queries as there are tokens; the reference holds all of them at once.
    "observed_attention": Case(5e-6, whole=True, arguments=HALF, many=600),
    "finch_score": Case(5e-6, whole=True, arguments=HALF | {"window": 40}, many=600),
    "composed": Case(
        1e-6,
        window=16,
        stages=2,
        defines={
            "p": "knorm() |> topk(drop(0.25))",
            "q": "snapkv(window = 16) |> topk(drop(0.5))",
        },
    ),
    # Squares of up to 512 entries are added one after another in f32.
    "think": Case(2e-6, window=32, element="channel", arguments={"ratio": 0.4}),
    "snap_think": Case(4e-6, window=64, stages=2, arguments={"drop": 0.5, "thin": 0.25}),
    "chunk_snap_think": Case(
        4e-6, window=64, stages=2, element="part", size=20, arguments={"drop": 0.6, "thin": 0.5}
    ),
}


@pytest.fixture(scope="session")
def pressed(tmp_path_factory):
    """name, channels → the press of a Case, compiled once for what this machine runs best."""
    modules = {}
    folder = tmp_path_factory.mktemp("cache")

    def make(name, channels):
        case = CASES[name]
        if name not in modules:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("KVPC_CACHE", str(folder))
                modules[name] = kvpc.compile(
                    name,
                    defines=case.defines,
                    dtypes=DTYPES,
                    channels=(64, 0),
                    press=name,
                )
        given = {k: v(channels) if callable(v) else v for k, v in case.arguments.items()}
        return modules[name].press(name, **given)

    return make


def call_of(case, rows, padding="right"):
    call = (
        batch(rows, padding, None if case.unrotated or case.whole else case.window)
        | case.call
        | new_state(case)
    )
    if case.unrotated:
        call["unrotated_queries"] = call.pop("queries")
    if case.rope:
        channels = call["keys"].shape[3]
        call["rope"] = kvpc.Rope(100.0 ** (-torch.arange(0, 3 * channels // 4, 2) / channels), 1.2)
    if case.features:
        values = call["values"]
        make = torch.Generator().manual_seed(17)
        width = 2 * values.shape[1] * values.shape[3]  # two query heads a head
        weight = torch.randn(case.features, width, generator=make) / width**0.5
        call["output_weight"] = weight.to(values.dtype)
    return call


def new_state(case):
    """A reusing press needs one for its followers; leaders may do without."""
    return {}


def ratio_of_kept(out):
    return [x.shape for x in (out.keys, out.values, out.tokens)]


def row_scores(scores, marks, case, call, index):
    """[head or nothing, element] of one row, without padding."""
    length = int(call["lengths"][index])
    most = call["keys"].shape[2]
    scores, marks = scores[index], marks[index]
    if case.element == "channel":
        return scores, marks
    if case.element == "part":
        n = -(-length // case.size)
        assert scores[..., n:].isnan().all() and not marks[..., n:].any()
        return scores[..., :n], marks[..., :n]
    start = most - length if call["padding"] == "left" else 0
    rest = torch.ones(most, dtype=torch.bool)
    rest[start : start + length] = False
    assert scores[..., rest].isnan().all() and not marks[..., rest].any()
    return scores[..., start : start + length], marks[..., start : start + length]


def chosen(case, here, shape):
    """bool, like the scores: which elements a Kept holds."""
    out = torch.zeros(shape, dtype=torch.bool)
    for head in range(len(here.tokens)):
        target = out[head] if out.dim() == 2 else out
        if case.element == "channel":
            target[here.channels[head]] = True
        else:
            target[here.tokens[head] // case.size] = True
    return out


def within(bound, scores):
    """The bound of each score: `bound` relative to the largest of its row and head."""
    finite = scores.abs().nan_to_num(0, 0, 0)
    return bound * finite.amax(-1, keepdim=True).expand_as(scores)


def check_near_ties(case, scores, marks, ours, theirs):
    """Where two choices differ, the reference's scores are within twice the bound of the threshold."""
    differ = ours != theirs
    assert not (differ & marks).any() or not (~theirs & marks).any()
    edge = scores.masked_fill(~theirs | marks, torch.inf).amin(-1, keepdim=True)
    assert (differ <= ((scores - edge).abs() <= 2 * within(case.bound, scores))).all()
    assert differ.sum() <= max(2, 0.001 * differ.numel())


def check(press, case, rows):
    """All that is asked of one press, one dtype; returns the Kept of each row."""
    call = call_of(case, rows)
    before = {k: v.clone() for k, v in call.items() if isinstance(v, torch.Tensor)}
    out = press.compress(**call)
    scores, marks = press.scores(**call)
    for name, tensor in before.items():
        assert same_bits(call[name], tensor), f"`{name}` was written to"
    check_output(out, call)

    # The reference's scores, and its choice by them.
    wanted, wanted_marks = press.scores(**call, backend="reference")
    assert scores.dtype == torch.float32 and scores.shape == wanted.shape
    assert torch.equal(marks, wanted_marks)
    plain = press.compress(**call, backend="reference")
    if case.competing:
        assert torch.equal(out.lengths.sum(-1), plain.lengths.sum(-1))
    else:
        assert torch.equal(out.lengths, plain.lengths)
    # Given our scores, the choice and the bytes are the reference's.
    given = selected_by_reference(press, call, (scores, marks))
    most = given.tokens.shape[2]
    ours = []
    for index in range(len(rows)):
        here = kept(out, call, index)
        ours.append(here)
        assert here == kept(given, call, index)
        mine, mark = row_scores(scores, marks, case, call, index)
        theirs, _ = row_scores(wanted, wanted_marks, case, call, index)
        assert ((mine - theirs).abs() <= within(case.bound, theirs)).all(), (
            f"length {call['lengths'][index]}: scores are off by "
            f"{((mine - theirs).abs() / within(1, theirs)).nan_to_num(9).max():.3g}"
        )
        if case.stages == 1 and not case.competing:
            shape = theirs.shape
            check_near_ties(
                case,
                theirs,
                mark,
                chosen(case, here, shape),
                chosen(case, kept(plain, call, index), shape),
            )
    assert out.tokens.shape[2] >= most
    return ours, (scores, marks)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_tokens(pressed, name, dtype):
    press, case = pressed(name, 16), CASES[name]
    rows = {n: row(n, seed=n, dtype=dtype) for n in TOKENS}
    together, (scores, marks) = check(press, case, list(rows.values()))
    ours = dict(zip(TOKENS, together))

    # Alone, and beside others, on either side of padding.
    for lengths in (*((n,) for n in TOKENS), *TRIPLES):
        for padding in ("left", "right"):
            call = call_of(case, [rows[n] for n in lengths], padding)
            out = press.compress(**call)
            check_output(out, call)
            own = {name: call[name].clone() for name in ("keys", "values")}
            in_place = press.compress_(**call | own)
            for one in ("keys", "values", "tokens", "lengths"):
                assert torch.equal(getattr(in_place, one), getattr(out, one)), one
            scored = press.scores(**call)
            for index, n in enumerate(lengths):
                assert kept(out, call, index) == ours[n], (lengths, padding, n)
                wanted = row_scores(
                    scores, marks, case, call_of(case, list(rows.values())), TOKENS.index(n)
                )
                for a, b in zip(row_scores(*scored, case, call, index), wanted):
                    assert same_bits(a, b), (lengths, padding, n)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_many_tokens(pressed, name, dtype):
    press, case = pressed(name, 64), CASES[name]
    rows = [row(case.many, seed=11, dtype=dtype, channels=64)]
    [ours], scores = check(press, case, rows)
    call = call_of(case, rows)
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            assert kept(press.compress(**call), call, 0) == ours
            assert all(same_bits(a, b) for a, b in zip(press.scores(**call), scores))
    finally:
        torch.set_num_threads(threads)


# What differs by dtype: contractions, forms, sums over features, norms, gathers.
F16 = ("knorm", "keydiff", "snapkv", "chunkkv", "think", "criticalkv", "expected_attention_stats")


@pytest.mark.parametrize("name", F16)
def test_f16(monkeypatch, tmp_path, name):
    monkeypatch.setenv("KVPC_CACHE", str(tmp_path))
    case = CASES[name]
    module = kvpc.compile(
        name, defines=case.defines, dtypes=torch.float16, channels=(64, 0), press=name
    )
    for channels, lengths in ((16, (1, 7, 65, 1000)), (64, (300,)), (7, (90,))):
        given = {k: v(channels) if callable(v) else v for k, v in case.arguments.items()}
        rows = [row(n, seed=n, dtype="f16", channels=channels) for n in lengths]
        check(module.press(name, **given), case, rows)


@pytest.mark.parametrize("dtype", DTYPES)
def test_follower(pressed, dtype):
    """Each second layer takes the choice of the one before, also where the rows differ in length."""
    press, case = pressed("chunkkv_reuse", 16), CASES["chunkkv_reuse"]
    first, second = ([row(n, seed=n + s, dtype=dtype) for n in (1000, 64, 7)] for s in (0, 50))
    state, slow = kvpc.State(), kvpc.State()
    call = call_of(case, first, "left") | {"layer": 2, "layers": 4, "state": state}
    leader = press.compress(**call)
    call = batch(second, "left", window=0) | {"layer": 3, "layers": 4, "state": state}
    follower = press.compress(**call)
    assert torch.equal(leader.tokens, follower.tokens)
    assert torch.equal(leader.lengths, follower.lengths)
    check_output(follower, call)
    call = call_of(case, first, "left") | {"layer": 2, "layers": 4, "state": slow}
    press.compress(**call, backend="reference")
    call = batch(second, "left", window=0) | {"layer": 3, "layers": 4, "state": slow}
    wanted = press.compress(**call, backend="reference")
    for index in range(3):
        assert kept(follower, call, index) == kept(wanted, call, index)
    with pytest.raises(kvpc.StateError):
        press.compress(**call | {"state": kvpc.State()})


@pytest.mark.parametrize("dtype", DTYPES)
def test_pattern_of_all_layers(monkeypatch, tmp_path, dtype):
    """duo_attention has no scores: which heads stream is said by the pattern of all layers."""
    monkeypatch.setenv("KVPC_CACHE", str(tmp_path))
    pattern = torch.tensor([[0.7, -1], [1.5, 0.2], [0.7, 2]])  # places 2 5, 0 4, 3 1
    module = kvpc.compile("duo_attention", dtypes=DTYPES, channels=0)
    rows = [row(n, seed=n, dtype=dtype) for n in (500, 7, 65)]
    for ratio, streaming in ((0.5, [(1,), (1,), (0,)]), (0.4, [(1,), (1,), ()]), (0, [(), (), ()])):
        press = module.press(pattern=pattern, ratio=ratio, sink=3, recent=20)
        for layer in range(3):
            for padding in ("left", "right"):
                call = batch(rows, padding, window=0) | {"layer": layer, "layers": 3}
                out = press.compress(**call)
                check_output(out, call)
                for index, one in enumerate(rows):
                    here = kept(out, call, index)
                    slow = press.compress(**call, backend="reference")
                    assert here == kept(slow, call, index)
                    ends = min(23, one.length)
                    assert [len(t) for t in here.tokens] == [
                        ends if head in streaming[layer] else one.length for head in range(2)
                    ]
    with pytest.raises(kvpc.InputError, match=r"has shape \[3, 2\]; need \[layer 4, head 2\]"):
        press.compress(**call | {"layers": 4})


def test_followers_of_one_budget(monkeypatch, tmp_path):
    """Heads of later layers take the counts too that those of the first won from each other."""
    monkeypatch.setenv("KVPC_CACHE", str(tmp_path))
    source = """
press shared(budget: budget = drop(0.5)) =
  reuse(keys.norm(channel) |> topk(budget, over = [head, token]), layers = 2)
"""
    press = kvpc.compile(source, dtypes="f32", channels=0).press(drop=0.7)
    state = kvpc.State()
    rows = [[row(n, seed=n + s) for n in (300, 65, 7)] for s in (0, 50)]
    calls = [batch(r, "left", window=0) | {"layers": 2, "state": state} for r in rows]
    leader, follower = (press.compress(**c, layer=i) for i, c in enumerate(calls))
    slow = press.compress(**calls[0] | {"state": kvpc.State()}, layer=0, backend="reference")
    assert leader.lengths[0, 0] != leader.lengths[0, 1]
    for index in range(3):
        assert kept(leader, calls[0], index) == kept(slow, calls[0], index)
    assert torch.equal(leader.tokens, follower.tokens)
    assert torch.equal(leader.lengths, follower.lengths)
    check_output(follower, calls[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_output_weight_as_it_lies(monkeypatch, tmp_path, dtype):
    """Of values that are wider than keys; by features or by channels, as layers and files have it."""
    monkeypatch.setenv("KVPC_CACHE", str(tmp_path))
    source = "score share() = dot(values, output_weight, channel).abs().sum(feature).mean(group)"
    press = kvpc.compile(source, dtypes=dtype, channels=0).press(drop=0.5)
    make = torch.Generator().manual_seed(2)
    keys = torch.randn(2, 2, 300, 16, generator=make).to(CAST[dtype])
    values = torch.randn(2, 2, 300, 23, generator=make).to(CAST[dtype])
    weight = torch.randn(2, 3, 23, 131, generator=make).to(CAST[dtype])
    wanted = torch.einsum("bhtc,hgcf->bhgtf", values.float(), weight.float())
    wanted = wanted.abs().sum(-1).mean(2)
    linear = weight.permute(3, 0, 1, 2).reshape(131, -1).contiguous()
    for given in (weight, linear, linear.t().contiguous().t()):
        scores, _ = press.scores(keys, values, output_weight=given)
        assert ((scores - wanted).abs() <= 1e-6 * wanted.max()).all()
    out = press.compress(keys, values, output_weight=weight)
    slow = press.compress(keys, values, output_weight=weight, backend="reference")
    assert torch.equal(out.tokens, slow.tokens)
