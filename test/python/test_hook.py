"""Logits of a model with a press: prompt, decode, padding, prompts in pieces. The press is a test
oracle."""

import pytest
import torch
from model_oracle import close, compressed, oracle_logits
from press_oracle import OraclePress
from small_models import ROPE, greedy, make, steps, text
from transformers import DynamicCache

from kvpc.hook import CROP_REMOVES, UNTIL_FINISH, attach

torch.set_num_threads(1)
FAMILIES = ["Llama", "Mistral", "Qwen2", "Qwen3", "Phi3", "Gemma3"]
KINDS = ["snapkv", "pyramid", "ragged", "chunk", "think", "all"]
LLAMA = [("Llama", kind) for kind in KINDS]
OTHERS = [(name, "all") for name in FAMILIES[1:]]


@pytest.mark.parametrize("impl", ["sdpa", "eager"])
@pytest.mark.parametrize("name, kind", LLAMA + OTHERS)
@torch.no_grad()
def test_decode_by_hand(name, kind, impl):
    model, press, cache, ids = make(name, impl), OraclePress(kind), DynamicCache(), text(104)
    with press(model):
        first = model(ids[:, :40], past_key_values=cache).logits
        inside = steps(model, cache, ids[:, 40:70])
    outside = steps(model, cache, ids[:, 70:])  # after leaving: the cache still works
    want = oracle_logits(model, press.log, ids, 40)
    close(torch.cat([first, inside, outside], 1), want)
    # Gemma's sliding layers are left alone: its press sees layers 0 and 1 of 2
    layers = 2 if name == "Gemma3" else 4
    assert cache.get_seq_length() == 104 and list(press.log) == list(range(layers))
    assert press.layers == {layers}
    assert want.std() > 0.05


@pytest.mark.parametrize("name, kind", LLAMA + OTHERS)
def test_generate(name, kind):
    model, press, ids = make(name), OraclePress(kind), text(40)
    with press(model):
        out = greedy(model, ids)
    want = oracle_logits(model, press.log, out.sequences[:, :-1], 40)[:, 39:]
    close(torch.stack(out.logits, 1), want)
    assert (want.argmax(-1) == out.sequences[:, 40:]).all()


def test_sampling():
    """What is drawn comes from the oracle's distribution: the same seed, the same tokens."""
    model, press, ids = make(), OraclePress("all"), text(40, 2)
    options = {"do_sample": True, "temperature": 1.7, "top_k": 0, "max_new_tokens": 20}
    with press(model):
        torch.manual_seed(3)
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            output_logits=True,
            return_dict_in_generate=True,
            **options,
        )
    want = oracle_logits(model, press.log, out.sequences[:, :-1], 40)[:, 39:]
    close(torch.stack(out.logits, 1), want)
    torch.manual_seed(3)
    for step in range(20):
        drawn = torch.multinomial((want[:, step] / 1.7).softmax(-1), 1)[:, 0]
        assert torch.equal(drawn, out.sequences[:, 40 + step])
    assert (want.argmax(-1) != out.sequences[:, 40:]).any()


@pytest.mark.parametrize("name, kind", LLAMA + [("Gemma3", "all")])
def test_left_padding(name, kind):
    """Each row equals the row alone; one compress call serves the batch."""
    model, press, ids = make(name), OraclePress(kind), text(40, 3)
    mask = torch.ones_like(ids)
    mask[0, :13], mask[2, :35] = 0, 0
    with press(model):
        out = greedy(model, ids * mask, mask)
        assert press.calls == len(press.log)
        alone = [greedy(model, ids[i : i + 1, mask[i].bool()]) for i in range(3)]
    got = torch.stack(out.logits, 1)
    for i, one in enumerate(alone):
        close(got[i : i + 1], torch.stack(one.logits, 1))
    full = torch.cat([mask, torch.ones(3, 19, dtype=int)], 1)
    log = {layer: rows[:3] for layer, rows in press.log.items()}
    close(got, oracle_logits(model, log, out.sequences[:, :-1], 40, full)[:, 39:])


