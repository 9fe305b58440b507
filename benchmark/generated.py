"""Generated scores, the random programs of the tests at a real size, beside the floor that
`kvpc explain` gives: `benchmark/generated --help`."""

import argparse
import json
import statistics
import subprocess
import sys

import machine
import measure
import torch
from programs import program

import kvpc
from kvpc import library

SHAPE = {"heads": 8, "groups": 4, "channels": 128}
SIZES = {"layer": 2, "head": 8, "group": 4, "channel": 128, "channel'": 128}
WINDOW = 256


def is_asked(one):
    """A score that is given keys, values and the last queries, as those of the table are."""
    return one.kind == "score" and "output_weight" not in one.source


def press_of(one, make):
    """The press of a generated score that keeps half; None where it needs what is not given here."""
    module = kvpc.compile(one.source, press=one.name, dtypes="f32", channels=SHAPE["channels"])
    info = module.presses[one.name]
    weights = {
        name: torch.randn([SIZES[a] for a in axes], generator=make)
        for name, axes in one.tensors.items()
        if name in info.weights
    }
    press = module.press(one.name, **one.arguments, **weights, drop=0.5)
    asked = press.inputs
    # All queries at once have a row of their own; rotations need a model's tables.
    if "unrotated_queries" in asked or "rope" in asked or asked.get("queries") == "all":
        return None
    return press


def explained(one, tokens):
    shape = f"1,{SHAPE['heads']},{SHAPE['groups']},{tokens},{SHAPE['channels']}"
    command = [library.compiler(), "explain", "-", f"--press={one.name}", f"--shape={shape}"]
    done = subprocess.run(
        [*command, "--dtype=f32", "--json"], input=one.source, capture_output=True, text=True
    )
    [told] = json.loads(done.stdout)
    return told


def gathered(out, keys, values):
    """What is wrong with an output, if anything: it holds the bits of the tokens that it names."""
    parts = [(values, out.values)]
    if out.channels is None:
        parts.append((keys, out.keys))
    for given, kept in parts:
        index = out.tokens[..., None].expand(*out.tokens.shape, given.shape[3])
        wanted = given.gather(2, index.clamp(min=0)).where(index >= 0, 0)  # -1: nothing there
        if not torch.equal(wanted, kept):
            return "not the tokens that it names"
    return None


def measured(one, press, inputs, queries, options):
    asked = {"queries": queries[:, :, -n:]} if (n := press.inputs.get("queries")) else {}

    def call(keys, values):
        return press.compress(keys, values, **asked, layers=2)

    variants = {"ours": measure.Variant("recycled", call)}
    seconds, _, unsteady = measure.interleaved(
        variants, inputs, options.repetitions, options.seconds
    )
    wrong = (
        "changes from turn to turn" if unsteady else gathered(call(*inputs.given), *inputs.given)
    )
    return measure.summary(seconds["ours"]), wrong


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="benchmark/generated",
        description="Times generated scores beside the floor of inputs, outputs and operations.",
    )
    add = parser.add_argument
    add("--count", type=int, default=50, help="scores (default: %(default)s)")
    add("--first", type=int, default=0, help="seed to begin with (default: %(default)s)")
    add("--tokens", type=int, default=16384, help="(default: %(default)s)")
    add("--threads", type=int, default=2, help="(default: %(default)s)")
    add("--repetitions", type=int, default=15, help="counted turns (default: %(default)s)")
    add("--seconds", type=float, default=1, help="a score's turns end then (default: %(default)s)")
    add("--json", metavar="FILE", help="write all results there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rates = machine.Machine(options.threads)
    print("; ".join(f"{k}: {v}" for k, v in machine.describe().items()))
    print(f"{rates}\n\n| seed | ours min / med, ms | floor | ours/floor | outputs |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    make = torch.Generator().manual_seed(0)
    shape = (1, SHAPE["heads"], options.tokens, SHAPE["channels"])
    keys, values = (torch.randn(shape, generator=make) for _ in range(2))
    queries = torch.randn(1, 32, WINDOW, SHAPE["channels"], generator=make)
    inputs, results, seed = measure.Inputs(keys, values), [], options.first
    while len(results) < options.count:
        one = program(seed)
        seed += 1
        press = press_of(one, make) if is_asked(one) else None
        if press is None:
            continue
        times, wrong = measured(one, press, inputs, queries, options)
        told = explained(one, options.tokens)
        read, written = told["floor_bytes_read"], told["floor_bytes_written"]
        floor = 1e3 * rates.floor(read, written, told["floor_flops"], "f32")
        results.append(
            {"seed": seed - 1, "source": one.source, **times, "floor_ms": floor}
            | {"ratio": times["min_ms"] / floor, "wrong": wrong}
        )
        print(
            f"| {seed - 1} | {times['min_ms']:.3g} / {times['median_ms']:.3g} | {floor:.3g} "
            f"| {results[-1]['ratio']:.2f} | {wrong or 'right'} |",
            flush=True,
        )
    ratios = [one["ratio"] for one in results]
    print(f"\nmedian {statistics.median(ratios):.2f}, worst {max(ratios):.2f}, of {len(ratios)}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"machine": machine.describe(), "results": results}, file, indent=1)
    return int(any(one["wrong"] for one in results))


if __name__ == "__main__":
    sys.exit(main())
