"""Press.compress, compress_ and scores, on presses written by hand in C."""

import threading

import fake_presses as fake
import pytest
import torch

import kvpc


def press(name, **parameters):
    return fake.module().press(name, **parameters)


def last(keep):
    return press("last", keep=keep)


def test_budgets():
    keys, values = fake.cache(tokens=10)

    def kept(**parameters):
        return press("last", **parameters).compress(keys, values).keys.shape[2]

    assert kept() == 5
    assert kept(drop=0.3) == int(10 * (1 - 0.3))
    assert kept(compression_ratio=0.9) == 1
    assert kept(keep=3) == 3 and kept(keep=99) == 10
    assert kept(budget=kvpc.keep(4)) == 4 and kept(budget=kvpc.drop(0.2)) == 8
    assert kept(drop=torch.tensor(0.25)) == 7
    for wrong in (
        {"drop": 1.0},
        {"drop": -0.1},
        {"drop": float("nan")},
        {"keep": 0},
        {"keep": 1.5},
    ):
        with pytest.raises(kvpc.ArgumentError):
            press("last", **wrong)
    with pytest.raises(kvpc.ArgumentError, match="is given twice"):
        press("last", drop=0.5, keep=3)


def test_parameters():
    assert press("window", gain=2).parameters == {
        "budget": kvpc.drop(0.5), "gain": 2, "share": 0.25, "seed": 0, "size": 4,
    }  # fmt: skip
    assert repr(press("last", keep=7)) == "last(budget=keep(7))"
    with pytest.raises(kvpc.StaticParameter, match="compile the press with `-D size=8`"):
        press("window", size=8)
    with pytest.raises(kvpc.ArgumentError, match="did you mean `gain`"):
        press("window", gian=1)
    with pytest.raises(kvpc.ArgumentError, match=r"need a value in 0\.\.10"):
        press("window", gain=11)
    with pytest.raises(kvpc.ArgumentError, match="`gain` is NaN"):
        press("window", gain=float("nan"))
    with pytest.raises(kvpc.ArgumentError, match="need a whole number"):
        press("window", seed=True)
    with pytest.raises(kvpc.ArgumentError, match="is a dict"):
        press("window", seed={})
    # None is as good as left out.
    assert press("window", gain=None, budget=None).parameters["gain"] == 1.0
    for wrong in ("a", None, 1.5, float("inf"), [2, 3]):
        with pytest.raises(kvpc.ArgumentError, match="`keep` is"):
            kvpc.keep(wrong)
    for wrong in ("a", None, [0.5]):
        with pytest.raises(kvpc.ArgumentError, match="`drop` is"):
            kvpc.drop(wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compress(dtype):
    keys, values = fake.cache(dtype=dtype)
    before = keys.clone(), values.clone()
    out = last(5).compress(keys, values)
    assert torch.equal(out.keys, keys[:, :, -5:]) and torch.equal(out.values, values[:, :, -5:])
    assert out.keys.dtype == dtype and out.channels is None
    assert out.tokens.dtype == torch.int64 and out.tokens[1, 1].tolist() == list(range(7, 12))
    assert out.lengths.tolist() == [5, 5]
    assert torch.equal(keys, before[0]) and torch.equal(values, before[1])
    assert out.keys.untyped_storage().data_ptr() != keys.untyped_storage().data_ptr()


def test_strides():
    keys, values = fake.cache(tokens=9, channels=6)
    wanted = last(4).compress(keys, values)
    other = keys.transpose(1, 2).contiguous().transpose(1, 2)
    wide = torch.zeros(2, 2, 9, 10)[..., 2:8].copy_(values)
    out = last(4).compress(other, wide)
    assert torch.equal(out.keys, wanted.keys) and torch.equal(out.values, wanted.values)
    shared = keys[:, :1].expand(-1, 2, -1, -1)
    assert torch.equal(last(4).compress(shared, values).keys[:, 1], wanted.keys[:, 0])
    with pytest.raises(kvpc.InputError, match="the channels of `keys` are not contiguous") as error:
        last(4).compress(keys.mT.contiguous().mT, values)
    assert error.value.code == "kvm-stride"


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("as_list", [True, False])
def test_padding(padding, as_list):
    keys, values = fake.cache(batch=3, tokens=8)
    lengths = [8, 0, 3]
    given = lengths if as_list else torch.tensor(lengths)
    out = press("last", drop=0.5).compress(keys, values, lengths=given, padding=padding)
    assert out.lengths.tolist() == [4, 0, 1]
    assert out.tokens[1].eq(-1).all() and out.keys[1].eq(0).all()
    token = 7 if padding == "left" else 2
    assert out.tokens[2, 0].tolist() == [token, -1, -1, -1]
    assert torch.equal(out.keys[2, :, 0], keys[2, :, token]) and out.keys[2, :, 1:].eq(0).all()


def test_counts_that_depend_on_data():
    keys, values = fake.cache(batch=2, heads=3, tokens=40, seed=3)
    out = press("positive").compress(keys, values)
    positive = keys[..., 0] > 0
    assert torch.equal(out.lengths, positive.sum(-1))
    assert out.keys.shape[2] == positive.sum(-1).max()
    for row in range(2):
        for head in range(3):
            [ids] = positive[row, head].nonzero(as_tuple=True)
            n = len(ids)
            assert out.tokens[row, head, :n].tolist() == ids.tolist()
            assert out.tokens[row, head, n:].eq(-1).all()
            assert torch.equal(out.keys[row, head, :n], keys[row, head, ids])
            assert out.keys[row, head, n:].eq(0).all()
    # What is not kept frees its memory, although the upper bound was all.
    few = keys.clone()
    few[..., 5:, 0] = -1
    out = press("positive").compress(few, values)
    assert out.keys.untyped_storage().nbytes() == out.keys.numel() * 4


def test_channels():
    keys, values = fake.cache(channels=7)
    out = press("thin").compress(keys, values)
    assert torch.equal(out.keys, keys[..., ::2]) and torch.equal(out.values, values)
    assert out.channels.shape == (2, 2, 4) and out.channels[0, 0].tolist() == [0, 2, 4, 6]
    scores, protected = press("thin").scores(keys, values)
    assert scores.shape == (2, 2, 7) and not protected.any()
    # What stays whole is not copied, in any strides; rows with padding move.
    assert out.values.data_ptr() == values.data_ptr()
    strided = values.transpose(1, 2).contiguous().transpose(1, 2)
    same = press("thin").compress(keys, strided).values
    assert same.data_ptr() == strided.data_ptr() and same.stride() == strided.stride()
    moved = press("thin").compress(keys, values, lengths=[3, keys.shape[2]]).values
    assert moved.data_ptr() != values.data_ptr()
    assert torch.equal(moved[0, :, :3], values[0, :, -3:]) and not moved[0, :, 3:].any()


def test_in_place():
    keys, values = fake.cache(batch=2, tokens=11, channels=6)
    copies = keys.clone(), values.clone()
    wanted = press("last", keep=4).compress(keys, values, lengths=[11, 2])
    version = copies[0]._version
    out = press("last", keep=4).compress_(*copies, lengths=[11, 2])
    for name in ("keys", "values", "tokens", "lengths"):
        assert torch.equal(getattr(out, name), getattr(wanted, name)), name
    assert out.keys.untyped_storage().data_ptr() == copies[0].untyped_storage().data_ptr()
    assert copies[0]._version > version
    copies = keys.clone(), values.clone()
    thin = press("thin").compress_(*copies)
    assert torch.equal(thin.keys, keys[..., ::2])
    many = press("positive").compress_(keys.clone(), values.clone())
    assert torch.equal(many.keys, press("positive").compress(keys, values).keys)


def test_in_place_wants_its_own_memory():
    keys, values = fake.cache()
    with pytest.raises(kvpc.InputError, match="share memory"):
        last(4).compress_(keys, keys)
    with pytest.raises(kvpc.InputError, match="several entries of `values`"):
        last(4).compress_(keys, values[:, :1].expand(-1, 2, -1, -1))
    both = torch.randn(2, 2, 12, 8)
    out = last(4).compress_(both[..., :4], both[..., 4:])  # interleaved, but apart
    assert out.keys.shape == (2, 2, 4, 4)
    with pytest.raises(kvpc.Unsupported, match="detach it"):
        last(4).compress_(keys.clone().requires_grad_(), values)
    with pytest.raises(kvpc.InputError, match="`values` is a view that changes values"):
        last(4).compress_(keys, torch._neg_view(values))
    with pytest.raises(kvpc.ArgumentError, match="`scale` is True; need a number"):
        last(4).compress(keys, values, scale=True)


def test_results_have_no_gradient():
    keys, values = fake.cache()
    leaf = keys.clone().requires_grad_()
    wanted = last(4).compress(keys, values)
    out = last(4).compress(leaf * 1, values.clone().requires_grad_())
    assert torch.equal(out.keys, wanted.keys) and not out.keys.requires_grad
    assert not out.values.requires_grad
    queries = torch.randn(2, 4, 4, 4, requires_grad=True)
    assert not press("window").scores(leaf, values, queries=queries)[0].requires_grad
    assert not press("thin").compress(leaf, values.requires_grad_()).values.requires_grad


@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_in_place_refuses_entries_that_share_memory(backend):
    buffer = torch.randn(2, 2, 13, 16)
    flat = torch.randn(4096)
    row = torch.randn(2, 2, 12, 8)
    for keys, values, match in (
        (buffer[:, :, :12], buffer[:, :, 1:], "share memory"),
        (buffer[..., :9], buffer[..., 7:], "share memory"),
        (buffer[..., :8], buffer[:, :, :, 7:15], "share memory"),
        (buffer[:1], buffer[:1].view(torch.float32), "share memory"),
        (flat[:2048].view(2, 2, 32, 16), flat[2047:4095].view(2, 2, 32, 16), "share memory"),
        (flat.as_strided((2, 2, 12, 8), (400, 200, 7, 1)), row, "several entries of `keys`"),
        (row, row[:, :1].expand(-1, 2, -1, -1), "several entries of `values`"),
        (row, row.clone().requires_grad_(), "detach it"),
        (row, row, "share memory"),
    ):
        before = keys.clone(), values.clone()
        with pytest.raises(kvpc.Error, match=match):
            last(4).compress_(keys, values, backend=backend)
        assert torch.equal(keys, before[0]) and torch.equal(values, before[1])


def test_in_place_takes_views_that_share_none():
    def views(buffer):
        yield buffer[..., :8], buffer[..., 8:]
        yield buffer[:, :, ::2], buffer[:, :, 1::2]
        yield buffer[:, ::2], buffer[:, 1::2]
        yield buffer[:, :, :6], buffer[:, :, 6:]
        packed = buffer.view(2, 12, 4, 16).transpose(1, 2)  # [batch, token, head, channel]
        yield packed[:, :2], packed[:, 2:]
        yield buffer[:1], buffer[1:]
        yield buffer.reshape(-1)[:96].as_strided((1, 2, 3, 8), (0, 48, 16, 1)), buffer[1:, :2, :3]

    for n in range(7):
        buffer = torch.randn(2, 4, 12, 16)
        wanted = last(2).compress(*list(views(buffer))[n])
        out = last(2).compress_(*list(views(buffer))[n])
        assert torch.equal(out.keys, wanted.keys) and torch.equal(out.values, wanted.values)


def test_scores():
    keys, values = fake.cache(tokens=6)
    scores, protected = press("last").scores(keys, values, lengths=[6, 2])
    assert scores.dtype == torch.float32 and protected.dtype == torch.bool
    assert scores[0, 1].tolist() == [0, 1, 2, 3, 4, 5]
    assert scores[1].isnan().sum() == 8 and scores[1, 0, 4:].tolist() == [0, 1]
    assert protected[..., -1].all() and protected.sum() == 4
    with pytest.raises(kvpc.Unsupported, match="selects by a condition"):
        press("positive").scores(keys, values)


def test_queries():
    keys, values = fake.cache(batch=1, tokens=6)
    keys[..., 0] = 1
    queries = torch.randn(1, 6, 6, 4)  # 2 heads, 3 groups
    for length, used in ((6, 4), (3, 3), (1, 1)):
        scores, _ = press("window").scores(keys, values, queries=queries, lengths=[length])
        wanted = queries[0, :, -used:, 0].reshape(2, -1).sum(-1)
        torch.testing.assert_close(scores[0, :, -1], wanted)
    few = queries[:, :, -3:]
    with pytest.raises(
        kvpc.InputError, match=r"has 3 queries; `window` needs the last 4 \(used at"
    ):
        press("window").compress(keys, values, queries=few)
    press("window").compress(keys, values, queries=few, lengths=[3])  # the row is no longer
    with pytest.raises(kvpc.MissingInput, match=r"needs `queries` \(used at window.kv:3:13\)"):
        press("window").compress(keys, values)
    with pytest.raises(kvpc.ExtraInput, match="`last` does not use `queries`; leave it out"):
        last(3).compress(keys, values, queries=queries)


def everything(batch=1):
    keys, values = fake.cache(batch=batch, tokens=5)
    frequencies = torch.tensor([1.0, 0.25])
    return keys, values, {
        "hidden": torch.randn(batch, 7, 3),
        "unrotated_queries": torch.randn(batch, 4, 3, 4),
        "output_weight": torch.randn(3, 16),
        "rope": kvpc.Rope(frequencies, attention_scaling=2.0),
    }  # fmt: skip


@pytest.mark.parametrize("split", [False, True])
def test_everything_arrives(split):
    keys, values, inputs = everything()
    wanted = inputs["hidden"][0, -1, 0] + inputs["unrotated_queries"][0, 3, -1, 0]
    wanted = wanted + inputs["output_weight"][2, 15] + 3.0 + 0.25 + 2.0 + 70 + 4
    if split:
        weight = inputs["output_weight"].unflatten(1, (2, 2, 4)).permute(1, 2, 3, 0)
        inputs["output_weight"] = weight
        inputs["rope"] = {
            "inverse_frequencies": torch.tensor([1, 0.25], dtype=torch.float64),
            "attention_scaling": 2.0, "layout": "interleaved", "width": 4,
        }  # fmt: skip
    scores, _ = press("everything").scores(keys, values, scale=3.0, seen=70, **inputs)
    torch.testing.assert_close(scores[0, 1, -1], wanted)
    positions = torch.arange(5)[None] + 10
    moved, _ = press("everything").scores(
        keys, values, scale=3.0, seen=[70], original_positions=positions, **inputs
    )
    torch.testing.assert_close(moved[0, 1, -1], wanted + 10)
    positions = positions[:, None].expand(1, 2, 5).clone()
    positions[0, 1] += 5
    moved, _ = press("everything").scores(
        keys, values, scale=3.0, seen=70, original_positions=positions, **inputs
    )
    torch.testing.assert_close(moved[0, 1, -1], wanted + 15)


def test_weights(tmp_path):
    from safetensors.torch import save_file

    keys, values = fake.cache(tokens=10)
    whole = torch.randn(3, 2, 4, dtype=torch.float64)
    save_file({"filter": whole, "other": whole + 1}, tmp_path / "w.safetensors")
    for given in (whole, whole.bfloat16().double(), tmp_path / "w.safetensors"):
        one = press("weighted", filter=given, ratios=[0.1, 0.5, 0.75])
        tensor = given if isinstance(given, torch.Tensor) else whole
        for layer, kept in ((0, 9), (1, 5), (2, 2)):
            out = one.compress(keys, values, layer=layer, layers=3)
            assert out.keys.shape[2] == kept
            scores, _ = one.scores(keys, values, layer=layer, layers=3)
            wanted = torch.einsum("bhtc,hc->bht", keys, tensor[layer].float())
            torch.testing.assert_close(scores, wanted, rtol=1e-5, atol=1e-5)
    assert press("weighted", filter=whole, ratios=0.5).compress(
        keys, values, layer=2, layers=3
    ).keys.shape[2] == 5  # fmt: skip
    with pytest.raises(kvpc.InputError, match="`filter` has 3 layers; the call is of layer 0 of 1"):
        one.compress(keys, values)
    with pytest.raises(kvpc.MissingInput, match=r"`filter` over \[layer, head, channel\]"):
        press("weighted", ratios=0.5)
    with pytest.raises(kvpc.ArgumentError, match="needs `ratios`"):
        press("weighted", filter=whole)
    with pytest.raises(kvpc.InputError, match=r"has shape \[2, 4\]; need \[layer, head, channel\]"):
        press("weighted", filter=whole[0], ratios=0.5)
    with pytest.raises(kvpc.ArgumentError, match="holds NaN"):
        press("weighted", filter=whole * float("nan"), ratios=0.5)
    with pytest.raises(kvpc.ArgumentError, match="cannot read"):
        press("weighted", filter=str(tmp_path / "none"), ratios=0.5)
    wrong = press("weighted", filter=torch.randn(1, 2, 5), ratios=0.5)
    with pytest.raises(kvpc.InputError, match=r"need \[head 2, channel 4\] at a layer"):
        wrong.compress(keys, values)


def test_vmap_is_refused():
    keys, values = (x.unsqueeze(0) for x in fake.cache(tokens=8))
    last, weights = press("last", keep=3), torch.zeros(1, 2, 4)
    for one in (
        lambda k, v: last.compress(k, v).keys,
        lambda k, v: last.compress_(k, v).keys,
        lambda k, v: last.scores(k, v)[0],
        lambda k, v: last.compress(k, v, backend="reference").keys,
        lambda k, v: last.compress(keys[0], values[0], lengths=v[:1, 0, 0, 0].long()).keys,
        lambda k, v: kvpc.select(v, keep=2),
    ):
        with pytest.raises(kvpc.Unsupported, match="is batched by torch") as caught:
            torch.func.vmap(one)(keys, values)
        assert caught.value.code == "kvm-unsupported"
    with pytest.raises(kvpc.Unsupported, match="`filter` is batched"):
        torch.func.vmap(lambda w: press("weighted", filter=w, ratios=0.5))(weights)


@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_followers_of_other_calls(backend):
    module = kvpc.compile(
        "press m() = reuse(uniform(1, [head, token]) |> topk(keep(2)), layers = 2)",
        dtypes="f32", channels=0, targets="x86-64-v3",
    )  # fmt: skip
    keys, values = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4)
    state, layers = kvpc.State(), {"layers": 4, "backend": backend}
    positions = torch.tensor([[0, 1, 2, 5, 9]])
    moved = {"original_positions": positions, "seen": 12}

    def call(layer, **given):
        return module.press().compress(keys, values, layer=layer, state=state, **layers | given)

    def refused(text, **given):
        with pytest.raises(kvpc.StateError, match=text):
            call(1, **given)

    first = call(0)
    assert torch.equal(call(1).tokens, first.tokens)
    assert torch.equal(
        call(1, original_positions=torch.arange(5)[None].expand(1, 5)).tokens, first.tokens
    )
    refused("`original_positions`", **moved)
    refused("`layers`", layers=2)
    call(0, **moved)
    call(1, **moved)
    call(1, **moved | {"original_positions": positions[:, None].expand(1, 2, 5)})
    refused("`original_positions`", original_positions=positions + 1, seen=12)
    refused("`original_positions`")