@torch.no_grad()
def test_right_padding():
    model, press, ids = make(), OraclePress("all", unrotated=True, hidden=True), text(40, 2)
    mask = torch.ones_like(ids)
    mask[1, 28:] = 0
    with press(model):
        model(ids, attention_mask=mask, past_key_values=DynamicCache())
        model(ids[1:, :28])
    batch, alone = press.seen[:4], press.seen[4:]
    for (_, q, u), (_, x, y) in zip(batch, alone):
        close(q[1:], x), close(u[1:], y, 1e-5)
    for both, one in zip(press.hidden[:4], press.hidden[4:]):
        close(both[1:, -28:], one)
    for _, row, one in press.log.values():
        assert [x.tolist() for x in row.tokens] == [x.tolist() for x in one.tokens]
        assert torch.equal(row.channels, one.channels)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "name, kind", [("Llama", "snapkv"), ("Llama", "chunk"), ("Llama", "all"), ("Gemma3", "all")]
)
@torch.no_grad()
def test_second_prompt(name, kind, padded):
    model, press, cache, ids = make(name), OraclePress(kind), DynamicCache(), text(70, 2)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :9], mask[1, 40:44], mask[0, 55:57] = 0, 0, 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    got = []
    with press(model):
        for a, b in [(0, 40), (40, 55), (55, 62), (62, 63), (63, 70)]:
            pos = positions[:, a:b]
            out = model(
                ids[:, a:b], past_key_values=cache, attention_mask=mask[:, :b], position_ids=pos
            )
            got.append(out.logits)
    got, want = torch.cat(got, 1), oracle_logits(model, press.log, ids, 40, mask)
    close(got[mask.bool()], want[mask.bool()])
    assert all(len(rows) == 2 for rows in press.log.values())  # not compressed again


@pytest.mark.parametrize("kind", ["chunk", "all"])
@torch.no_grad()
def test_in_plain_torch(monkeypatch, kind):
    """What the operator does not take, here f64, is as right; and a long second prompt does not hold
    the logits of all its queries at once."""
    monkeypatch.setattr("kvpc.attend.LOGITS_AT_ONCE", 1000)
    model, press, cache, ids = make().double(), OraclePress(kind), DynamicCache(), text(70, 2)
    mask = torch.ones_like(ids)
    mask[0, :9], mask[0, 55:57] = 0, 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    got = []
    with press(model):
        for a, b in [(0, 40), (40, 69), (69, 70)]:
            options = {"attention_mask": mask[:, :b], "position_ids": positions[:, a:b]}
            got.append(model(ids[:, a:b], past_key_values=cache, **options).logits)
    want = oracle_logits(model, press.log, ids, 40, mask)
    close(torch.cat(got, 1)[mask.bool()], want[mask.bool()], 1e-9)


# generate() with only the new tokens: from transformers 5.23 on
@pytest.mark.parametrize("way", ["whole", "new only"] if CROP_REMOVES else ["whole"])
def test_second_prompt_generate(way):
    model, press, ids = make(), OraclePress("all"), text(70)
    with press(model):
        one = greedy(model, ids[:, :40], tokens=5)
    seq = torch.cat([one.sequences, ids[:, :12]], 1)
    new = seq[:, one.past_key_values.get_seq_length() :]
    given = seq if way == "whole" else new
    two = greedy(model, given, torch.ones_like(seq), tokens=5, past_key_values=one.past_key_values)
    whole = torch.cat([seq, two.sequences[:, -5:]], 1)[:, :-1]
    close(
        torch.stack(two.logits, 1),
        oracle_logits(model, press.log, whole, 40)[:, seq.shape[1] - 1 :],
    )


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "name, kind, chunk", [("Llama", "snapkv", 7), ("Llama", "all", 39), ("Gemma3", "all", 13)]
)
def test_chunked_generate(name, kind, chunk, padded):
    model, ids = make(name), text(40, 2)
    mask = torch.ones_like(ids)
    mask[0, : 9 * padded] = 0
    a, b = (OraclePress(kind, unrotated=True, hidden=True) for _ in range(2))
    with a(model):
        whole = greedy(model, ids, mask, 17)
    with b(model):
        cache = DynamicCache(config=model.config)
        parts = greedy(model, ids, mask, 17, prefill_chunk_size=chunk, past_key_values=cache)
    assert a.calls == b.calls == len(a.log)
    close(torch.stack(whole.logits, 1), torch.stack(parts.logits, 1))
    for (_, q, u), (_, x, y) in zip(a.seen, b.seen):
        close(q, x), close(u, y)


@pytest.mark.parametrize("filled", ["compressed", "whole"])
@torch.no_grad()
def test_chunked_guidance(filled):
    """The cache that is given ends where the chunks do, guidance's own where its prompt does."""
    if not CROP_REMOVES:
        return  # generate() in chunks into a cache that holds something: from 5.23 on
    model, ids, negative, out = make(), text(50), text(30, seed=5), []
    options = {"guidance_scale": 1.5, "negative_prompt_ids": negative}
    options["negative_prompt_attention_mask"] = torch.ones_like(negative)
    for chunk in ({}, {"prefill_chunk_size": 7}):
        press, cache = OraclePress(), DynamicCache(config=model.config)
        if filled == "whole":
            model(ids[:, :40], past_key_values=cache)
        with press(model):
            if filled == "compressed":
                model(ids[:, :40], past_key_values=cache)
            out.append(
                greedy(model, ids, tokens=25, past_key_values=cache, **options, **chunk).logits
            )
        want = [30] if filled == "whole" else [40, 30]
        assert [row.length for row in press.log[0]] == want
    close(*(torch.stack(logits) for logits in out))


