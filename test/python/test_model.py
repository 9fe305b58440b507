"""Compiled presses of the library in models, against the uncompressed model with explicit masks."""

import pytest
import torch
from model_oracle import Recorded, close, oracle_logits
from safetensors.torch import save_file
from small_models import greedy, make, steps, text
from transformers import DynamicCache

import kvpc

# duo_attention without the ranking: some heads keep everything, the others their ends.
RETRIEVAL = """
press retrieval(pattern: float[layer, head]) =
  mask(pattern >= 0.5 or position < 4 or position >= length - 16)
"""


def quick(program, defines=None, **arguments):
    """A press for these models alone: compiled once, not for every machine, dtype and head size."""
    module = kvpc.compile(program, defines=defines or {}, dtypes="f32", channels=0)
    return module.press(program if program in module.presses else None, **arguments)


@pytest.fixture(scope="module")
def presses(tmp_path_factory):
    """Small enough for prompts of a hundred tokens."""
    pattern = tmp_path_factory.mktemp("pattern") / "pattern.safetensors"
    save_file({"pattern": torch.tensor([[1.0, 0], [0, 0], [0, 1], [1, 1]])}, pattern)
    return {
        "knorm": quick("knorm", drop=0.5),
        "snapkv": quick("snapkv", {"window": 8}, keep=30),
        "chunkkv_reuse": quick("chunkkv_reuse", drop=0.5),
        "pyramidkv": quick("pyramidkv", {"window": 8}, drop=0.5),
        "think": quick("think", ratio=0.25),
        "chunk_snap_think": quick("chunk_snap_think", drop=0.5, thin=0.5),
        "simlayerkv": quick("simlayerkv", {"last": 4}, threshold=0.33, recent=24, initial=4),
        "per_layer": quick("per_layer", {"inner": "snapkv(8)"}, ratios=[0.1, 0.5, 0.9, 0.3]),
        "duo_attention": quick("duo_attention", pattern=str(pattern), ratio=0.5, sink=4, recent=16),
        "retrieval": quick(RETRIEVAL, pattern=str(pattern)),
        # heads compete for one budget, and keep different counts
        "adakv": quick("adakv", {"inner": "snapkv(8)"}, drop=0.7, alpha=0.1),
        "criticalkv": quick("criticalkv", {"inner": "snapkv(8)"}, drop=0.5),
        "critical_adakv": quick("critical_adakv", {"inner": "snapkv(8)"}, drop=0.5),
        # heads keep what lies above a threshold: different counts
        "dms": quick("dms", {"inner": "snapkv(8)", "window": 4}, threshold=0.008),
    }


NAMES = ["knorm", "snapkv", "chunkkv_reuse", "pyramidkv", "think", "chunk_snap_think", "dms"]
NAMES += ["adakv", "critical_adakv"]
FAMILIES = ["Mistral", "Qwen2", "Qwen3", "Phi3", "Gemma3"]


@pytest.mark.parametrize(
    "family, name",
    [
        ("Llama", name)
        for name in [*NAMES, "simlayerkv", "per_layer", "retrieval", "duo_attention", "criticalkv"]
    ]
    + [(family, name) for family in FAMILIES for name in ("chunk_snap_think", "critical_adakv")],
)
def test_small_models(presses, family, name):
    model, press, ids = make(family), Recorded(presses[name]), text(120)
    with press(model):
        out = greedy(model, ids, tokens=65)
    want = oracle_logits(model, press.log, out.sequences[:, :-1], 120)[:, 119:]
    close(torch.stack(out.logits, 1), want)
    kept = {len(t) for rows in press.log.values() for row in rows for t in row.tokens}
    assert min(kept) < 120 or name == "think"
    counts = [layer.lengths[0].tolist() for layer in sealed(out)]
    if name in ("retrieval", "duo_attention"):
        assert counts == [[120, 20], [20, 20], [20, 120], [120, 120]]
    if name == "per_layer":
        assert counts == [[108] * 2, [60] * 2, [11] * 2, [84] * 2]
    if name == "adakv":
        assert all(sum(row) == 72 and min(row) >= 3 for row in counts)
        assert any(row[0] != row[1] for row in counts)
    if name == "simlayerkv":  # some layers are lazy
        assert {len(set(row)) for row in counts} == {1} and len({row[0] for row in counts}) == 2
    if name == "dms":
        assert len(kept) > 3 and any(layer.offsets is not None for layer in sealed(out))


def sealed(out):
    """What the layers of generate()'s cache keep of the prompt."""
    return [layer.prefix for layer in out.past_key_values.layers if hasattr(layer, "prefix")]


@pytest.mark.parametrize("name", NAMES)
def test_padded_rows_equal_the_rows_alone(presses, name):
    model, press, ids = make(), presses[name], text(120, 3)
    mask = torch.ones_like(ids)
    mask[0, :25], mask[2, :113] = 0, 0  # the last is shorter than any window
    with press(model):
        batch = torch.stack(greedy(model, ids * mask, mask).logits, 1)
        for i in range(3):
            alone = greedy(model, ids[i : i + 1, mask[i].bool()])
            close(batch[i : i + 1], torch.stack(alone.logits, 1))


@pytest.mark.parametrize("name", ["snapkv", "chunk_snap_think"])
@torch.no_grad()
def test_right_padding_keeps_the_same(presses, name):
    model, ids = make(), text(120, 2)
    mask = torch.ones_like(ids)
    mask[1, 90:] = 0
    both, alone = Recorded(presses[name]), Recorded(presses[name])
    with both(model):
        model(ids, attention_mask=mask)
    with alone(model):
        model(ids[1:, :90])
    for layer, rows in both.log.items():
        for a, b in zip(rows[1].tokens, alone.log[layer][0].tokens):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["dms", "chunk_snap_think"])
@torch.no_grad()
def test_smollm2(smollm2, presses, name):
    """The real model: prefill, 64 tokens of decode inside and outside of the `with`."""
    model, tokenizer = smollm2
    press, cache = Recorded(presses[name]), DynamicCache()
    words = "A press says which entries of a cache survive. The rest is forgotten, and so is its memory. "
    ids = tokenizer(words * 14, return_tensors="pt").input_ids[:, :264]
    with press(model):
        first = model(ids[:, :200], past_key_values=cache, logits_to_keep=1).logits
        inside = steps(model, cache, ids[:, 200:232])
    outside = steps(model, cache, ids[:, 232:])
    want = oracle_logits(model, press.log, ids, 200)[:, 199:]
    close(torch.cat([first, inside, outside], 1), want)
    counts = [layer.prefix.lengths for layer in cache.layers]
    assert ids.shape[1] == 264 and sum(int(c.sum()) for c in counts) <= 100 * 3 * 30
    assert any(c.min() < c.max() for c in counts) == (name == "dms")
