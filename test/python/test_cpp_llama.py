"""The C++ program of runtime/torch/example/llama.cpp against the model hook: the same model, the
same press, so the same tokens."""

import functools
import json
import subprocess

import pytest
import torch
from small_models import greedy, make, text

import kvpc
from kvpc import library
from kvpc.cache import storage_bytes

PRESSES = {
    "chunk_snap_think": {},
    "dms": {"inner": "snapkv(8)", "threshold": 0.008, "window": 4},  # heads keep different counts
}


def run(*words):
    folder = library.compiler().parent
    return subprocess.run(
        [str(folder / "kvpc_llama"), *map(str, words)], capture_output=True, text=True
    )


@pytest.mark.parametrize("name", PRESSES)
def test_same_tokens(tmp_path, name):
    model, ids = make(tie_word_embeddings=False), text(120)
    model.save_pretrained(tmp_path)
    module = kvpc.compile(name, defines=PRESSES[name])
    with module.press(name)(model):
        out = greedy(model, ids, tokens=64)
    done = run(tmp_path, module.path, 64, *ids[0].tolist())
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert [int(line.split()[0]) for line in lines] == out.sequences[0, 120:].tolist()
    got = torch.tensor([float(line.split()[1]) for line in lines])
    want = torch.stack(out.logits, 1)[0].max(-1).values
    assert (got - want).abs().max() < 1e-4
    # its cache: that of Python less positions and offsets
    said = int(last.split()[1])
    kept = [x for layer in out.past_key_values.layers for x in layer.prefix.tensors()[2:]]
    held = storage_bytes(out.past_key_values)
    assert said == held - sum(x.untyped_storage().nbytes() for x in kept)
    assert said < 0.8 * 4 * 2 * (120 + 63) * 16 * 2 * 4


def test_says_what_is_wrong(tmp_path):
    done = run(tmp_path, "none.kvm", 1, 1)
    assert done.returncode == 1 and "kvpc_llama: error: " in done.stderr


@functools.cache
def quick():
    return kvpc.compile("knorm", dtypes="f32", channels=0, optimization="O0").path


def saved(tmp_path, name="Llama", edit=None, **options):
    model = make(name, num_hidden_layers=1, **options)
    model.save_pretrained(tmp_path)
    if edit is not None:
        file = tmp_path / "config.json"
        config = json.loads(file.read_text())
        edit(config)
        file.write_text(json.dumps(config))


def older(config):
    """As files before transformers 5 have it."""
    rope = config.pop("rope_parameters", None) or config.pop("rope_scaling")
    config["rope_theta"] = rope.pop("rope_theta", 10000.0)
    config["rope_scaling"] = rope


@pytest.mark.parametrize(
    "why, options",
    [
        ("tensor `model.layers.0.self_attn.k_proj.bias`", {"attention_bias": True}),
        ("tensor `model.layers.0.mlp.down_proj.bias`", {"mlp_bias": True}),
        ("`hidden_act` is `gelu`; need `silu`", {"hidden_act": "gelu"}),
        ("of type `qwen2`; need `llama`", {"name": "Qwen2"}),
        ("of type `qwen3`; need `llama`", {"name": "Qwen3"}),
        ("`sliding_window` is set", {"name": "Mistral", "sliding_window": 8}),
        ("is of type `llama3`; need `default`", {"rope": "llama3"}),
        ("is of type `llama3`; need `default`", {"rope": "llama3", "edit": older}),
        (
            "embedding is partial",
            {"edit": lambda config: config.update(partial_rotary_factor=0.5)},
        ),
        ("no tensor `model.layers.1.", {"edit": lambda config: config.update(num_hidden_layers=2)}),
        ("config.json: ", {"edit": lambda config: config.pop("hidden_size")}),
    ],
)
def test_other_models_refused(tmp_path, why, options):
    """Rather than decoded wrong."""
    saved(tmp_path, **options)
    done = run(tmp_path, quick(), 1, 5, 6)
    assert done.returncode == 1 and why in done.stderr and not done.stdout


@pytest.mark.parametrize("edit", [lambda config: config.pop("rope_parameters", None), older])
def test_older_configurations(tmp_path, edit):
    """What they leave out has its defaults."""
    saved(tmp_path / "new"), saved(tmp_path / "old", edit=edit)
    one, other = (run(tmp_path / x, quick(), 3, 5, 6, 7) for x in ("new", "old"))
    assert one.returncode == other.returncode == 0 and one.stdout == other.stdout
