"""Runs the test suites and counts what they report in machine-readable form.

A suite that crashes, times out, reports nothing or leaves a program unbuilt counts as a failure,
and so does a skipped test that test/allowed-skips.txt does not name.
"""

import json
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import lint

ROOT = Path(os.environ["KVPC_ROOT"])
BUILD = Path(os.environ["KVPC_BUILD"])
LOGS = Path(os.environ["KVPC_LOGS"])
JOBS = int(os.environ["KVPC_JOBS"])
SUITE_LIMIT_S = 1200
PROGRAM_LIMIT_S = 300


@dataclass
class Result:
    test: str  # suite:name
    outcome: str  # passed, failed or skipped
    detail: str = ""


def run(command, log, limit_s, **env):
    """The exit code, or a sentence where there is none; output goes to the log."""
    with open(log, "w") as out:
        try:
            process = subprocess.run(
                [str(c) for c in command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                timeout=limit_s,
                env={
                    **os.environ,
                    "PYTHONPATH": str(BUILD / "python"),
                    "KVPC_BUILD": str(BUILD),
                    **env,
                },
            )
        except subprocess.TimeoutExpired:
            return f"stopped after {limit_s} s"
        except OSError as error:
            return str(error)
    code = process.returncode
    return f"died of signal {-code}" if code < 0 else code


def settle(suite, results, code, log):
    """Adds a failure where the runner failed without saying which test did, or ran none."""
    failed = any(r.outcome == "failed" for r in results)
    if code != 0 and not failed:
        results.append(Result(f"{suite}:runner", "failed", f"exit {code}, see {log}"))
    elif not results:
        results.append(Result(f"{suite}:runner", "failed", f"no test ran, see {log}"))
    return results


def from_junit(suite, report):
    """Results of a JUnit file, as lit and pytest write it."""
    try:
        cases = ET.parse(report).getroot().iter("testcase")
    except (OSError, ET.ParseError):
        return []
    results = []
    for case in cases:
        name = f"{suite}:{case.get('classname')}::{case.get('name')}"
        if suite == "lit":
            # classname is `kvpc.folder/subfolder`, or `kvpc.kvpc` at the top
            folder = (case.get("classname") or "").removeprefix("kvpc.")
            name = f"lit:{folder}/{case.get('name')}"
        bad = [*case.iter("failure"), *case.iter("error")]
        skip = case.find("skipped")
        if bad:
            results.append(Result(name, "failed", bad[0].get("message") or ""))
        elif skip is not None:
            results.append(Result(name, "skipped", skip.get("message") or ""))
        else:
            results.append(Result(name, "passed"))
    return results


def lit_suite():
    report, log = LOGS / "lit.xml", LOGS / "lit.log"
    report.unlink(missing_ok=True)
    code = run(
        [
            Path(sys.executable).with_name("lit"),
            "-v",
            f"-j{JOBS}",
            "--timeout",
            str(PROGRAM_LIMIT_S),
        ]
        + ["--xunit-xml-output", report, BUILD / "test"],
        log,
        SUITE_LIMIT_S,
    )
    return settle("lit", from_junit("lit", report), code, log)


def unit_program(name):
    report, log = LOGS / f"unit-{name}.json", LOGS / f"unit-{name}.log"
    report.unlink(missing_ok=True)
    program = BUILD / "test/unit" / name
    code = run([program, f"--gtest_output=json:{report}"], log, PROGRAM_LIMIT_S)
    results = []
    try:
        suites = json.loads(report.read_text())["testsuites"]
    except (OSError, ValueError, KeyError):
        suites = []
    for suite in suites:
        for test in suite["testsuite"]:
            full = f"unit:{suite['name']}.{test['name']}"
            if test.get("failures"):
                text = test["failures"][0].get("failure", "")
                results.append(Result(full, "failed", text.splitlines()[0] if text else ""))
            elif test.get("result") == "COMPLETED":
                results.append(Result(full, "passed"))
            else:  # skipped, or disabled and so not run
                results.append(Result(full, "skipped", test.get("result", test.get("status"))))
    return settle(f"unit:{name}", results, code, log)


def unit_suite():
    listing = BUILD / "test/unit/programs.txt"
    names = listing.read_text().split() if listing.exists() else []
    with ThreadPoolExecutor(JOBS) as pool:
        results = [r for found in pool.map(unit_program, names) for r in found]
    return settle("unit", results, 0, listing)


def python_folder(folder):
    report, log = LOGS / f"pytest-{folder}.xml", LOGS / f"pytest-{folder}.log"
    report.unlink(missing_ok=True)
    files = len(list((ROOT / "test" / folder).glob("test_*.py")))
    code = run(
        [sys.executable, "-m", "pytest", f"test/{folder}", f"--junitxml={report}"]
        # A file is one process's: its fixtures compile once. conftest.py says in what order.
        + ["-n", min(JOBS, files), "--dist", "loadfile", "--no-loadscope-reorder"],
        log,
        SUITE_LIMIT_S,
        # Threads of OpenMP that wait would take the cores from the other process of the tests.
        OMP_WAIT_POLICY="PASSIVE",
    )
    return settle(f"python:{folder}", from_junit("python", report), code, log)


def python_suite():
    """One process per folder: test/parity imports kvpress, which patches what test/python tests."""
    folders = [name for name in ("python", "parity") if (ROOT / "test" / name).is_dir()]
    with ThreadPoolExecutor(len(folders)) as pool:
        results = [r for found in pool.map(python_folder, folders) for r in found]
    return settle("python", results, 0, "test/python")


def lint_suite():
    return [
        Result(f"lint:{name}", "passed" if ok else "failed", detail)
        for name, ok, detail in lint.checks(ROOT, BUILD, LOGS, JOBS)
    ]


SUITES = {"lint": lint_suite, "lit": lit_suite, "unit": unit_suite, "python": python_suite}


def allowed_skips():
    """The patterns of test/allowed-skips.txt, lines `suite:test -- reason`."""
    patterns = []
    for number, line in enumerate((ROOT / "test/allowed-skips.txt").read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        pattern, _, reason = line.partition(" -- ")
        if not reason.strip():
            raise ValueError(f"test/allowed-skips.txt:{number}: a skip needs ` -- ` and a reason")
        patterns.append(re.compile(".*".join(map(re.escape, pattern.strip().split("*")))))
    return patterns


def main():
    parts = sys.argv[1:] or list(SUITES)
    results = []
    try:
        patterns = allowed_skips()
    except (OSError, ValueError) as error:
        print(f"  FAIL {error}")
        patterns, results = [], [Result("skips:list", "failed", str(error))]
    for part in parts:
        start = time.monotonic()
        try:
            found = SUITES[part]()
        except Exception as error:  # the last line must come, whatever breaks
            found = [Result(f"{part}:runner", "failed", f"{type(error).__name__}: {error}")]
        for result in found:
            if result.outcome == "skipped" and not any(p.fullmatch(result.test) for p in patterns):
                result.outcome = "failed"
                result.detail = f"skipped, not in test/allowed-skips.txt: {result.detail}"
        count = {o: sum(r.outcome == o for r in found) for o in ("passed", "failed", "skipped")}
        took = time.monotonic() - start
        counts = (
            f"{count['passed']:5d} passed {count['failed']:4d} failed {count['skipped']:4d} skipped"
        )
        print(f"{part:<8}{counts}  {took:5.0f} s", flush=True)
        for result in found:
            if result.outcome == "failed":
                print(f"  FAIL {result.test}  {result.detail}".rstrip()[:300], flush=True)
        results += found
    (LOGS / "results.json").write_text(json.dumps([asdict(r) for r in results], indent=1))
    total = {o: sum(r.outcome == o for r in results) for o in ("passed", "failed", "skipped")}
    if total["failed"]:
        print(f"logs: {LOGS}")
    print(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    sys.exit(1 if total["failed"] or not total["passed"] else 0)


if __name__ == "__main__":
    main()
