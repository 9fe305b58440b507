"""benchmark/quality: its prompts, its shortcut, its statements. No press is judged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers.models.llama.modeling_llama import eager_attention_forward

import kvpc

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = [str(ROOT / "benchmark"), str(ROOT / "scripts")]
sys.path[:0] = FOLDERS
import memory_case  # noqa: E402
import quality  # noqa: E402
import quality_compare as compare  # noqa: E402
import quality_prompts  # noqa: E402
import quality_sides  # noqa: E402
from pairs import PAIRS, Given  # noqa: E402


def test_prompts(smollm2):
    _, tokenizer = smollm2
    prompts = quality_prompts.make(tokenizer, [500, 900], [0.1, 0.5, 0.9], 20)
    assert sorted((p.length, p.depth) for p in prompts) == [
        (length, depth) for length in (500, 900) for depth in (0.1, 0.5, 0.9)
    ]
    story = quality_prompts.STORY.read_text()
    for prompt in prompts:
        assert len(prompt.context) == prompt.length and len(prompt.after) == 20
        text = tokenizer.decode(prompt.context)
        number = tokenizer.decode(prompt.answer)
        head, needle, tail = text.partition(f"is {number}.\n\n")
        assert needle and number.isdecimal()
        assert abs(len(head) / len(text) - prompt.depth) < 0.3
        # What follows the context follows it in the story.
        assert tail[-60:] + tokenizer.decode(prompt.after) in story
        question = tokenizer.decode(prompt.question)
        assert question.endswith(" is ") and number not in question
    assert len({tuple(p.answer) for p in prompts}) == len(prompts)


@pytest.fixture(scope="module")
def captured():
    """Our side of a small model, a prompt, and what it captured of it."""
    model, ids = memory_case.load("small", 250)
    side = quality_sides.Ours(model, None)
    side.calibrated = {0.5: 1.0}, None, None  # random keys draw even attention
    return side, ids, side.capture(ids[0].tolist(), **quality_sides.CAPTURED)


# Of each kind that asks for something else: one, all or unrotated queries, output weights.
ASKING = (
    "snap_think", "dms", "adakv", "critical_adakv", "expected_attention", "observed_attention",
)  # fmt: skip


@pytest.mark.parametrize("name", ASKING)
def test_compressing_captured_inputs_is_what_the_hook_does(captured, name):
    side, ids, layers = captured
    pair, given = PAIRS[name], side.given(0.5, ids.shape[1])
    cache = side.compressed(layers, pair, given)
    with side.press(pair, given)(side.model), torch.no_grad():
        wanted = side.model(ids).past_key_values
    for layer, other in zip(cache.layers, wanted.layers):
        assert torch.equal(layer.prefix.tokens, other.prefix.tokens)
        assert torch.equal(layer.prefix.keys, other.prefix.keys)


def test_a_branch_leaves_the_cache_as_it_was(captured):
    side, ids, layers = captured
    for name in ("snap_think", "dms"):
        cache = side.compressed(layers, PAIRS[name], side.given(0.5, ids.shape[1]))
        with torch.no_grad():
            found = side.branch([1, 2, 3], 3, cache, ids.shape[1])
            again = side.branch([1, 2, 3], 3, cache, ids.shape[1])
        assert torch.equal(found, again)


def test_attention_weights_are_those_of_the_model(captured):
    """What the model's own eager attention holds."""
    side, ids, layers = captured
    module, one = side.modules[2], layers[2]
    made = quality_sides.attention_weights(module, one)
    causal = torch.ones(ids.shape[1], ids.shape[1]).tril().log()
    _, held = eager_attention_forward(
        module, one["queries"], one["keys"], one["values"], causal, module.scaling
    )
    torch.testing.assert_close(made, held, rtol=1e-5, atol=1e-7)


def results(difference, spread, prompts=12):
    noise = torch.randn(prompts, generator=torch.Generator().manual_seed(1)).tolist()
    for number in range(prompts):
        for drop in (0.25, 0.5):
            base = {"press": "p", "drop": drop, "length": number, "depth": 0.5}
            ours = {"logp": -1 + difference + spread * noise[number], "nll": 2.0, "kl": 0.1}
            yield {**base, "side": "kvpc", **ours}
            yield {**base, "side": "kvpress", "logp": -1, "nll": 2.0, "kl": 0.1}


@pytest.mark.parametrize(
    "difference, spread, verdict",
    [
        (0, 0.3, "equal within noise"),
        (0.1, 0.3, "equal within noise"),
        (5e-4, 0, "equal within noise"),  # rounding: always there, and never seen
        (0.5, 0.3, "kvpc is better"),
        (-0.02, 0.001, "kvpress is better"),
    ],
)
def test_statements(difference, spread, verdict):
    said = compare.statement(list(results(difference, spread)), "p", "logp")
    assert said["verdict"] == verdict and said["prompts"] == 12
    few = compare.statement(list(results(difference, spread, 3)), "p", "logp")
    assert few["verdict"] == "too few prompts"


def test_less_is_better_of_losses():
    rows = [one | {"nll": -one["logp"]} for one in results(0.5, 0.1)]
    assert compare.statement(rows, "p", "nll")["verdict"] == "kvpc is better"


def benchmark(*arguments):
    package = str(Path(kvpc.__file__).resolve().parents[1])
    return subprocess.run(
        [sys.executable, ROOT / "benchmark/quality.py", *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join((*FOLDERS, package))},
        capture_output=True,
        text=True,
        check=False,
    )


def test_curves_of_heads():
    """What lukv is given drops what was asked for, and never all of a head."""
    curve = Given(0.5, layers=30, tokens=100, heads=3).curve
    percent = torch.arange(1, 100) / 100
    torch.testing.assert_close(curve.mean((1, 2)), percent)
    assert curve.min() > 0 and curve.max() < 1
    assert (curve.std((1, 2)) > 0.1 * torch.minimum(percent, 1 - percent)).all()


# The second is given a window, the third runs that this prompt fills, the last a curve.
PRESSES = ("knorm", "finch_score", "non_causal_attention", "lukv")


def test_presses_against_kvpress(tmp_path):
    path = tmp_path / "results.json"
    options = ["--drops=0.5", "--lengths=256", "--depths=0.5", "--after=8", f"--json={path}"]
    done = benchmark(*PRESSES, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith("| knorm | 0.5 |")]
    assert len(table) == 1 and "50% / 50%" in table[0]
    rows = json.loads(path.read_text())["results"]
    assert [(one["side"], one["press"]) for one in rows] == [
        (side, press) for side in ("kvpc", "kvpress") for press in ("none", *PRESSES)
    ]
    mine, peers = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    for one, peer in zip(mine, peers):
        for measure in ("logp", "nll", "kl"):
            # A near tie may fall otherwise.
            assert one[measure] == pytest.approx(peer[measure], abs=1e-2), one["press"]
    assert [one["press"] for one in mine if one["kl"] == 0] == ["none"]
    assert mine[1]["kl"] > 0.01
    with pytest.raises(SystemExit, match="other prompts"):
        quality.begun(path, {"lengths": [300]})
