"""The benchmark. `benchmark/run --help` says what can be chosen; docs/Performance.md what is printed."""

import argparse
import ctypes
import functools
import json
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import machine
import measure
import peers
import torch
import verify
from formulas import Given, inverse_frequencies
from rows import ROWS

import kvpc
from kvpc import library

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
SHAPE = {"batch": 1, "heads": 8, "groups": 4, "channels": 128}
SELECTIONS = {
    "select random": lambda n: torch.randn(8, n, generator=torch.Generator().manual_seed(0)),
    "select equal": lambda n: torch.full((8, n), 0.5),
    "select sorted": lambda n: torch.arange(n, dtype=torch.float32).expand(8, n).contiguous(),
    "select two": lambda n: torch.randint(
        2, (8, n), generator=torch.Generator().manual_seed(0)
    ).float(),
}


@functools.cache
def explained(name, defines, tokens, dtype):
    """What `kvpc explain` says of a press at this shape."""
    shape = f"{SHAPE['batch']},{SHAPE['heads']},{SHAPE['groups']},{tokens},{SHAPE['channels']}"
    options = [f"-D{key}={value}" for key, value in defines]
    command = [library.compiler(), "explain", name, f"--press={name}", f"--shape={shape}"]
    command += [f"--dtype={dtype}", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    [one] = json.loads(done.stdout)
    return one


def floor_of(name, tokens, dtype, rates):
    """Seconds, from inputs, outputs and flops of the program."""
    if name in SELECTIONS:
        return rates.floor(8 * tokens * 4, 8 * (tokens // 2) * 8, 0, dtype)
    row = ROWS[name]
    one = explained(row.name, tuple(row.defines.items()), tokens, dtype)
    read, written = one["floor_bytes_read"], one["floor_bytes_written"]
    # A layer that takes another's choice reads what is kept and writes it.
    more = (row.calls - 1) * written
    return rates.floor(read + more, written + more, one["floor_flops"], dtype)


def our_calls(row, press, given):
    """(compress, compress_ or None) as functions of (keys, values)."""
    supplied = {
        "queries": given.queries,
        "unrotated_queries": given.queries,
        "rope": kvpc.Rope(inverse_frequencies(given.keys.shape[3])),
    }
    asked = {name: x for name, x in supplied.items() if name in press.inputs}

    def call(keys, values, method=press.compress, **more):
        return method(keys, values, **asked, layer=row.layer, layers=row.layers, **more)

    def several(keys, values, backend="compiled"):
        state = kvpc.State()
        if backend == "reference":  # all layers keep what the first chooses
            return call(keys, values, backend=backend)
        outputs = [press.compress(keys, values, **asked, layers=row.layers, state=state)]
        for layer in range(1, row.calls):
            rest = {k: x for k, x in asked.items() if k in press.inputs_at(layer)}
            outputs.append(
                press.compress(keys, values, **rest, layer=layer, layers=row.layers, state=state)
            )
        return outputs

    if row.calls > 1:
        return several, None
    return call, functools.partial(call, method=press.compress_)


def repeated(call, times):
    """What a peer does that cannot reuse; the last of its outputs."""
    if times == 1:
        return call
    return lambda keys, values: [call(keys, values) for _ in range(times)][-1]


def peer_calls(row, given, options):
    """(name → function of (keys, values)) of all peers that are to be timed."""
    calls = {}
    if options.peer:
        import kvpress

        calls["kvpress"] = peers.kvpress_call(
            row.peers(kvpress, given), given, row.queries, row.weights
        )
    if options.compile_peer and row.stages:
        calls |= peers.compiled_calls(row.stages, given)
    return {name: repeated(call, row.calls) for name, call in calls.items()}


def failure(call, *arguments):
    """Why a peer does not run, if it does not: some cannot at some shapes."""
    try:
        call(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def _end_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, of Linux


def isolated(function, *arguments):
    """The result of a function in a process of its own: what the allocator holds after one row, and
    what torch.compile does, is no other row's."""
    with ProcessPoolExecutor(1, get_context("spawn"), _end_with_parent) as pool:
        return pool.submit(function, *arguments).result()


def measure_row(name, tokens, dtype, threads, options):
    """(variant → seconds of its turns, variant → what is wrong, peer → why it did not run)"""
    torch.set_num_threads(threads)
    row = ROWS[name]
    asked = tokens if row.queries == "all" else measure.WINDOW
    keys, values, queries, filters = measure.random_inputs(tokens, DTYPES[dtype], queries=asked)
    given = Given(keys, values, queries, filters[: row.layers], row.layer, row.layers)
    arguments = {k: v(given) if callable(v) else v for k, v in row.arguments.items()}
    module = kvpc.compile(
        row.name, defines=row.defines, dtypes=dtype, channels=SHAPE["channels"], press=row.name
    )
    press = module.press(row.name, **arguments)
    compress, in_place = our_calls(row, press, given)
    variants = {
        "ours": measure.Variant("recycled", compress),
        "ours fresh": measure.Variant("fresh", compress),
    }
    if in_place:
        variants["ours in place"] = measure.Variant("recycled", in_place)
    inputs = measure.Inputs(keys, values)
    failed = {}
    for name, call in peer_calls(row, given, options).items():
        if why := failure(call, *inputs.restored()):
            failed[name] = why
            continue
        variants[f"{name} recycled"] = measure.Variant("recycled", call)
        if name == "kvpress":
            variants["kvpress"] = measure.Variant("default", call)
    repetitions = options.repetitions * (20 if tokens <= 256 else 1)
    seconds, outputs, unsteady = measure.interleaved(variants, inputs, repetitions, options.seconds)
    wrong = {name: "changes from turn to turn" for name in unsteady if name.startswith("ours")}

    @functools.cache
    def reference():
        return compress(keys, values, backend="reference")

    for name, out in outputs.items():
        if name.startswith("ours"):
            size = len(out) // row.calls
            # The formulas know nothing of windows as long as the cache.
            stages = row.stages if tokens > measure.WINDOW else ()
            verdicts = [
                verify.ours(stages, given, out[size * n : size * (n + 1)], reference)
                for n in range(row.calls)
            ]
        else:
            same = row.alike or not name.startswith("kvpress")
            verdicts = [verify.peer(row.stages if same else (), given, out)]
        if any(verdicts):
            wrong[name] = next(filter(None, verdicts))
    return seconds, wrong, failed


def measure_selection(name, tokens, dtype, threads, options):
    """As measure_row."""
    torch.set_num_threads(threads)
    scores = SELECTIONS[name](tokens)
    kept = tokens // 2
    variants = {
        "ours": measure.Variant("recycled", lambda *_: kvpc.select(scores, keep=kept)),
        "ours fresh": measure.Variant("fresh", lambda *_: kvpc.select(scores, keep=kept)),
        "torch.topk recycled": measure.Variant("recycled", lambda *_: scores.topk(kept).indices),
        "torch.topk": measure.Variant("default", lambda *_: scores.topk(kept).indices),
        "torch.topk unsorted": measure.Variant(
            "recycled", lambda *_: scores.topk(kept, sorted=False).indices
        ),
    }
    inputs = measure.Inputs(torch.zeros(1), torch.zeros(1))
    seconds, outputs, _ = measure.interleaved(
        variants, inputs, 10 * options.repetitions, options.seconds
    )
    wrong = {}
    for variant, [index] in outputs.items():
        if why := verify.selection(scores, kept, index, exact=variant.startswith("ours")):
            wrong[variant] = why
    return seconds, wrong, {}


def result(name, tokens, dtype, rates, measured):
    seconds, wrong, failed = measured
    floor = floor_of(name, tokens, dtype, rates)
    times = {variant: measure.summary(one) for variant, one in seconds.items()}

    # Noise of other processes only adds: ratios are of minima.
    def best(*names):
        return min((x["min_ms"] for n, x in times.items() if n.startswith(names)), default=None)

    mine = times["ours"]["min_ms"]
    peer = "torch.topk" if name in SELECTIONS else "kvpress"
    as_it_is = times.get(peer, {}).get("min_ms")
    ratios = {
        "peer_over_ours": as_it_is and as_it_is / mine,
        "best_peer_over_ours": best("kvpress", "torch") and best("kvpress", "torch") / mine,
        "ours_over_floor": mine / (1e3 * floor),
    }
    return {
        "row": name,
        "dtype": dtype,
        "tokens": tokens,
        **SHAPE,
        "threads": rates.threads,
        "peer": peer,
        "times": times,
        "compile_ms": best("torch.compile"),
        "floor_ms": 1e3 * floor,
        **ratios,
        "wrong": wrong,
        "not_run": failed,
        "note": ROWS[name].note if name in ROWS else "8 rows, half kept",
    }


COLUMNS = (
    "press", "dtype", "tokens", "threads", "ours min / med", "fresh", "in place", "peer min / med",
    "recycled", "compile", "floor", "peer/ours", "best peer/ours", "ours/floor", "outputs",
)  # fmt: skip
HEADER = f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}"


def line(one):
    times, peer = one["times"], one["peer"]

    def pair(name):
        at = times.get(name)
        return f"{at['min_ms']:.3g} / {at['median_ms']:.3g}" if at else "-"

    def number(value, digits=".3g"):
        return format(value, digits) if value else "-"

    def least(name):
        return number(times.get(name, {}).get("min_ms"))

    wrong = "; ".join(f"WRONG: {k}: {v}" for k, v in one["wrong"].items())
    cells = (
        one["row"],
        one["dtype"],
        one["tokens"],
        one["threads"],
        pair("ours"),
        least("ours fresh"),
        least("ours in place"),
        pair(peer),
        least(f"{peer} recycled"),
        number(one["compile_ms"]),
        number(one["floor_ms"]),
        number(one["peer_over_ours"], ".1f"),
        number(one["best_peer_over_ours"], ".1f"),
        number(one["ours_over_floor"], ".1f"),
        wrong or "right",
    )
    return f"| {' | '.join(map(str, cells))} |"


def options_of(arguments):
    parser = argparse.ArgumentParser(
        prog="benchmark/run",
        description="Times presses, their peers and what this machine could do at best, in one run.",
    )
    parser.add_argument(
        "rows",
        nargs="*",
        metavar="ROW",
        help=f"what to measure, all by default: {', '.join([*ROWS, *SELECTIONS])}",
    )
    add = parser.add_argument
    add("--dtypes", default="f32,bf16", help="of the cache (default: %(default)s)")
    add("--tokens", default="64,4096,32768", help="lengths (default: %(default)s)")
    add("--threads", default="2", help="numbers of threads, e.g. 1,2 (default: %(default)s)")
    add("--repetitions", type=int, default=7, help="counted turns (default: %(default)s)")
    add(
        "--seconds",
        type=float,
        default=10,
        help="a variant's turns end then (default: %(default)s)",
    )
    add("--json", metavar="FILE", help="write all results there")
    add("--no-compile-peer", dest="compile_peer", action="store_false", help="no torch.compile")
    add("--no-peer", dest="peer", action="store_false", help="no kvpress")
    options = parser.parse_args(arguments)
    options.dtypes = options.dtypes.split(",")
    options.tokens = [int(n) for n in options.tokens.split(",")]
    options.threads = [int(n) for n in options.threads.split(",")]
    for row in options.rows:
        if row not in ROWS and row not in SELECTIONS:
            parser.error(f"no row `{row}`; there are {', '.join([*ROWS, *SELECTIONS])}")
    return options


def main(arguments=None):
    options = options_of(arguments)
    chosen = options.rows or [*ROWS, *SELECTIONS]
    report = {"machine": machine.describe(), "rates": [], "results": []}
    print("; ".join(f"{k}: {v}" for k, v in report["machine"].items()), "; milliseconds", sep="")
    for threads in options.threads:
        rates = machine.Machine(threads)
        print(f"{rates}\n\n{HEADER}", flush=True)
        done = set()
        for asked in options.tokens:
            for name in chosen:
                tokens = min(asked, ROWS[name].most) if name in ROWS else asked
                if (name, tokens) in done:
                    continue
                done.add((name, tokens))
                for dtype in options.dtypes if name in ROWS else ["f32"]:
                    rates.measure()
                    function = measure_row if name in ROWS else measure_selection
                    measured = isolated(function, name, tokens, dtype, threads, options)
                    one = result(name, tokens, dtype, rates, measured)
                    report["results"].append(one)
                    print(line(one), flush=True)
        report["rates"].append(rates.json())
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report, file, indent=1)
    return 1 if any(one["wrong"] for one in report["results"]) else 0


if __name__ == "__main__":
    sys.exit(main())
