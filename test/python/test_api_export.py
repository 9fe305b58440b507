"""The operators under torch.compile and torch.export: what sizes they tell, one graph, same result."""

import fake_presses as fake
import pytest
import torch

import kvpc


def compiled(function):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def same(a, b):
    assert torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.lengths, b.lengths)
    assert (a.channels is None) == (b.channels is None)


@pytest.mark.parametrize("name", ["last", "thin", "positive"])
@pytest.mark.parametrize("lengths", [None, [12, 5]])
def test_compress(name, lengths):
    press, (keys, values) = fake.module().press(name), fake.cache()
    lengths = None if lengths is None else torch.tensor(lengths)

    def run(keys, values):
        return press.compress(keys, values, lengths=lengths)

    same(compiled(run)(keys, values), run(keys, values))


def test_sizes_are_known_where_they_follow_from_shapes():
    press, (keys, values) = fake.module().press("last", keep=5), fake.cache()

    def run(keys, values):
        out = press.compress(keys, values)
        return torch.zeros(out.keys.shape[2])  # a fixed size: no guard, no break

    assert compiled(run)(keys, values).shape == (5,)


def test_shapes_that_change():
    press = fake.module().press("last", drop=0.5)
    run = compiled(lambda keys, values: press.compress(keys, values).keys)
    for tokens in (10, 11, 17):
        keys, values = fake.cache(tokens=tokens)
        assert torch.equal(run(keys, values), press.compress(keys, values).keys)


def test_in_place():
    press, (keys, values) = fake.module().press("last", keep=4), fake.cache()
    wanted = press.compress(keys, values)

    def run(keys, values):
        out = press.compress_(keys, values)
        return out.keys * 1, out.tokens

    copies = keys.clone(), values.clone()
    got, tokens = compiled(run)(*copies)
    assert torch.equal(got, wanted.keys) and torch.equal(tokens, wanted.tokens)
    assert torch.equal(copies[1][:, :, :4], wanted.values)


def test_scores_and_select():
    press, (keys, values) = fake.module().press("last"), fake.cache()

    def run(keys, values):
        scores, protected = press.scores(keys, values)
        return kvpc.select(scores, keep=3, protected=protected)

    assert torch.equal(compiled(run)(keys, values), run(keys, values))


def test_reuse():
    press, (keys, values) = fake.module().press("shared", keep=4), fake.cache()
    queries = torch.ones(2, 2, 1, 4)

    def run(keys, values, queries):
        state = kvpc.State()
        a = press.compress(keys, values, queries=queries, layer=0, layers=2, state=state)
        b = press.compress(keys, values, layer=1, layers=2, state=state)
        return a.keys, b.keys

    state = run(keys, values, queries)
    for got, wanted in zip(compiled(run)(keys, values, queries), state):
        assert torch.equal(got, wanted)


def test_export():
    press, (keys, values) = fake.module().press("positive"), fake.cache()

    class Compress(torch.nn.Module):
        def forward(self, keys, values):
            out = press.compress(keys, values)
            return out.keys, out.lengths

    program = torch.export.export(Compress(), (keys, values))
    got, lengths = program.module()(keys, values)
    wanted = press.compress(keys, values)
    assert torch.equal(got, wanted.keys) and torch.equal(lengths, wanted.lengths)
    # The press is named by content, so the program means the same elsewhere.
    assert any(fake.module().digest in str(node.args) for node in program.graph.nodes)


def test_meta_tensors():
    press, (keys, values) = fake.module().press("last", keep=5), fake.cache()
    out = press.compress(keys.to("meta"), values.to("meta"))
    assert out.keys.shape == (2, 2, 5, 4) and out.tokens.is_meta and out.lengths.shape == (2,)