def test_reuse():
    keys, values = fake.cache(tokens=8)
    shared = press("shared", keep=3)
    assert shared.reuse == 2 and shared.inputs == {"queries": 1}
    assert shared.inputs_at(0) == {"queries": 1} and shared.inputs_at(1) == {}
    for sign in (1.0, -1.0):
        state = kvpc.State()
        queries = torch.full((2, 2, 1, 4), sign)
        for layer in (0, 2):
            leader = shared.compress(
                keys, values, queries=queries, layer=layer, layers=4, state=state
            )
            follower = shared.compress(keys, values, layer=layer + 1, layers=4, state=state)
            assert torch.equal(leader.tokens, follower.tokens)
            assert leader.tokens[0, 0, 0] == (0 if sign > 0 else 5)
    with pytest.raises(kvpc.StateError, match="layer 1 takes the choice of layer 0, but no state"):
        shared.compress(keys, values, layer=1, layers=4)
    with pytest.raises(kvpc.StateError, match="no state is given"):
        shared.compress(keys, values, layer=1, layers=4, state=kvpc.State())
    with pytest.raises(kvpc.StateError, match="the state is of layer 2"):
        shared.compress(keys, values, layer=1, layers=4, state=state)
    with pytest.raises(kvpc.StateError, match="of another press"):
        shared.compress(*fake.cache(), layer=3, layers=4, state=other_state())
    shared.compress(keys, values, queries=queries)  # one layer alone needs no state


