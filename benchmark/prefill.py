"""What a press adds to a prefill. `benchmark/prefill --help` says what can be chosen;
docs/Performance.md what is printed."""

import argparse
import json
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import machine
from pairs import PAIRS

ROWS = ("knorm", "chunk_snap_think")
MODELS = ("smollm2", "smollm2-shape", "llama", "small")
SIDES = ("kvpc", "kvpress")


def measure(side, options):
    """press (`none` among them) → (seconds, processor's seconds) of its turns. The presses take turns,
    in an order that turns round, so that what slows the machine for a while slows all."""
    import memory_case
    import torch

    torch.set_num_threads(options.threads)
    model, ids = memory_case.load(options.model, options.tokens)
    if options.layers:  # each of them costs the same, so a few do, and more turns of them
        del model.model.layers[options.layers :]
        model.config.num_hidden_layers = len(model.model.layers)
    sides = {"none": memory_case.Ours(model, None)}
    for press in options.rows:
        case = {"press": press, "side": side, "model": options.model, "drop": options.drop}
        case |= {"tokens": options.tokens, "built": False}
        sides[press] = memory_case.side_of(case, model)
    seconds = {name: [] for name in sides}
    with torch.no_grad():
        for turn in range(options.repetitions + 1):
            for name in list(sides)[:: 1 if turn % 2 else -1]:
                begin, used = time.perf_counter(), time.process_time()
                if name == "none":
                    model.model(ids, use_cache=True)
                else:
                    with sides[name].press(model):
                        model.model(ids, use_cache=True)
                if turn:  # the first fills caches and allocators
                    took = time.perf_counter() - begin, time.process_time() - used
                    seconds[name].append(took)
    return seconds


def isolated(side, options):
    """In a process of its own, for kvpress patches transformers when it is imported."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measure, side, options).result()


HEADER = (
    "| press | of | prefill min / med, s | without, s | added to the min | processor, s "
    "| without, s | added, median of turns |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
)


def line(one):
    (mine, used), (plain, needed) = zip(*one["seconds"]), zip(*one["without"])
    middle = statistics.median
    added = 100 * (middle(a / b for a, b in zip(used, needed)) - 1)
    return (
        f"| {one['press']} | {one['side']} | {min(mine):.2f} / {middle(mine):.2f} "
        f"| {min(plain):.2f} / {middle(plain):.2f} | {100 * (min(mine) / min(plain) - 1):+.1f} % "
        f"| {middle(used):.2f} | {middle(needed):.2f} | {added:+.1f} % |"
    )


def options_of(arguments):
    parser = argparse.ArgumentParser(
        prog="benchmark/prefill",
        description="Time of a prefill with a press attached and without one, ours and kvpress'.",
    )
    parser.add_argument(
        "rows",
        nargs="*",
        metavar="PRESS",
        help=f"of {', '.join(PAIRS)} (default: {', '.join(ROWS)})",
    )
    add = parser.add_argument
    add("--model", default="smollm2", choices=MODELS, help="(default: %(default)s)")
    add("--tokens", type=int, default=4096, help="of the prompt (default: %(default)s)")
    add("--layers", type=int, help="of the model, the first so many (default: all)")
    add("--drop", type=float, default=0.5, help="what presses drop (default: %(default)s)")
    add("--threads", type=int, default=2, help="(default: %(default)s)")
    add("--repetitions", type=int, default=9, help="counted turns (default: %(default)s)")
    add("--no-peer", dest="peer", action="store_false", help="no kvpress")
    add("--json", metavar="FILE", help="write all results there")
    options = parser.parse_args(arguments)
    options.rows = options.rows or list(ROWS)
    for name in options.rows:
        if name not in PAIRS:
            parser.error(f"no `{name}`; there are {', '.join(PAIRS)}")
        if reason := PAIRS[name].unmet(options.peer):
            parser.error(reason)
    return options


def main(arguments=None):
    options = options_of(arguments)
    report = {"machine": machine.describe(), "options": vars(options), "results": []}
    print("; ".join(f"{k}: {v}" for k, v in report["machine"].items()))
    layers = f", {options.layers} layers" if options.layers else ""
    print(
        f"{options.model}{layers}, {options.tokens:,} tokens, {options.threads} threads\n\n{HEADER}"
    )
    for side in SIDES if options.peer else SIDES[:1]:
        seconds = isolated(side, options)
        for press in options.rows:
            one = {"press": press, "side": side, "without": seconds["none"]}
            report["results"].append(one | {"seconds": seconds[press]})
            print(line(report["results"][-1]), flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
