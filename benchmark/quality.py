"""What presses cost in answers. `benchmark/quality --help` says what can be chosen; docs/Quality.md
what is printed."""

import argparse
import json
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import machine
import quality_compare as compare
import quality_sides as sides
from pairs import PAIRS

# What tells one result from another.
IDENTITY = ("side", "length", "depth", "press", "drop")


def numbers(kind):
    return lambda text: [kind(x) for x in text.split(",")]


def options_of(arguments):
    parser = argparse.ArgumentParser(
        prog="benchmark/quality",
        description="What presses leave of SmolLM2's answers: a needle in a haystack, and the "
        "perplexity of what follows; ours and kvpress' on the same captured caches.",
    )
    parser.add_argument(
        "rows", nargs="*", metavar="PRESS", help=f"all by default: {', '.join(PAIRS)}"
    )
    add = parser.add_argument
    add("--drops", type=numbers(float), default="0.25,0.5,0.75", help="(default: %(default)s)")
    add(
        "--lengths",
        type=numbers(int),
        default="600,1200,2400",
        help="tokens of prompts (default: %(default)s)",
    )
    add(
        "--depths",
        type=numbers(float),
        default="0.1,0.3,0.5,0.7,0.9",
        help="where needles are (default: %(default)s)",
    )
    add("--after", type=int, default=32, help="tokens after a prompt (default: %(default)s)")
    add("--threads", type=int, default=1, help="of each side (default: %(default)s)")
    add("--no-peer", dest="peer", action="store_false", help="no kvpress")
    add(
        "--json",
        metavar="FILE",
        help="write all results there, after every prompt; what it has of the same prompts is not "
        "measured again",
    )
    add("--read", metavar="FILE", help="measure nothing; print the tables of such a file")
    options = parser.parse_args(arguments)
    for name in options.rows:
        if name not in PAIRS:
            parser.error(f"no press `{name}`; there are {', '.join(PAIRS)}")
    return options


def measure(options, report, save):
    """Adds to report["results"], one dict for each prompt, side, press and drop."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="kvpc-quality-"))
        pools = {
            side: stack.enter_context(
                ProcessPoolExecutor(1, get_context("spawn"), sides.start, (side, options.threads))
            )
            for side in ("kvpc", "kvpress")[: 1 + options.peer]
        }
        for pool in pools.values():
            pool.submit(sides.prepare, None)  # so that all load at once
        ours = pools["kvpc"]
        prompts = ours.submit(
            sides.prompts, options.lengths, options.depths, options.after
        ).result()
        calibrated = ours.submit(sides.calibrate, options.drops).result()
        report["thresholds"] = calibrated[0]
        for pool in pools.values():
            pool.submit(sides.prepare, calibrated).result()
        start = time.monotonic()
        have = {tuple(one[key] for key in IDENTITY) for one in report["results"]}
        for number, prompt in enumerate(prompts, 1):
            at = prompt.length, prompt.depth
            wanted = {
                side: [
                    (press, drop)
                    for press in options.rows
                    for drop in options.drops
                    if (side, *at, press, drop) not in have
                ]
                for side in pools
            }
            if not any(wanted.values()):
                continue
            path = Path(folder) / "captured.safetensors"
            ours.submit(sides.captured, prompt.context, path).result()
            waiting = {
                side: pool.submit(sides.results, path, prompt, wanted[side])
                for side, pool in pools.items()
            }
            for side, future in waiting.items():
                for one in future.result():
                    if (side, *at, one["press"], one["drop"]) not in have:
                        report["results"].append(
                            {"side": side, "length": prompt.length, "depth": prompt.depth, **one}
                        )
            path.unlink()
            save()
            minutes = (time.monotonic() - start) / 60
            print(f"prompt {number} of {len(prompts)}: {minutes:.1f} min", file=sys.stderr)


def begun(path, chosen):
    """The results of a run that was broken off, or had other presses or drops."""
    if not path or not Path(path).exists():
        return []
    report = json.loads(Path(path).read_text())
    if report["options"] != chosen:
        raise SystemExit(f"`{path}` is of a run with other prompts: {report['options']}")
    return [one for one in report["results"] if "failed" not in one]


def main(arguments=None):
    options = options_of(arguments)
    if options.read:
        report = json.loads(Path(options.read).read_text())
    else:
        options.rows = options.rows or list(PAIRS)
        chosen = {key: getattr(options, key) for key in ("lengths", "depths", "after")}
        report = {
            "machine": machine.describe(),
            "versions": {name: version(name) for name in ("torch", "transformers", "kvpress")},
            "options": chosen,
            "results": begun(options.json, chosen),
        }

        def save():
            report["statements"] = compare.statements(report["results"])
            if options.json:
                Path(options.json).write_text(json.dumps(report, indent=1))

        measure(options, report, save)
    for part in ("machine", "versions", "options"):
        print("; ".join(f"{k}: {v}" for k, v in report[part].items()))
    print(f"\n{compare.results_table(report['results'])}")
    if any(one["side"] == "kvpress" for one in report["results"]):
        print(f"\n{compare.statements_table(compare.statements(report['results']))}")
    return 1 if any("failed" in one for one in report["results"]) else 0


if __name__ == "__main__":
    sys.exit(main())