def other_state():
    state = kvpc.State()
    make = fake.maker()
    header = make.header(presses=[p for p in make.presses() if p["name"] == "shared"])
    module = kvpc.load(fake.build("only-shared", header))
    keys, values = fake.cache()
    queries = torch.ones(2, 2, 1, 4)
    module.press().compress(keys, values, queries=queries, layer=2, layers=4, state=state)
    return state


def test_errors_leave_inputs_alone():
    keys, values, inputs = everything()
    tensors = [keys, values, *(x for x in inputs.values() if isinstance(x, torch.Tensor))]
    before = [x.clone() for x in tensors]
    one = press("everything")
    for change in (
        {"hidden": None},
        {"hidden": inputs["hidden"][:, :2]},
        {"hidden": inputs["hidden"].bfloat16()},
        {"unrotated_queries": inputs["unrotated_queries"][..., :3]},
        {"output_weight": inputs["output_weight"][:, :7]},
        {"rope": None},
        {"queries": inputs["unrotated_queries"]},
        {"lengths": [6]},
        {"lengths": [1, 2]},
        {"lengths": torch.tensor([1.5])},
        {"seen": [2]},
        {"scale": float("nan")},
        {"padding": "top"},
        {"layer": 3},
        {"original_positions": torch.zeros(1, 4, dtype=torch.int64)},
        {"original_positions": torch.zeros(1, 5)},
        {"backend": "magic"},
    ):
        for call in (one.compress, one.compress_):
            with pytest.raises(kvpc.Error):
                call(keys, values, **{**inputs, **change})
            assert all(torch.equal(a, b) for a, b in zip(tensors, before)), change
    with pytest.raises(kvpc.RequireError, match="`gain` may not be 7"):
        press("window", gain=7).compress_(
            keys, values, queries=inputs["unrotated_queries"][:, :, -4:].repeat(1, 1, 2, 1)
        )
    assert torch.equal(keys, before[0])


