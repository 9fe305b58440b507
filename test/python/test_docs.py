"""The docs: their examples work, their links lead somewhere, their tables are as new as the sources.

A fenced block is tested by what stands behind its three backticks:

    ```kv             a program: `kvpc check` takes it
    ```kv loud.kv     the same; later blocks of the page find it as the file loud.kv
    ```sh kvpc        run by a shell that stops at the first error
    ```python kvpc    run by Python
    ```mlir           presses or plans: kvp-opt parses and verifies them

Blocks that run do so in the page's order, in one folder, with `kvpc` on the PATH.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kvpc import errors, library

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.M | re.S)
# Describes the whole language, also what is not implemented yet.
AHEAD = "Language.md"


def run(command, folder, text=None):
    def first(place, variable):
        return f"{place}{os.pathsep}{os.environ.get(variable, '')}"

    paths = {
        "PATH": first(library.compiler().parent, "PATH"),
        "PYTHONPATH": first(Path(library.__file__).parents[1], "PYTHONPATH"),
        "KVPC_CACHE": str(folder / "cache"),
    }
    done = subprocess.run(
        command,
        cwd=folder,
        input=text,
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | paths,
    )
    return done.returncode, done.stdout + done.stderr


def only_ahead(output):
    codes = set(re.findall(r"error: .*\[(.*)\]$", output, re.M))
    return codes == {"kv-not-implemented"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples(page, tmp_path):
    for info, text in FENCE.findall(page.read_text()):
        language, *words = info.split()
        if language == "kv":
            if words:
                (tmp_path / words[0]).write_text(text)
            code, output = run(["kvpc", "check", *(words or ["-"])], tmp_path, text)
            assert code == 0 or (page.name == AHEAD and only_ahead(output)), text + output
        elif language == "sh" and words == ["kvpc"]:
            code, output = run(["bash", "-euo", "pipefail", "-c", text], tmp_path)
            assert code == 0, text + output
        elif language == "python" and words == ["kvpc"]:
            code, output = run([sys.executable, "-c", text], tmp_path)
            assert code == 0, text + output
        elif language == "mlir":
            code, output = run(["kvp-opt", "-", "-o", os.devnull], tmp_path, text)
            assert code == 0, text + output


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page):
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert "://" in target or (page.parent / target).exists(), target


def test_names_of_parameters():
    """What docs/Kvpress.md says is called so here, is."""
    rows = re.findall(
        r"^\| `\w+` \| .* \| (\[.*) \|$", (ROOT / "docs/Kvpress.md").read_text(), re.M
    )
    assert rows
    for row in rows:
        for press, names in re.findall(r"\(\.\./(presses/\w+\.kv)\)([^;]*)", row):
            source = (ROOT / press).read_text()
            for name in re.findall(r"`(\w+)`", names):
                assert re.search(rf"^\s*{name}: |[(,] ?{name}: ", source, re.M), (press, name)


def test_tables_are_fresh():
    code, output = run([sys.executable, ROOT / "scripts/status.py", "--check"], ROOT)
    assert code == 0, output


def test_codes_of_calls_have_a_line():
    """As the codes of programs have, see MessagesTest.cpp."""
    page = (ROOT / "docs/Errors.md").read_text()
    assert set(re.findall(r"^\| `(kvm-[a-z-]+)`", page, re.M)) == set(errors._CLASSES)
    sources = [*(ROOT / "runtime").rglob("*.cpp"), *(ROOT / "runtime").rglob("*.py")]
    told = set(re.findall(r'"(kvm-[a-z-]+)"', "".join(path.read_text() for path in sources)))
    assert told - {"kvm-error"} == set(errors._CLASSES)  # where a switch ends
    # Those of the hook are in a table of their own.
    hook = set(re.findall(r'"(hook-[a-z-]+)"', "".join(path.read_text() for path in sources)))
    assert set(re.findall(r"^\| `(hook-[a-z-]+)`", page, re.M)) == hook
    saved = set(
        re.findall(r'"(cache-[a-z-]+)"', (ROOT / "runtime/python/kvpc/saved.py").read_text())
    )
    assert set(re.findall(r"^\| `(cache-[a-z-]+)`", page, re.M)) == saved
    drawn = (ROOT / "runtime/python/kvpc/picture.py").read_text()
    drawn = set(re.findall(r'"(plot-[a-z]+)"', drawn)) | {"plot-row", "plot-tokens"}
    assert set(re.findall(r"^\| `(plot-[a-z-]+)`", page, re.M)) == drawn
