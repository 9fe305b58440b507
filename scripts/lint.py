"""The lint part of scripts/test: each tool is one check over all of the project's files."""

import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Where clang-tidy's complaints count, beside the file it is given.
HEADERS = r"/(dialect|lib|tools|runtime|test|benchmark)/.*\.(h|cpp)$"


def sources(root, *patterns):
    """Files of the project that match: committed, or new and not ignored."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--"]
    listing = subprocess.run([*command, *patterns], cwd=root, capture_output=True, check=True)
    names = sorted(set(listing.stdout.decode().split("\0")) - {""})
    return [name for name in names if (root / name).is_file()]


def tool(name):
    """A program of LLVM 22, or one of the virtual environment."""
    beside = Path(sys.executable).parent / name
    found = shutil.which(f"{name}-22") or (str(beside) if beside.exists() else shutil.which(name))
    if not found:
        raise FileNotFoundError(f"{name} is not there: run scripts/setup")
    return found


def quiet(command, root, log):
    with open(log, "w") as out:
        code = subprocess.run(command, cwd=root, stdout=out, stderr=subprocess.STDOUT).returncode
    return code == 0, "" if code == 0 else f"run scripts/format, or see {log}"


def clang_format(root, build, logs, jobs):
    files = sources(root, "*.cpp", "*.h", "*.c")
    return quiet(
        [tool("clang-format"), "--dry-run", "-Werror", *files], root, logs / "clang-format.log"
    )


def ruff_check(root, build, logs, jobs):
    return quiet([tool("ruff"), "check", "--no-cache", "."], root, logs / "ruff-check.log")


def ruff_format(root, build, logs, jobs):
    return quiet(
        [tool("ruff"), "format", "--check", "--no-cache", "."], root, logs / "ruff-format.log"
    )


def kvpc_format(root, build, logs, jobs):
    files = sources(root, "presses/*.kv")
    return quiet([str(build / "bin/kvpc"), "fmt", "--check", *files], root, logs / "kvpc-fmt.log")


def dependencies(root, build):
    """For each object of the build, the project's own headers that it was compiled from."""
    text = subprocess.run(
        ["ninja", "-C", str(build), "-t", "deps"], capture_output=True, text=True, check=True
    ).stdout
    headers, current = {}, None
    environment = Path(os.environ["KVPC_VENV"])
    for line in text.splitlines():
        if line.startswith("    ") and current is not None:
            path = Path(os.path.normpath(build / line.strip()))
            ours = root in path.parents or build in path.parents
            if ours and environment not in path.parents and path.suffix != ".pch":
                current.append(path)
        elif ": #deps" in line:
            current = headers.setdefault(line.split(": #deps")[0], [])
    return headers


def tidy_commands(root, build):
    """For every C++ file the options of its command, from the compilation database, and the headers
    it reads."""
    headers = dependencies(root, build)
    every_header = [root / name for name in sources(root, "*.h")]
    commands = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        words = shlex.split(entry["command"])
        output = words[words.index("-o") + 1] if "-o" in words else ""
        read = headers.get(output, every_header)
        commands[Path(entry["file"])] = (words[1 : words.index("-c")], read)
    # Sources that are compiled a few at a time are read so.
    together = {path for path in commands if path.parent.name == "Unity"}
    found = {path: commands[path] for path in together}
    included = {Path(p) for t in together for p in re.findall(r'#include "(.*)"', t.read_text())}
    for name in sources(root, "*.cpp", ":!*/Inputs/*"):
        path = root / name
        if path in included:
            continue
        if path in commands:
            found[path] = commands[path]
        else:  # Not compiled here: as a neighbour is, or the nearest above it.
            near = max(commands, key=lambda other: len(os.path.commonpath([other, path])))
            found[path] = commands[near][0], every_header
    return found


def clang_tidy(root, build, logs, jobs):
    """Checks each file whose text, headers, command or settings have changed since it was clean.

    Files are read as the build compiles them, with its precompiled headers.
    """
    program, config = tool("clang-tidy"), root / ".clang-tidy"
    version = subprocess.run([program, "--version"], capture_output=True, check=True).stdout
    settings = version + config.read_bytes()
    clean = build / "tidy/clean"
    clean.mkdir(parents=True, exist_ok=True)

    @functools.cache
    def digest(path):
        return hashlib.sha256(path.read_bytes()).digest() if path.exists() else b""

    commands = tidy_commands(root, build)
    log = logs / "clang-tidy.log"
    log.write_text("")

    def is_clean(path):
        options, headers = commands[path]
        key = hashlib.sha256(settings + "\0".join(options).encode())
        for used in [path, *sorted(set(headers))]:
            key.update(digest(used))
        mark = clean / key.hexdigest()
        if mark.exists():
            return True
        done = subprocess.run(
            [program, "--quiet", f"--config-file={config}", f"--header-filter={HEADERS}"]
            + [str(path), "--", *options],
            capture_output=True,
            text=True,
            cwd=build,
        )
        if done.returncode == 0:
            mark.touch()
            return True
        with open(log, "a") as out:
            out.write(done.stdout + done.stderr)
        return False

    with ThreadPoolExecutor(jobs) as pool:
        unclean = list(pool.map(is_clean, commands)).count(False)
    return not unclean, f"{unclean} of {len(commands)} files, see {log}" if unclean else ""


def checks(root, build, logs, jobs):
    """(name, passed, what to do) of each tool; one that reads many files has company."""
    tools = {"clang-tidy": clang_tidy, "clang-format": clang_format}
    tools |= {"ruff-check": ruff_check, "ruff-format": ruff_format}
    if sources(root, "presses/*.kv"):
        tools["kvpc-fmt"] = kvpc_format

    def checked(name):
        try:
            return name, *tools[name](root, build, logs, jobs)
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            return name, False, f"{type(error).__name__}: {error}"

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(checked, tools))