def test_wrong_tensors():
    keys, values = fake.cache()
    for wrong, words in (
        ((keys[0], values), r"need \[batch, head, token, channel\]"),
        ((keys, values[:, :, :-1]), "the batch, heads and tokens of `keys`"),
        ((keys.double(), values.double()), "`keys` are f64"),
        ((keys, values.bfloat16()), "`values` is bf16, `keys` are f32"),
        (
            (keys.half(), values.half()),
            "`f32`, `bf16`; convert the cache, or compile the press with `--dtype=f16`",
        ),
        ((keys[:, :, :0], values[:, :, :0]), "at least one token"),
        ((keys.to_sparse(), values), "not a dense tensor"),
        ((keys, 3), "`values` is a int; need a torch tensor"),
    ):
        with pytest.raises(kvpc.InputError, match=words):
            last(3).compress(*wrong)


def test_head_sizes():
    make = fake.maker()
    only = make.press("last", [make.budget()], variants=make.variants("last", sizes=(64, 128)))
    one = kvpc.load(fake.build("sizes", make.header(presses=[only]))).press()
    one.compress(*fake.cache(channels=64))
    with pytest.raises(
        kvpc.InputError, match="have 80 channels; the module has code for `64`, `128`"
    ):
        one.compress(*fake.cache(channels=80))


