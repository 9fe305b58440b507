"""The hook's own tests with other versions of transformers, each in a process of its own.

They are installed by scripts/setup without their dependencies (test/versions.txt): one torch serves
all.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINES = (ROOT / "test/versions.txt").read_text().splitlines()
VERSIONS = [line.split()[0] for line in LINES if line and not line.startswith("#")]

# All that depends on transformers, once; what kinds of presses there are is no matter of versions.
CHOSEN = """(by_hand and sdpa and all) or (test_generate and all) or chunked or second_prompt_generate or prompt_in_chunks
or (left_padding and all) or unrotated or (beam and all) or (crop and all) or refused or saved
or leaving or exception or compiled_decode or (between_pieces and not copy) or positions
or hybrid or within or wanted or phi"""


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """All at once, for there is more than one core."""
    folder, started = tmp_path_factory.mktemp("versions"), {}
    # which version it is must be seen, or a wrong path would pass
    (folder / "says_version.py").write_text(
        "import transformers\n\ndef pytest_report_header():\n"
        "    return f'transformers is {transformers.__version__}'\n"
    )
    for version in VERSIONS:
        place = Path(sys.prefix) / "versions" / version
        if not place.is_dir():
            continue
        paths = [str(place), os.environ.get("PYTHONPATH", ""), str(folder)]
        log = folder / version
        with log.open("w") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "pytest", "-v", "-v", "-p", "says_version"]
                + ["-k", " ".join(CHOSEN.split())]
                + [
                    f"test/python/test_hook{part}.py"
                    for part in ("", "_attach", "_cache", "_hybrid", "_pieces")
                ],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        started[version] = process, log
    yield started
    for process, _ in started.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("version", VERSIONS)
def test_version(version, processes):
    assert version in processes, f"transformers {version} is not installed: run scripts/setup"
    process, log = processes[version]
    code = process.wait(timeout=280)
    said = log.read_text()
    assert code == 0, said[-3000:]
    assert f"transformers is {version}" in said
    assert said.count("PASSED") > 50 and "SKIPPED" not in said
