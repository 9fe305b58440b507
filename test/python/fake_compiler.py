"""Stands in for the executable `kvpc` where a test is about what the package asks of it.

`compile` logs its arguments and writes a module of presses made by hand; a source that contains
`wrong` fails with diagnostics. `run --reference` computes the press `last` (or `shared`) in Torch,
from the files and options that the real one is given. FAKE_KVPC_LOG names the log, FAKE_KVPC_MODULE
a module whose bytes `compile` copies.
"""

import json
import os
import shutil
import sys
from pathlib import Path

DIAGNOSTICS = """\
source.kv:1:20: error: unknown axis `chanel`; `keys` has `head`, `token`, `channel` [kv-axis-unknown]
  score a() = keys.norm(chanel)
                        ^
source.kv:1:20: note: did you mean `channel`
source.kv:2:1: warning: `b` is not used [kv-unused]
"""


def log(entry):
    with open(os.environ["FAKE_KVPC_LOG"], "a") as out:
        out.write(json.dumps(entry) + "\n")


def compile(arguments):
    source = arguments[0]
    text = Path(source).read_text("utf-8", "surrogateescape") if source.endswith(".kv") else source
    log({"command": "compile", "arguments": arguments, "text": text})
    if "crash" in text:
        print("stack dump", file=sys.stderr)
        return 70
    if "wrong" in text:
        print(DIAGNOSTICS, file=sys.stderr, end="")
        return 1
    shutil.copy(os.environ["FAKE_KVPC_MODULE"], arguments[arguments.index("-o") + 1])
    return 0


def reference(arguments):
    import torch
    from safetensors.torch import load_file, save_file

    options = dict(
        a[2:].split("=", 1) for a in arguments if "=" in a and not a.startswith("--set=")
    )
    settings = dict(a[6:].split("=", 1) for a in arguments if a.startswith("--set="))
    given = load_file(options["input"])
    shapes = {name: [str(x.dtype), list(x.shape)] for name, x in given.items()}
    log({"command": "run", "options": options, "settings": settings, "tensors": shapes,
         "flags": [a for a in arguments if "=" not in a]})  # fmt: skip
    keys, values, start, length = (given[n] for n in ("keys", "values", "start", "length"))
    kind, amount = settings["budget"].rstrip(")").split("(")
    batch, heads, tokens, _ = keys.shape
    if "--scores" in arguments:
        place = torch.arange(tokens) - start[:, None]
        real = (place >= 0) & (place < length[:, None])
        scores = torch.where(real, place, float("nan"))[:, None].expand(-1, heads, -1)
        protected = (place == length[:, None] - 1)[:, None].expand(-1, heads, -1)
        save_file({"scores": scores.contiguous(), "protected": protected.contiguous()},
                  options["output"])  # fmt: skip
        return 0
    oldest = False
    if "state" in options:  # the press `shared`
        place = Path(options["state"])
        if "queries" in given:
            place.write_text("oldest" if given["queries"][0, 0, 0, -1, 0] > 0 else "newest")
        oldest = place.read_text() == "oldest"
    counts = [
        min(max(int(amount) if kind == "keep" else int(n * (1 - float(amount))), 1), n)
        for n in length.tolist()
    ]
    kept = max(counts)
    out = {
        "keys": torch.zeros(batch, heads, kept, keys.shape[3], dtype=keys.dtype),
        "values": torch.zeros(batch, heads, kept, values.shape[3], dtype=values.dtype),
        "tokens": torch.full((batch, heads, kept), -1),
        "lengths": torch.tensor(counts)[:, None].repeat(1, heads),
    }
    for row, n in enumerate(counts):
        first = int(start[row]) + (0 if oldest else int(length[row]) - n)
        out["keys"][row, :, :n] = keys[row, :, first : first + n]
        out["values"][row, :, :n] = values[row, :, first : first + n]
        out["tokens"][row, :, :n] = torch.arange(first, first + n)
    save_file(out, options["output"])
    return 0


def main(arguments):
    if arguments[:1] == ["--version"]:
        print("kvpc 0.1.0 (a test's)")
        return 0
    return {"compile": compile, "run": reference}[arguments[0]](arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