@pytest.mark.parametrize("told", [True, False])
@torch.no_grad()
def test_chunked_manual(told):
    model, press, cache, ids = (
        make("Qwen3"),
        OraclePress("all", unrotated=True),
        DynamicCache(),
        text(60),
    )
    with attach(model, press, prompt_tokens=40 if told else UNTIL_FINISH) as hook:
        got = [
            model(c, past_key_values=cache).logits for c in ids[:, :40].split(13, 1)
        ]  # 13, 13, 13, 1
        if not told:
            assert not press.log
            hook.finish(cache)
        got.append(steps(model, cache, ids[:, 40:]))
    close(torch.cat(got, 1), oracle_logits(model, press.log, ids, 40))


@pytest.mark.parametrize(
    "name, rope",
    [("Llama", rope) for rope in (None, *ROPE)]
    + [("Qwen3", None), ("Phi3", None), ("Gemma3", None)],
)
@torch.no_grad()
def test_unrotated(name, rope):
    """Queries before RoPE, and keys that a press turns back by the `rope` it is given, are those
    that the projections made. Phi-3 rotates half of its channels, Gemma 3 has two tables."""
    model, ids = make(name, rope=rope), text(40)
    press, queries, keys = OraclePress(unrotated=True, rope=True), {}, {}

    def catch(into, layer, begin, heads):
        def hook(module, args, out):
            if name == "Phi3":  # a slice of the fused projection
                out = out[..., begin : begin + 16 * heads]
            out = out.view(1, 40, heads, 16) if out.dim() == 3 else out
            into[layer] = out if out.shape[1] == heads else out.transpose(1, 2)

        return hook

    normed = {"Gemma3": "q_norm k_norm", "Qwen3": "q_norm k_norm", "Phi3": "qkv_proj qkv_proj"}
    of_queries, of_keys = normed.get(name, "q_proj k_proj").split()
    for i, layer in enumerate(model.model.layers):
        for part, *rest in ((of_queries, queries, i, 0, 4), (of_keys, keys, i, 64, 2)):
            getattr(layer.self_attn, part).register_forward_hook(catch(*rest))
    with press(model):
        model(ids)
    assert press.seen
    for number, rotated, plain in press.seen:
        close(plain, queries[compressed(model)[number]][:, :, -8:], 1e-5)
        assert (rotated - plain).abs().max() > 0.01
    for number, (rotated, told) in enumerate(press.ropes):
        assert told["layout"] == "half" and told["width"] == (8 if name == "Phi3" else 16)
        angles = torch.arange(40.0)[:, None] * told["inverse_frequencies"].repeat(2)
        cos, sin = (f(angles) * told["attention_scaling"] for f in (torch.cos, torch.sin))
        a, b = rotated[..., : told["width"]].chunk(2, -1)
        back = (rotated[..., : told["width"]] * cos + torch.cat([b, -a], -1) * sin) / (
            cos**2 + sin**2
        )
        want = keys[compressed(model)[number]]
        close(back, want[..., : told["width"]], 1e-5)
        assert torch.equal(rotated[..., told["width"] :], want[..., told["width"] :])


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_caches(dtype):
    """Rounds no worse than the model does by itself."""
    model, press, cache, ids = make().to(dtype), OraclePress("all"), DynamicCache(), text(60)
    with press(model):
        model(ids[:, :40], past_key_values=cache)
        got = steps(model, cache, ids[:, 40:])
    assert got.dtype == cache.layers[0].prefix.keys.dtype == dtype
    plain = model(ids).logits
    error = (plain - model.float()(ids).logits).std()
    assert (got - oracle_logits(model, press.log, ids, 40)[:, 40:]).std() < 1.5 * error


def test_one_state_per_prompt():
    model, press = make(), OraclePress()
    with press(model):
        greedy(model, text(30), tokens=3)
        greedy(model, text(30), tokens=3)
    first, second = press.states[:4], press.states[4:]
    assert (
        len({id(s) for s in first}) == len({id(s) for s in second}) == 1
        and first[0] is not second[0]
    )
