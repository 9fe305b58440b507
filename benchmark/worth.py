"""What each optimisation is worth: presses compiled without it, in turn with the whole.
`benchmark/worth --help` says what can be chosen."""

import argparse
import json
import sys

import machine
import main as rows_of
import measure
import torch
import verify
from formulas import Given
from rows import ROWS

import kvpc

LEFT_OUT = ("algebra", "fusion", "microkernel", "exponents", "tiles", "weighing")
# Beside them, all wide values made again, and one pass for each operation.
OTHERS = {"held values": {"workspace": 0}, "all (-O0)": {"optimization": "O0"}}


def measure_row(name, dtype, options):
    """(variant → seconds of its turns, variant → what is wrong)"""
    torch.set_num_threads(options.threads)
    row = ROWS[name]
    tokens = min(options.tokens, row.most)
    asked = tokens if row.queries == "all" else measure.WINDOW
    keys, values, queries, filters = measure.random_inputs(
        tokens, rows_of.DTYPES[dtype], queries=asked
    )
    given = Given(keys, values, queries, filters[: row.layers], row.layer, row.layers)
    arguments = {k: v(given) if callable(v) else v for k, v in row.arguments.items()}
    ways = {"whole": {}} | {one: {"without": one} for one in LEFT_OUT} | OTHERS
    variants, calls = {}, {}
    for way, chosen in ways.items():
        module = kvpc.compile(
            row.name,
            defines=row.defines,
            dtypes=dtype,
            channels=rows_of.SHAPE["channels"],
            press=row.name,
            **chosen,
        )
        calls[way], _ = rows_of.our_calls(row, module.press(row.name, **arguments), given)
        variants[way] = measure.Variant("recycled", calls[way])
    inputs = measure.Inputs(keys, values)
    seconds, outputs, unsteady = measure.interleaved(
        variants, inputs, options.repetitions, options.seconds
    )
    wrong = dict.fromkeys(unsteady, "changes from turn to turn")
    for way, out in outputs.items():
        one = out[: len(out) // row.calls]
        reference = calls[way]

        def by_reference(reference=reference):
            return reference(keys, values, backend="reference")

        if why := verify.ours(row.stages, given, one, by_reference):
            wrong[way] = why
    return seconds, wrong


def line(one):
    whole = min(one["seconds"]["whole"])
    cells = [one["row"], one["dtype"], f"{1e3 * whole:.3g}"]
    for way, turns in one["seconds"].items():
        if way != "whole":
            times = min(turns) / whole
            cells.append(f"{times:.2f}" if times < 9.95 else f"{times:.0f}")
    cells.append("; ".join(f"WRONG: {k}: {v}" for k, v in one["wrong"].items()) or "right")
    return f"| {' | '.join(cells)} |"


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="benchmark/worth",
        description="Times each row whole, and without one optimisation after the other.",
    )
    add = parser.add_argument
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}")
    add("--dtypes", default="f32", help="of the cache (default: %(default)s)")
    add("--tokens", type=int, default=4096, help="(default: %(default)s)")
    add("--threads", type=int, default=2, help="(default: %(default)s)")
    add("--repetitions", type=int, default=7, help="counted turns (default: %(default)s)")
    add(
        "--seconds", type=float, default=2, help="a variant's turns end then (default: %(default)s)"
    )
    add("--json", metavar="FILE", help="write all results there")
    options = parser.parse_args(arguments)
    for name in options.rows:
        if name not in ROWS:
            parser.error(f"no row `{name}`; there are {', '.join(ROWS)}")
    columns = ("press", "dtype", "whole, ms", *LEFT_OUT, *OTHERS, "outputs")
    report = {"machine": machine.describe(), "options": vars(options), "results": []}
    print("; ".join(f"{k}: {v}" for k, v in report["machine"].items()))
    print(f"{options.tokens:,} tokens, {options.threads} threads: times of the whole, by minima\n")
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", flush=True)
    for name in options.rows or ROWS:
        for dtype in options.dtypes.split(","):
            seconds, wrong = measure_row(name, dtype, options)
            one = {"row": name, "dtype": dtype, "seconds": seconds, "wrong": wrong}
            report["results"].append(one)
            print(line(one), flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report, file, indent=1)
    return int(any(one["wrong"] for one in report["results"]))


if __name__ == "__main__":
    sys.exit(main())