def test_threads_share_a_press():
    keys, values = fake.cache(tokens=200, channels=16)
    one = last(50)
    wanted = one.compress(keys, values)
    failures = []

    def work():
        for _ in range(20):
            out = one.compress(keys, values)
            if not (torch.equal(out.keys, wanted.keys) and torch.equal(out.tokens, wanted.tokens)):
                failures.append(out)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_thread_counts_change_nothing():
    keys, values = fake.cache(tokens=100)
    before = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            results.append(press("positive").compress(keys, values))
        assert all(torch.equal(r.keys, results[0].keys) for r in results)
    finally:
        torch.set_num_threads(before)


def test_arguments_of_wrong_kinds():
    keys, values = fake.cache(tokens=10)
    one = last(3)
    wrong = {
        "lengths": ["ab", [1.5, 2.0], [True, False], 2**70, [2**70, 1], True],
        "seen": ["x", [20.5, 20.0], 2**70],
        "scale": ["x", float("nan"), float("inf"), 2**2000],
        "layer": ["a", 0.5, True, 2**70],
        "layers": ["a", None],
        "original_positions": [
            [1, 2],
            torch.arange(10)[None].expand(2, 10) - 5,
            torch.arange(10).flip(0)[None].expand(2, 10),
            torch.zeros(2, 10, dtype=torch.int64),
            torch.arange(10)[None].expand(2, 10) + 1,
        ],
        "rope": [
            3,
            {"frequencies": torch.ones(4)},
            {"inverse_frequencies": [1.0]},
            {"inverse_frequencies": torch.ones(2), "attention_scaling": "x"},
            {"inverse_frequencies": torch.ones(2), "attention_scaling": float("nan")},
            torch.tensor([1.0, float("nan")]),
        ],
        "state": [3],
        "padding": ["both"],
        "backend": ["gpu"],
    }
    for name, all_of_them in wrong.items():
        for value in all_of_them:
            with pytest.raises(kvpc.Error, match=name.split("_")[0]) as caught:
                one.compress(keys, values, **{name: value})
            assert caught.value.code and f"[{caught.value.code}]" in str(caught.value)
    # Padding has positions of no meaning; of real entries they ascend below `seen`.
    positions = torch.tensor([[7, 7, 0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7, 8, 30]])
    one.compress(keys, values, lengths=[8, 10], seen=31, original_positions=positions)
    with pytest.raises(
        kvpc.InputError, match=r"30 after 8 in row 1; need .* 0\.\.29, below `seen`"
    ):
        one.compress(keys, values, lengths=[8, 10], seen=30, original_positions=positions)
    with pytest.raises(kvpc.InputError, match=r"`keys` are on meta.* to score"):
        one.scores(keys.to("meta"), values.to("meta"))
    for backend in ("compiled", "reference"):
        with pytest.raises(kvpc.InputError, match="`values` is on meta, `keys` are on cpu"):
            one.compress(keys, values.to("meta"), backend=backend)
    with pytest.raises(kvpc.InputError, match="`keys` are on meta"):
        one.compress(keys.to("meta"), values.to("meta"), backend="reference")


def test_tensors_and_lengths_of_wrong_layouts():
    keys, values = fake.cache(tokens=20)
    one = last(5)
    nested = torch.nested.nested_tensor([keys[0, 0], keys[0, 0, :3]])
    for wrong in (nested, keys.to_sparse()):
        with pytest.raises(kvpc.InputError, match="not a dense tensor"):
            one.compress(wrong, values)
    with pytest.raises(kvpc.InputError, match="one a row"):
        one.compress(keys, values, lengths=[[3]] * keys.shape[0])
