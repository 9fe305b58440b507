#!/usr/bin/env python3
"""Writes the tables that say what works, from the sources and the compiler.

    scripts/status.py            brings docs/status.md and README.md up to date
    scripts/status.py --check    writes nothing; exit code 1 and a list of what is stale

docs/status.md has a row for each operation of the kvp dialect: KvpOps.td says which there are,
lib/Frontend, lib/Reference, dialect/ and lib/Target what is done with them. README.md has a row for
each press of the library: the compiler says which compile, and what the others wait for. They stand between the lines `<!-- name -->` and `<!-- /name -->`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ANYTHING = {  # what stands in for a parameter without a default, when a press is only tried
    "score": "snapkv()",
    "press": "snapkv() |> topk(drop(0.5))",
    "int": "64",
    "float": "0.5",
}


def read(*patterns):
    files = sorted(path for pattern in patterns for path in ROOT.glob(pattern))
    return "\n".join(path.read_text() for path in files)


# ---------------------------------------------------------------------------------- operations


def operations():
    """(C++ class, mnemonic, definition) of every kvp operation, in the order of the definitions."""
    text = read("dialect/IR/KvpOps.td")
    pattern = re.compile(
        r'^def Kvp_(\w+Op) : (Kvp_\w+)<"(\w+)"(.*?)(?=^(?:def|class|//)|\Z)', re.M | re.S
    )
    return [(m[1], m[3], m[2] + m[4]) for m in pattern.finditer(text)]


def mentions(op, text):
    return re.search(rf"\bkvp::{op}\b", text) is not None


def compiled(op):
    """How the CPU's code comes about: what the passes and the conversion do with the operation."""
    lowered = read("dialect/Conversion/*.cpp")
    cases = re.findall(r"\.Case(?:<([^>]*)>|\(\[&\]\(([^)]*)\))", lowered)
    if any(re.search(rf"\bkvp::{op}\b", a + b) for a, b in cases):
        return "expression"
    plan = ("Cut.cpp", "Hold.cpp", "EmitPlan.cpp")
    if mentions(op, read(*(f"dialect/Transforms/{name}" for name in plan))):
        return "step"
    if mentions(op, read("dialect/Transforms/Primitives.cpp")):
        return "decomposed"
    return "expression" if mentions(op, lowered) else ""


def operation_table():
    front, reference = read("lib/Frontend/*.cpp"), read("lib/Reference/*.cpp")
    cuda = read("lib/Target/CUDA/**/*.cpp")
    inferred = ("Kvp_Pure", "Kvp_Along")
    rows = [("operation", "parsed", "verified", "reference", "CPU", "CUDA")]
    for op, mnemonic, definition in operations():
        rules = definition.startswith(inferred) or "hasVerifier = 1" in definition
        rows.append(
            (
                f"`kvp.{mnemonic}`",
                "yes" if mentions(op, front) else "",
                "rules" if rules else "types",
                "yes" if mentions(op, reference) else "",
                compiled(op),
                "yes" if mentions(op, cuda) else "",
            )
        )
    return table(rows)


def limit_list():
    """What the plan refuses although the front end takes it: messages with this code."""
    out = []
    for call in re.findall(
        r"emitError\(([^;]*?\[kv-not-implemented\][^;]*);", read("dialect/**/*.cpp")
    ):
        pieces = re.findall(r'"((?:[^"\\]|\\.)*)"|<< *([^"<]*[^"<\s])', call)
        message = "".join(text or "..." for text, _ in pieces)
        out.append("- " + message.replace(" [kv-not-implemented]", ""))
    return "\n".join(sorted(out)) or "- nothing"


# ------------------------------------------------------------------------------------- library


def compiler():
    """The executable, or None where nothing is built."""
    build = Path(os.environ.get("KVPC_BUILD") or ROOT / "build/release")
    path = Path(os.environ.get("KVPC_COMPILER") or build / "bin/kvpc")
    return path if path.exists() else None


def unset(name, source):
    """Parameters of a declaration that must be given, weights left out: name → type."""
    start = re.search(rf"^(?:score|press) {name}\(", source, re.M).end()
    depth, parameters = 1, [""]
    for letter in re.sub(r"#.*", "", source[start:]):
        depth += (letter in "([") - (letter in ")]")
        if depth == 0:
            break
        if letter == "," and depth == 1:
            parameters.append("")
        else:
            parameters[-1] += letter
    missing = (p.split() for p in parameters if p.strip() and "=" not in p and "[" not in p)
    return {words[0].rstrip(":"): words[1] for words in missing}


def try_press(name):
    """Says whether the library's press compiles to a plan, and if not, what it waits for."""
    given = unset(name, (ROOT / "presses" / f"{name}.kv").read_text())
    defines = [f"-D{parameter}={ANYTHING[kind]}" for parameter, kind in given.items()]
    command = [compiler(), "compile", name, "--emit=plan", "-o", "-", *defines]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=120)
    if done.returncode == 0:
        asked = " and ".join(f"`{parameter}`" for parameter in given)
        return f"compiles, given {asked}" if asked else "compiles"
    waits = re.findall(
        r"error: (.*?)(?: is not implemented yet)? \[kv-not-implemented\]", done.stderr
    )
    if not waits:
        raise SystemExit(f"`{name}` fails for another reason:\n{done.stderr}")
    return "waits for " + ", ".join(dict.fromkeys(waits))


def library_tables():
    """The presses that compile, and those that wait for an operation."""
    ready = [("press", "what stays, and where it comes from", "status")]
    waiting = [("press", "what stays, and where it comes from", "waits for")]
    for path in sorted((ROOT / "presses").glob("*.kv")):
        source = path.read_text()
        comment = rf"((?:^##.*\n)+)(?:^#[^#].*\n)*^(?:score|press) {path.stem}\("
        words = re.search(comment, source, re.M)[1].replace("##", "")
        words = " ".join(words.split()).removesuffix(".")
        words = re.sub(r"arXiv:(\d+\.\d+)", r"[arXiv:\1](https://arxiv.org/abs/\1)", words)
        status = try_press(path.stem)
        rows = ready if status.startswith("compiles") else waiting
        status = status.removeprefix("waits for ")
        rows.append((f"[`{path.stem}`](presses/{path.name})", words, status))
    return table(ready), table(waiting)


# --------------------------------------------------------------------------------------- files


def table(rows):
    head, *rest = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *rest]
    return "\n".join("| " + " | ".join(line).rstrip() + " |" for line in lines)


def replaced(text, name, content):
    between = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
    if not between.search(text):
        raise SystemExit(f"the lines `<!-- {name} -->` and `<!-- /{name} -->` are not there")
    return between.sub(lambda m: m[1] + content + "\n" + m[2], text)


def wanted():
    """Path → the text that it should have."""
    status = ROOT / "docs/status.md"
    text = replaced(status.read_text(), "operations", operation_table())
    out = {status: replaced(text, "limits", limit_list())}
    if compiler():
        readme = ROOT / "README.md"
        ready, waiting = library_tables()
        text = replaced(readme.read_text(), "library", ready)
        out[readme] = replaced(text, "waiting", waiting)
    return out


def main():
    if sys.argv[1:] not in ([], ["--check"]):
        raise SystemExit("usage: scripts/status.py [--check]")
    stale = {path: text for path, text in wanted().items() if path.read_text() != text}
    if not compiler():
        print("the compiler is not built: README.md was left out", file=sys.stderr)
    if sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is stale; run scripts/status.py")
        raise SystemExit(bool(stale))
    for path, text in stale.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
