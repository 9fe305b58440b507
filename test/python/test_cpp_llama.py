"""The C++ program of runtime/torch/example/llama.cpp against the model hook: the same model, the
same press, so the same tokens."""

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
