"""scripts/run_tests.py fails closed: whatever is not a pass or an allowed skip is a failure."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

PROGRAM = """#!{python}
import json, sys
print("some output")
report = next(a for a in sys.argv if a.startswith("--gtest_output")).split(":", 1)[1]
if {cases!r} is not None:
    open(report, "w").write(json.dumps({{"testsuites": [{{"name": "S", "testsuite": {cases!r}}}]}}))
sys.exit({code})
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """run_tests, looking at an empty project."""
    for folder in ("test", "build/test/unit", "logs"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "test/allowed-skips.txt").write_text("unit:S.Slow* -- needs a day\n")
    monkeypatch.setenv("KVPC_ROOT", str(tmp_path))
    monkeypatch.setenv("KVPC_BUILD", str(tmp_path / "build"))
    monkeypatch.setenv("KVPC_LOGS", str(tmp_path / "logs"))
    monkeypatch.setenv("KVPC_VENV", str(tmp_path / ".venv"))
    monkeypatch.setenv("KVPC_JOBS", "1")
    return tmp_path


def unit(project, programs):
    """The last line and exit code of `scripts/test unit` with these programs: name -> (cases, code)."""
    folder = project / "build/test/unit"
    (folder / "programs.txt").write_text("\n".join(programs))
    for name, program in programs.items():
        if program is not None:
            cases, code = program
            text = PROGRAM.format(python=sys.executable, cases=cases, code=code)
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
    done = subprocess.run(
        [sys.executable, SCRIPTS / "run_tests.py", "unit"],
        capture_output=True,
        text=True,
        env=dict(os.environ),
    )
    return done.stdout.splitlines()[-1], done.returncode


PASS = {"name": "Works", "result": "COMPLETED", "status": "RUN"}
FAIL = {"name": "Fails", "result": "COMPLETED", "failures": [{"failure": "a\nb"}]}
SLOW = {"name": "SlowOne", "result": "SKIPPED", "status": "RUN"}
SKIP = {"name": "Skips", "result": "SKIPPED", "status": "RUN"}
DISABLED = {"name": "DISABLED_X", "result": "SUPPRESSED", "status": "NOTRUN"}


@pytest.mark.parametrize(
    "programs, line, code",
    [
        ({"a": ([PASS, PASS], 0)}, "2 passed, 0 failed, 0 skipped", 0),
        ({"a": ([PASS, FAIL], 1), "b": ([PASS], 0)}, "2 passed, 1 failed, 0 skipped", 1),
        ({"a": ([PASS, SLOW], 0)}, "1 passed, 0 failed, 1 skipped", 0),
        ({"a": ([PASS, SKIP], 0)}, "1 passed, 1 failed, 0 skipped", 1),
        ({"a": ([PASS, DISABLED], 0)}, "1 passed, 1 failed, 0 skipped", 1),
        ({"a": ([PASS], 3)}, "1 passed, 1 failed, 0 skipped", 1),  # died after its report
        ({"a": (None, 0)}, "0 passed, 1 failed, 0 skipped", 1),  # no report
        ({"a": ([PASS], 0), "b": None}, "1 passed, 1 failed, 0 skipped", 1),  # not built
        ({"a": ([], 0)}, "0 passed, 1 failed, 0 skipped", 1),  # no tests in it
        ({}, "0 passed, 1 failed, 0 skipped", 1),  # no programs
    ],
)
def test_unit_counts(project, programs, line, code):
    assert unit(project, programs) == (line, code)


def test_skip_without_reason_is_refused(project):
    (project / "test/allowed-skips.txt").write_text("unit:*\n")
    assert unit(project, {"a": ([PASS], 0)}) == ("1 passed, 1 failed, 0 skipped", 1)


def test_junit_outcomes(project, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.delitem(sys.modules, "run_tests", raising=False)
    run_tests = importlib.import_module("run_tests")
    report = project / "report.xml"
    report.write_text(
        "<testsuites><testsuite><testcase classname='kvpc.IR' name='a.mlir'/>"
        "<testcase classname='kvpc.IR' name='b.mlir'><failure>x</failure></testcase>"
        "<testcase classname='kvpc.IR' name='c.mlir'><skipped message='m'/></testcase>"
        "</testsuite></testsuites>"
    )
    found = [(r.test, r.outcome) for r in run_tests.from_junit("lit", report)]
    assert found == [
        ("lit:IR/a.mlir", "passed"),
        ("lit:IR/b.mlir", "failed"),
        ("lit:IR/c.mlir", "skipped"),
    ]
    report.write_text("<testsuites><testsuite>")
    results = run_tests.settle("lit", run_tests.from_junit("lit", report), 0, report)
    assert [r.outcome for r in results] == ["failed"]


def test_results_are_kept(project):
    unit(project, {"a": ([PASS, FAIL], 1)})
    results = json.loads((project / "logs/results.json").read_text())
    assert [(r["test"], r["outcome"]) for r in results] == [
        ("unit:S.Works", "passed"),
        ("unit:S.Fails", "failed"),
    ]
