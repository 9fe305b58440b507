"""backend="reference": what `kvpc run --reference` is given and what is made of its answer."""

import subprocess

import fake_compiler
import fake_presses as fake
import pytest
import torch
from test_api_compile import compiler  # noqa: F401

import kvpc


@pytest.fixture
def reference(compiler, monkeypatch):  # noqa: F811
    """The stand-in, in this process: one of its own takes seconds to import Torch."""

    def run(command, **options):
        done = subprocess.CompletedProcess(command, 0, "", "")
        try:
            fake_compiler.main([str(part) for part in command[1:]])
        except Exception as error:
            done.returncode, done.stderr = 1, repr(error)
        return done

    monkeypatch.setattr("kvpc.library.run", run)
    return compiler


def same(a, b):
    assert torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.lengths, b.lengths)
    assert a.channels is None and b.channels is None


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_last(reference, padding, dtype):
    keys, values = fake.cache(batch=3, tokens=9, dtype=dtype)
    keys = keys.transpose(1, 2).contiguous().transpose(1, 2)
    for budget in ({"drop": 0.3}, {"keep": 4}):
        press = fake.module().press("last", **budget)
        for lengths in (None, [9, 1, 4]):
            call = {"lengths": lengths, "padding": padding}
            wanted = press.compress(keys, values, **call)
            same(press.compress(keys, values, backend="reference", **call), wanted)
            copies = keys.clone(), values.clone()
            same(press.compress_(*copies, backend="reference", **call), wanted)
            for a, b in zip(
                press.scores(keys, values, **call),
                press.scores(keys, values, backend="reference", **call),
            ):
                assert torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))
    first = reference()[0]
    assert first["settings"] == {"budget": "drop(0.3)"} and first["flags"] == [
        str(fake.path()),
        "--reference",
    ]
    assert float(first["options"].pop("scale")) == 0.5
    assert first["options"]["press"] == "last" and first["options"]["layers"] == "1"
    assert first["tensors"]["start"] == ["torch.int64", [3]]


def test_everything_is_given(reference):
    press = fake.module().press("everything", keep=2)
    keys, values = fake.cache(batch=1, tokens=5)
    press.compress(
        keys, values, hidden=torch.randn(1, 7, 3), unrotated_queries=torch.randn(1, 4, 3, 4),
        output_weight=torch.randn(3, 16), scale=0.1, seen=70, layer=1, layers=2,
        rope=kvpc.Rope(torch.ones(2), 2.0, "interleaved"), backend="reference",
        original_positions=torch.arange(5)[None],
    )  # fmt: skip
    [asked] = reference()
    shapes = {name: shape for name, (_, shape) in asked["tensors"].items()}
    assert shapes["unrotated_queries"] == [1, 2, 2, 2, 4]  # the last 2 of 3
    assert shapes["hidden"] == [1, 7, 3] and shapes["output_weight"] == [2, 2, 4, 3]
    assert shapes["original_positions"] == [1, 2, 5] and shapes["seen"] == [1]
    assert asked["tensors"]["rope_frequencies"] == ["torch.float64", [2]]
    assert asked["flags"][2:] == ["--rope-interleaved"]
    options = asked["options"]
    assert (options["scale"], options["rope-scaling"], options["layer"]) == ("0.1", "2.0", "1")


def test_parameters(compiler):  # noqa: F811
    keys, values = fake.cache(tokens=4)
    press = fake.module().press("window", keep=2, gain=1e-7, seed=3)
    queries = torch.randn(2, 2, 9, 4)
    press.compress(keys, values, queries=queries, backend="reference")
    [asked] = compiler()
    assert asked["settings"] == {"budget": "keep(2)", "gain": "1e-07", "share": "0.25", "seed": "3"}
    assert asked["tensors"]["queries"][1] == [2, 2, 1, 4, 4]


def test_reuse(reference):
    keys, values = fake.cache(tokens=8)
    press = fake.module().press("shared", keep=3)
    for sign in (1.0, -1.0):
        queries, states = torch.full((2, 2, 1, 4), sign), (kvpc.State(), kvpc.State())
        for layer, given in ((0, {"queries": queries}), (1, {})):
            outs = [
                press.compress(keys, values, layer=layer, layers=2, state=s, backend=b, **given)
                for s, b in zip(states, ("compiled", "reference"))
            ]
            same(*outs)
    with pytest.raises(kvpc.StateError, match="which the state does not hold"):
        press.compress(keys, values, layer=1, layers=2, backend="reference")


def test_errors_come_first(reference):
    keys, values = fake.cache()
    press = fake.module().press("last")
    with pytest.raises(kvpc.InputError):
        press.compress(keys, values.double(), backend="reference")
    with pytest.raises(kvpc.Unsupported):
        fake.module().press("positive").scores(keys, values, backend="reference")
    assert reference() == []
    with pytest.raises(kvpc.Error, match="the reference interpreter failed"):
        fake.module().press("positive").compress(keys, values, backend="reference")
