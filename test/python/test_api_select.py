"""kvpc.select: the selection primitive alone."""

import pytest
import torch

import kvpc


def oracle(row, protected, k):
    """By the rules of the language, one row."""

    def place(i):
        x = float(row[i])
        return (not protected[i], x != x, -x if x == x else 0, i)

    best = sorted(range(len(row)), key=place)[: max(1, min(k, len(row)))]
    return sorted(best)


@pytest.mark.parametrize("tokens, keep", [(1, 1), (7, 3), (64, 64), (65, 1), (1000, 333)])
def test_rules(tokens, keep):
    torch.manual_seed(tokens)
    scores = torch.randn(2, 3, tokens).mul(4).round().div(4)  # many ties
    scores[torch.rand(scores.shape) < 0.1] = float("nan")
    scores[torch.rand(scores.shape) < 0.05] = -float("inf")
    scores[torch.rand(scores.shape) < 0.05] = float("inf")
    protected = torch.rand(scores.shape) < keep / tokens / 4
    out = kvpc.select(scores, keep=keep, protected=protected)
    assert out.shape == (2, 3, keep) and out.dtype == torch.int64
    for b in range(2):
        for h in range(3):
            assert out[b, h].tolist() == oracle(scores[b, h], protected[b, h], keep)


def test_budgets():
    scores = torch.arange(10.0)
    assert kvpc.select(scores, drop=0.3).tolist() == list(range(10 - int(10 * (1 - 0.3)), 10))
    assert kvpc.select(scores, drop=0.99).tolist() == [9]
    assert kvpc.select(scores, keep=99).tolist() == list(range(10))
    assert kvpc.select(scores.bfloat16(), keep=1).tolist() == [9]
    assert kvpc.select(scores[::2], keep=1).tolist() == [4]


def test_no_rows():
    scores = torch.randn(0, 9)
    assert kvpc.select(scores, keep=3).shape == (0, 3)
    assert kvpc.select(scores, drop=0.5).shape == (0, 4)


def test_lengths():
    scores = torch.tensor([[5.0, 1, 4, 2], [9, 8, 1, 2]])
    left = kvpc.select(scores, drop=0.5, lengths=[4, 2])
    assert left.tolist() == [[0, 2], [3, -1]]
    right = kvpc.select(scores[:, None], drop=0.5, lengths=torch.tensor([4, 0]), padding="right")
    assert right.tolist() == [[[0, 2]], [[-1, -1]]]


def test_refusals():
    scores = torch.randn(4)
    for wrong in (
        {}, {"keep": 1, "drop": 0.5}, {"keep": 0}, {"drop": 1.0}, {"drop": float("nan")},
        {"keep": 1, "protected": torch.zeros(3, dtype=torch.bool)}, {"keep": 1, "lengths": [2]},
        {"keep": 1, "padding": "middle"},
    ):  # fmt: skip
        with pytest.raises(kvpc.Error):
            kvpc.select(scores, **wrong)
    with pytest.raises(kvpc.InputError, match="not f32"):
        kvpc.select(scores.double(), keep=1)
    with pytest.raises(kvpc.InputError, match="0 entries"):
        kvpc.select(torch.randn(2, 0), keep=1)


def test_arguments_of_wrong_kinds():
    scores = torch.randn(2, 5)
    for wrong in ({"keep": 1.5}, {"keep": True}, {"keep": "3"}, {"drop": "x"}, {"drop": [0.5]}):
        with pytest.raises(kvpc.ArgumentError):
            kvpc.select(scores, **wrong)
    with pytest.raises(kvpc.InputError, match="`scores` is a list"):
        kvpc.select([1.0, 2.0], keep=1)
    with pytest.raises(kvpc.InputError, match="`protected` is a list"):
        kvpc.select(scores, keep=1, protected=[True])
    with pytest.raises(kvpc.InputError, match="`lengths` are"):
        kvpc.select(scores, keep=1, lengths=[1.5, 2])
