"""Memory of compressed caches. `benchmark/memory --help` says what can be chosen; docs/Performance.md
what is printed."""

import argparse
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import machine
from pairs import PAIRS

CASE = Path(__file__).with_name("memory_case.py")
ROWS = ("knorm", "snapkv", "pyramidkv", "per_layer", "think", "chunk_snap_think", "dms")

# Tokens of the prompt; whether its cache is built, not read by the model; tokens decoded after it.
MODELS = {
    "smollm2": (8000, False, 32),
    "smollm2-shape": (8000, False, 32),
    "llama": (16000, True, 8),
    "small": (300, False, 4),
}
TITLES = {
    "smollm2": "SmolLM2-135M-Instruct, f32",
    "smollm2-shape": "SmolLM2-135M's shape, random weights, f32",
    "llama": "8 layers of Llama-3-8B's shape, random weights, bf16",
    "small": "a random model of 4 small layers, f32",
}


def run(case):
    """The result of a case, from a process of its own."""
    done = subprocess.run(
        [sys.executable, CASE, json.dumps(case)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {**case, "failed": (done.stderr.strip().splitlines() or ["killed"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


COLUMNS = (
    ("cache", "cache", "prompt"),
    ("resident", "resident", "prompt"),
    ("peak", "peak", "prompt"),
    ("decoded: cache", "cache", "decoding"),
    ("resident", "resident", "decoding"),
    ("peak", "peak", "decoding"),
)
HEADER = (
    f"| press | of | {' | '.join(title for title, *_ in COLUMNS)} |\n"
    f"| --- | --- |{' --- |' * len(COLUMNS)}"
)


def line(one):
    cells = [one["press"], one["side"]]
    if "failed" in one:
        return f"| {' | '.join(cells)} | {one['failed']} |"
    cells += [f"{one[key][phase] / 1e6:.1f}" for _, key, phase in COLUMNS]
    return f"| {' | '.join(cells)} |"


def describe_versions():
    return {name: version(name) for name in ("torch", "transformers", "kvpress")}


def options_of(arguments):
    parser = argparse.ArgumentParser(
        prog="benchmark/memory",
        description="Memory of a cache after the prompt and after decoding, with no press, ours, "
        "and kvpress'; each case in a process of its own.",
    )
    parser.add_argument(
        "rows",
        nargs="*",
        metavar="PRESS",
        help=f"of {', '.join(PAIRS)} (default: {', '.join(ROWS)})",
    )
    add = parser.add_argument
    add("--models", default="smollm2,llama", help=f"of {', '.join(MODELS)} (default: %(default)s)")
    add("--tokens", type=int, help="of the prompt (default: 8000 for smollm2, 16000 for llama)")
    add("--drop", type=float, default=0.5, help="what presses drop (default: %(default)s)")
    add("--decoded", type=int, help="tokens after the prompt (default: 32 and 8)")
    add("--threads", type=int, default=2, help="(default: %(default)s)")
    add(
        "--built",
        action=argparse.BooleanOptionalAction,
        help="random keys and values instead of a prefill (default: for llama)",
    )
    add("--no-peer", dest="peer", action="store_false", help="no kvpress")
    add(
        "--json",
        metavar="FILE",
        help="write all results there, after every case; those that it has are not measured again",
    )
    add(
        "--time-chunk",
        type=int,
        metavar="TOKENS",
        help="only time a prefill of so many tokens, and say what the whole prompt would take",
    )
    options = parser.parse_args(arguments)
    options.models = options.models.split(",")
    for known, names in ((PAIRS, options.rows), (MODELS, options.models)):
        for name in names:
            if name not in known:
                parser.error(f"no `{name}`; there are {', '.join(known)}")
    for name in options.rows:
        if reason := PAIRS[name].unmet(options.peer):
            parser.error(reason)
    return options


def cases_of(options, model):
    tokens, built, decoded = MODELS[model]
    case = {
        "model": model,
        "tokens": options.tokens or tokens,
        "built": built if options.built is None else options.built,
        "decoded": options.decoded or decoded,
        "drop": options.drop,
        "threads": options.threads,
    }
    yield {**case, "press": "none", "side": "-"}
    for press in options.rows or ROWS:
        yield {**case, "press": press, "side": "kvpc"}
        if options.peer:
            yield {**case, "press": press, "side": "kvpress"}


def title(case):
    how = "random keys and values, no prefill" if case["built"] else "prefill by the model"
    return (
        f"\n{TITLES[case['model']]}: {case['tokens']:,} tokens ({how}), drop {case['drop']}, "
        f"{case['decoded']} decoded; {case['threads']} threads; MB of 10^6 bytes\n"
    )


def say_chunk(one, whole):
    minutes = one["seconds"] * whole / one["chunk"] / 60
    print(
        f"{TITLES[one['model']]}: a prefill of {one['chunk']} tokens in {one['seconds']:.1f} s; "
        f"{whole:,} at that rate in {minutes:.0f} min, attention to earlier chunks not counted"
    )


def main(arguments=None):
    options = options_of(arguments)
    report = {"machine": machine.describe(), "versions": describe_versions(), "results": []}
    if options.json and Path(options.json).exists():
        had = json.loads(Path(options.json).read_text())["results"]
        report["results"] = [one for one in had if "failed" not in one]

    def add(case):
        for one in report["results"]:
            if case.items() <= one.items():
                return one
        report["results"].append(run(case))
        if options.json:
            Path(options.json).write_text(json.dumps(report, indent=1))
        return report["results"][-1]

    for part in ("machine", "versions"):
        print("; ".join(f"{k}: {v}" for k, v in report[part].items()))
    for model in options.models:
        first, *rest = cases_of(options, model)
        if options.time_chunk:
            say_chunk(add({**first, "chunk": options.time_chunk}), first["tokens"])
            continue
        print(f"{title(first)}\n{HEADER}", flush=True)
        for case in (first, *rest):
            print(line(add(case)), flush=True)
    return 1 if any("failed" in one for one in report["results"]) else 0


if __name__ == "__main__":
    sys.exit(main())
