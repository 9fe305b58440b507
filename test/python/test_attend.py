"""torch.ops.kvpc.attend against attention written out in f64, one head at a time."""

import pytest
import torch

from kvpc import library
from kvpc.attend import attend
from kvpc.cache import Prefix


def softmax_of_all(queries, heads, keys, values, mask, scale):
    """heads: for every batch row and head (keys, values, channels) of what the prompt left."""
    batch, query_heads, count, _ = queries.shape
    groups, tail = query_heads // keys.shape[1], keys.shape[2]
    causal = torch.ones(count, tail, dtype=torch.bool).tril(tail - count)
    out = torch.zeros(batch, count, query_heads, values.shape[3], dtype=torch.float64)
    for b in range(batch):
        seen = causal if mask is None else mask[b if mask.shape[0] > 1 else 0, 0]
        for h in range(query_heads):
            old_keys, old_values, channels = heads[b][h // groups]
            q = queries[b, h].double()
            old = (q if channels is None else q[:, channels]) @ old_keys.double().T
            new = (q @ keys[b, h // groups].double().T).masked_fill(~seen, -1e300)
            weights = (torch.cat([old, new], 1) * scale).softmax(-1)
            out[b, :, h] = weights @ torch.cat([old_values, values[b, h // groups]]).double()
    return out


def case(sizes, counts, dtype=torch.float32, pruned=0, seed=0):
    """Random tensors; counts [row][head]: what is kept; as a cache holds them, and head by head."""
    batch, query_heads, heads, count, tail, width, out = sizes
    torch.manual_seed(seed)
    queries = torch.randn(batch, query_heads, count, width).to(dtype)
    keys = torch.randn(batch, heads, tail, width).to(dtype)
    values = torch.randn(batch, heads, tail, out).to(dtype)
    room = max(n for row in counts for n in row)
    old_keys = torch.randn(batch, heads, room, width - pruned).to(dtype)
    old_values = torch.randn(batch, heads, room, out).to(dtype)
    tokens = torch.arange(room).expand(batch, heads, room).clone()
    channels = None
    if pruned:
        order = torch.rand(batch, heads, width).argsort(-1)
        channels = order[:, :, pruned:].sort(-1).values
    single = []
    for b, row in enumerate(counts):
        single.append([])
        for h, n in enumerate(row):
            tokens[b, h, n:] = -1
            own = channels[b, h] if pruned else None
            single[b].append((old_keys[b, h, :n], old_values[b, h, :n], own))
    return (queries, Prefix(old_keys, old_values, tokens, channels), keys, values), single


EVEN, RAGGED = [[600, 600], [600, 600]], [[1300, 0], [1, 513]]
SIZES = {
    "decode": (2, 6, 2, 1, 3, 64, 64),
    "odd": (2, 2, 2, 5, 9, 7, 5),
    "wide": (2, 2, 2, 3, 700, 80, 128),
    "long": (2, 4, 2, 70, 90, 16, 16),  # more query rows than are taken at once
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pruned", [0, 3])
@pytest.mark.parametrize("counts", [EVEN, RAGGED], ids=["even", "ragged"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_right(sizes, counts, pruned, dtype, masked):
    library.ops()
    given, single = case(sizes, counts, dtype, pruned)
    mask = torch.rand(2, 1, sizes[3], sizes[4]) > 0.4 if masked else None
    if masked:
        mask[..., 0] = True
    want = softmax_of_all(given[0], single, *given[2:], mask, 0.2)
    got = attend(*given, mask, 0.2)
    assert got.dtype == dtype
    bound = 1e-5 if dtype == torch.float32 else 1e-2
    assert (got.double() - want).abs().max() < bound
    if masked:  # the same mask for all rows, with other strides
        one = mask[:1].transpose(2, 3).contiguous().transpose(2, 3)
        want = softmax_of_all(given[0], single, *given[2:], one, 0.2)
        assert (attend(*given, one, 0.2).double() - want).abs().max() < bound


def test_beams_share_a_prefix():
    library.ops()
    (queries, prefix, keys, values), single = case((4, 4, 2, 1, 3, 16, 16), [[9, 70]] * 4, pruned=3)
    for order in ([0, 0, 1, 1], [1, 0, 0, 3], [2, 2, 2, 2]):
        heads = [single[row] for row in order]
        want = softmax_of_all(queries, heads, keys, values, None, 0.3)
        got = attend(queries, prefix.select(order), keys, values, None, 0.3)
        assert (got - want).abs().max() < 1e-5


def test_the_same_bits_on_any_number_of_threads():
    """And whoever else is in the batch."""
    library.ops()
    given, _ = case((2, 4, 2, 2, 5, 64, 64), [[5000, 700], [90, 3000]])
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.append(attend(*given, None, 0.1))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results)
    queries, prefix, keys, values = given
    for row in (0, 1):
        own = slice(row, row + 1)
        alone = attend(queries[own], prefix.select([row]), keys[own], values[own], None, 0.1)
        assert torch.equal(alone, results[0][own])


def test_large_logits_and_rows_that_see_nothing():
    """Softmax neither overflows nor divides by nothing."""
    library.ops()
    given, _ = case((1, 2, 2, 1, 3, 16, 16), [[70, 0]])
    queries, prefix, keys, values = given
    mask = torch.zeros(1, 1, 1, 3, dtype=torch.bool)
    got = attend(queries * 1e4, prefix, keys, values, mask, 1.0)
    best = (queries[0, 0] @ prefix.head(0, 0)[0].T).argmax()
    assert torch.equal(got[0, 0, 0], prefix.head(0, 0)[1][best])
    assert torch.equal(got[0, 0, 1], torch.zeros(16))  # its prefix is empty, its tail hidden


def test_compiled_and_traced():
    library.ops()
    given, _ = case(SIZES["decode"], RAGGED, pruned=3)
    queries, prefix, keys, values = given

    def call(queries, keys, values):
        return attend(queries, prefix, keys, values, None, 0.2)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(queries, keys, values), call(queries, keys, values))


@pytest.mark.parametrize(
    "change, why",
    [
        ({"queries": torch.zeros(2, 5, 1, 64)}, "`queries` has shape .*a multiple of 2 heads"),
        ({"keys": torch.zeros(2, 2, 3, 9)}, "`keys` has shape"),
        ({"values": torch.zeros(2, 2, 4, 64)}, "`values` has shape"),
        ({"offsets": torch.tensor([0, 7, 3, 9, 1814])}, "`offsets` do not ascend"),
        ({"offsets": torch.tensor([0, 7, 8, 9, 10])}, "`offsets` do not ascend"),
        ({"offsets": None}, r"need \[row, head, entry, channel\]"),
        ({"channels": torch.full((2, 2, 61), 64)}, "`channels` lie outside"),
        ({"channels": None}, "`channels` do not say which 61 of 64"),
        ({"rows": torch.tensor([0, 2])}, "`rows` has shape"),
        ({"mask": torch.zeros(2, 1, 1, 4, dtype=torch.bool)}, "`mask` has shape"),
        ({"mask": torch.zeros(2, 1, 1, 3)}, "`mask` needs to be of bools"),
        ({"queries": torch.zeros(2, 6, 1, 64, dtype=torch.float64)}, "neither f32, bf16 nor f16"),
        ({"keys": torch.zeros(2, 2, 3, 64).bfloat16()}, "different dtypes"),
    ],
)
def test_refused(change, why):
    (queries, prefix, keys, values), _ = case(SIZES["decode"], RAGGED, pruned=3)
    given = {"queries": queries, "keys": keys, "values": values, "mask": None}
    given |= {"offsets": prefix.offsets, "channels": prefix.channels, "rows": None} | change
    names = ("offsets", "channels", "rows", "keys", "values", "mask")
    with pytest.raises(RuntimeError, match=why):
        library.ops().attend(
            given["queries"], prefix.keys, prefix.values, *(given[n] for n in names), 0.2
        )


def test_the_rest_goes_the_plain_way():
    """Gradients, and dtypes that the operator does not take."""
    library.ops()
    for dtype in (torch.float64,):
        given, single = case((2, 4, 2, 3, 5, 16, 16), [[9, 70], [0, 4]], dtype, pruned=3)
        want = softmax_of_all(given[0], single, *given[2:], None, 0.2)
        assert (attend(*given, None, 0.2) - want).abs().max() < 1e-2
    given, _ = case((2, 4, 2, 3, 5, 16, 16), [[9, 70], [0, 4]])
    given[0].requires_grad_()
    attend(*given, None, 0.2).sum().backward()
    assert given[0].grad.abs().max() > 0
