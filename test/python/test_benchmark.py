"""benchmark/: what it prints and writes, and that a wrong output is found. No times are judged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import kvpc

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["--threads", "1", "--repetitions", "1", "--no-compile-peer"]


def run(program):
    """In a process of its own, for kvpress patches transformers."""
    folder = str(ROOT / "benchmark")
    package = str(Path(kvpc.__file__).resolve().parents[1])
    return subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": os.pathsep.join((folder, package))},
        capture_output=True,
        text=True,
        check=False,
    )


def benchmark(*arguments):
    return run(f"import sys, main\nsys.exit(main.main({[*arguments, *QUICK]!r}))")


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_and_json(tmp_path):
    path = tmp_path / "results.json"
    rows = ["knorm", "select random"]
    done = benchmark(*rows, "--tokens=200", "--dtypes=bf16", "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    table = [cells(line) for line in done.stdout.splitlines() if line.startswith("|")]
    head, _, *body = table
    assert [line[0] for line in body] == rows
    assert all(len(line) == len(head) for line in table)
    assert [line[head.index("outputs")] for line in body] == ["right", "right"]
    assert all(float(line[head.index("peer/ours")]) > 0 for line in body)

    report = json.loads(path.read_text())
    assert {"cpu", "cores", "load"} <= report["machine"].keys()
    [rates] = report["rates"]
    assert rates["threads"] == 1 and all(rate > 0 for rate in rates.values())
    knorm, select = report["results"]
    assert (knorm["row"], knorm["dtype"], knorm["tokens"]) == ("knorm", "bf16", 200)
    wanted = {"ours", "ours fresh", "ours in place", "kvpress", "kvpress recycled"}
    assert knorm["times"].keys() == wanted
    for time in (*knorm["times"].values(), *select["times"].values()):
        assert 0 < time["min_ms"] <= time["median_ms"] and time["turns"] >= 1
    for one in (knorm, select):
        assert one["floor_ms"] > 0 and one["best_peer_over_ours"] > 0
        assert one["wrong"] == {} and one["not_run"] == {}


# What a press might do wrong, as changes of a right Output.
FAULTS = {
    "choice": "out.tokens.copy_((out.tokens + 1).clamp(max=keys.shape[2] - 1))",
    "keys": "out.keys[0, 3, 7, 5] += 1",
    "values": "out.values[0, 0, 0] = out.values[0, 0, 1].clone()",
    "worst": """
index = keys.norm(dim=-1).topk(out.tokens.shape[2]).indices.sort(-1).values
out.tokens.copy_(index)
out.keys.copy_(keys.gather(2, index[..., None].expand_as(out.keys)))
out.values.copy_(values.gather(2, index[..., None].expand_as(out.values)))""",
}


def test_wrong_outputs_are_found():
    done = run(f"""
import kvpc, main
main.isolated = lambda function, *arguments: function(*arguments)
right = kvpc.Press.compress
for fault in {list(FAULTS.values())!r}:
    def compress(self, keys, values, **more):
        out = right(self, keys, values, **more)
        exec(fault)
        return out
    kvpc.Press.compress = compress
    options = ["knorm", "--tokens=200", "--dtypes=f32", "--no-peer", *{QUICK!r}]
    print("code", main.main(options))
""")
    lines = [line for line in done.stdout.splitlines() if line.startswith("| knorm")]
    assert len(lines) == len(FAULTS), done.stderr
    for fault, line in zip(FAULTS, lines):
        assert "WRONG: ours: " in line and "ours in place" not in line, fault
    assert done.stdout.count("code 1") == len(FAULTS)


def test_worth(tmp_path):
    """A row whole and without each optimisation: all of them right, and timed."""
    path = tmp_path / "worth.json"
    few = ["--tokens=300", "--threads=1", "--repetitions=1", "--json", str(path)]
    done = run(f"import sys, worth\nsys.exit(worth.main({['snapkv', *few]!r}))")
    assert done.returncode == 0, done.stdout + done.stderr
    head, _, row = [cells(line) for line in done.stdout.splitlines() if line.startswith("|")]
    assert row[0] == "snapkv" and row[-1] == "right" and len(row) == len(head)
    assert all(float(x) > 0 for x in row[2:-1])
    [one] = json.loads(path.read_text())["results"]
    assert {"whole", "algebra", "microkernel", "weighing", "held values"} < one["seconds"].keys()


def test_generated(tmp_path):
    """Generated scores beside their floors."""
    path = tmp_path / "generated.json"
    few = ["--count=3", "--first=4", "--tokens=300", "--threads=1", "--repetitions=1"]
    done = run(
        f"import sys\nsys.path.append({str(ROOT / 'test' / 'python')!r})\nimport generated\n"
        f"sys.exit(generated.main({[*few, '--json', str(path)]!r}))"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(path.read_text())["results"]
    assert [one["seed"] for one in results] == sorted({one["seed"] for one in results})
    assert len(results) == 3 and all(one["ratio"] > 0 and not one["wrong"] for one in results)
    assert "median" in done.stdout.splitlines()[-1]


def test_options():
    done = benchmark("nonsense")
    assert done.returncode == 2 and "no row `nonsense`" in done.stderr
    done = run("import worth\nworth.main(['select random'])")
    assert done.returncode == 2 and "no row `select random`" in done.stderr
