"""The library draft of the design, adapted to budgets: every program of it is formatted to a fixed
point, and compiles or is told what is not implemented yet, at its place."""

import re
from pathlib import Path

import pytest

from kvpc import library
from kvpc.errors import diagnostics_of

DRAFT = Path(__file__).parent / "Inputs/draft.kv"
TEXT = DRAFT.read_text()
EXPORTED = re.findall(r"^(?:score|press) (\w+)", TEXT, re.MULTILINE)
# What has no default and decides a shape or what is inlined.
GIVEN = {
    "inner": "snapkv(window = 8)",
    "gates": "knorm()",
    "p": "snapkv(window = 8) |> topk(drop(0.25))",
    "q": "think(window = 4)",
}


def kvpc(*arguments):
    command = [library.compiler(), *map(str, arguments)]
    return library.run(command)


def needs(name):
    """-D for the parameters of a declaration that have to be given when compiling."""
    head = TEXT[re.search(rf"^(?:score|press) {name}\(", TEXT, re.MULTILINE).end() :]
    head = head[: re.search(r"\)\s*=", head).start()]
    options = []
    for parameter in re.split(r",\s*(?![^\[]*\])", head):
        declared = re.match(r"(\w+): (\w+)(.*)", parameter, re.DOTALL)
        if declared and "=" not in declared[3]:
            if declared[2] in ("score", "press"):
                options.append(f"-D{name}.{declared[1]}={GIVEN[declared[1]]}")
            elif declared[2] == "int" and declared[1] in ("window", "size"):
                options.append(f"-D{name}.{declared[1]}=16")
    return options


def tree(text, tmp_path):
    path = tmp_path / "file.kv"
    path.write_text(text)
    done = kvpc("compile", "--emit=ast", path)
    assert done.returncode == 0, done.stderr
    return re.sub(r"(?m)^( *)\d+:\d+ ", r"\1", done.stdout)


def test_format_is_a_fixed_point(tmp_path):
    once = kvpc("fmt", DRAFT).stdout
    assert once != TEXT and tree(once, tmp_path) == tree(TEXT, tmp_path)
    (tmp_path / "once.kv").write_text(once)
    assert kvpc("fmt", tmp_path / "once.kv").stdout == once
    assert kvpc("fmt", "--check", tmp_path / "once.kv").returncode == 0


def test_nothing_is_wrong_with_it():
    done = kvpc("check", DRAFT)
    codes = {d.code for d in diagnostics_of(done.stderr)}
    assert done.returncode == 1 and codes == {"kv-not-implemented"}, done.stderr


@pytest.mark.parametrize("name", EXPORTED)
def test_compiles_or_says_what_is_missing(name, tmp_path):
    out = tmp_path / "module.kvm"
    done = kvpc("compile", DRAFT, "-o", out, "--press", name, *needs(name),
                "--channels=0", "--target=x86-64-v3")  # fmt: skip
    if done.returncode == 0:
        assert not done.stderr and out.exists()
        return
    assert done.returncode == 1 and not out.exists(), done.stderr
    lines = TEXT.splitlines()
    found = diagnostics_of(done.stderr)
    assert found
    for one in found:
        assert one.code == "kv-not-implemented" and one.file == str(DRAFT), str(one)
        # The place is that of the operation it names, or of the argument that it cannot take.
        word = re.match(r"\[?(\w+)", lines[one.line - 1][one.column - 1 :])[1]
        assert word in re.findall(r"\w+", one.message), str(one)


def test_enough_of_it_compiles():
    """The presses of the first issue, and nothing that compiled once is lost."""
    done = {n for n in EXPORTED if kvpc("check", DRAFT, "--press", n, *needs(n)).returncode == 0}
    first = """random knorm keydiff streaming_llm snapkv tova qfilter cur lagkv pyramidkv chunkkv
        chunkkv_reuse per_layer composed simlayerkv dms think snap_think chunk_snap_think
        adakv adakv_snapkv criticalkv critical_snapkv critical_adakv duo_attention"""
    assert done >= set(first.split())
