"""benchmark/memory: what it counts, and its table. Sizes of a process are judged roughly."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

import kvpc

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = [str(ROOT / "benchmark"), str(ROOT / "scripts")]
sys.path[:0] = FOLDERS
import footprint  # noqa: E402
import memory  # noqa: E402
import memory_case  # noqa: E402
import prefill  # noqa: E402
from pairs import PAIRS, Given  # noqa: E402

MB = 1 << 20


def benchmark(*arguments):
    """In a process of its own, as its cases are."""
    package = str(Path(kvpc.__file__).resolve().parents[1])
    return subprocess.run(
        [sys.executable, ROOT / "benchmark/memory.py", *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join((*FOLDERS, package))},
        capture_output=True,
        text=True,
        check=False,
    )


def test_phases():
    phases = footprint.Phases()
    held, gone = torch.ones(64 * MB // 4), torch.ones(96 * MB // 4)
    del gone
    phases.end("both")
    more = torch.ones(32 * MB // 4)
    phases.end("more")
    near = 4 * MB
    assert abs(phases.residents["both"] - 64 * MB) < near
    assert abs(phases.peaks["both"] - 160 * MB) < near
    assert abs(phases.residents["more"] - 96 * MB) < near
    assert abs(phases.peaks["more"] - 96 * MB) < near  # not the 160 of before
    del held, more


def test_cache_bytes():
    cache, module = DynamicCache(), torch.nn.Linear(1, 1)
    whole = torch.zeros(1, 2, 100, 8)
    cache.update(torch.zeros(1, 2, 10, 8), torch.zeros(1, 2, 10, 8), 0)
    cache.layers[0].keys = whole[:, :, :10]  # a view keeps all of it
    assert footprint.cache_bytes(cache) == 4 * (whole.numel() + 160)
    module.masked_key_indices = list(torch.zeros(3, 5, dtype=torch.int64).unbind())
    # three views of one storage
    assert footprint.cache_bytes(cache, [module]) == 4 * (whole.numel() + 160) + 8 * 15


def test_a_built_cache_is_the_hooks():
    """Layer by layer without a prefill: what the press keeps of the given keys and values."""
    model, ids = memory_case.load("small", 200)
    press = PAIRS["snap_think"].ours(Given(0.5, 4, 200), "f32", 64)
    side = memory_case.Ours(model, press)
    keys, values = memory_case.entries(model, 200)
    queries = torch.randn(1, 4, 64, 64)
    side._captured = lambda *_: {"queries": queries}
    cache = side.build([keys, values])
    for number, layer in enumerate(cache.layers):
        out = press.compress(keys, values, queries=queries, layer=number, layers=4)
        assert torch.equal(layer.prefix.keys, out.keys)
        assert torch.equal(layer.prefix.values, out.values)
        assert layer.prefix.keys.data_ptr() != keys.data_ptr()
    side.decode(ids, cache, 3)
    assert cache.get_seq_length() == 203


def test_prefill(monkeypatch, capsys, tmp_path):
    """What a press adds to a prefill: its table, and the turns of each side."""
    threads, path = torch.get_num_threads(), tmp_path / "prefill.json"
    monkeypatch.setattr(prefill, "isolated", prefill.measure)
    options = ["--model=small", "--tokens=150", "--repetitions=2", "--no-peer", f"--json={path}"]
    try:
        assert prefill.main(["knorm", *options]) == 0
    finally:
        torch.set_num_threads(threads)
    head, _, row = [x for x in capsys.readouterr().out.splitlines() if x.startswith("| ")]
    assert row.startswith("| knorm | kvpc | ") and row.count("|") == head.count("|")
    [one] = json.loads(path.read_text())["results"]
    assert len(one["seconds"]) == len(one["without"]) == 2
    assert all(wall > 0 and used > 0 for wall, used in one["seconds"] + one["without"])


def test_table_and_json(tmp_path):
    path = tmp_path / "results.json"
    done = benchmark(
        "snapkv", "--models=small", "--tokens=300", "--decoded=2", "--threads=1", f"--json={path}"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [row[:2] for row in table[2:]] == [
        ["| none", "-"], ["| snapkv", "kvpc"], ["| snapkv", "kvpress"],
    ]  # fmt: skip
    assert len({len(row) for row in table}) == 1
    none, ours, peer = json.loads(path.read_text())["results"]
    entry, layers, heads = 2 * 64 * 4, 4, 2
    assert none["cache"]["prompt"] == 300 * entry * heads * layers
    # Positions of kept tokens are int32.
    assert ours["cache"]["prompt"] == 150 * (entry + 4) * heads * layers
    assert peer["cache"]["prompt"] == 150 * entry * heads * layers
    # The prompt's end yields a token, which is read before the second.
    assert ours["cache"]["decoding"] == ours["cache"]["prompt"] + 2 * entry * heads * layers
    for one in (none, ours, peer):
        for phase in ("prompt", "decoding"):
            assert one["resident"][phase] > 0 and one["peak"][phase] > 0


def test_options(capsys):
    with pytest.raises(SystemExit):
        memory.main(["nonsense"])
    assert "no `nonsense`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, lacking",
    [
        ("qfilter", "filters of the model"),
        ("expected_attention_stats", "statistics of the model's queries"),
        ("observed_attention", "attention weights on kvpress' side"),
    ],
)
def test_presses_that_need_runs_of_the_model(capsys, name, lacking):
    with pytest.raises(SystemExit):
        memory.main([name])
    assert f"`{name}` needs {lacking}" in capsys.readouterr().err
    assert bool(PAIRS[name].unmet(peer=False)) == (name != "observed_attention")
