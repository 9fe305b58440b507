"""The lint part of scripts/test: each tool is one check over all of the project's files."""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Options for a C++ file that CMake compiles by a command of its own, and so does not list.
UNLISTED = ["clang++-22", "-std=c++20", "-O2", "-mavx512bf16", "-mavx512vl", "-mavx512bw"]


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


def without_precompiled_header(words):
    """clang-tidy would read all of the precompiled header back, slower than parsing what a file
    includes; and so a file that does not include what it uses is found."""
    kept, rest = [], iter(words)
    for word in rest:
        if word == "-Xclang":
            option = next(rest)
            if option in ("-include-pch", "-include"):
                next(rest), next(rest)  # -Xclang and the file
            elif option != "-fno-pch-timestamp":
                kept += [word, option]
        elif word not in ("-Winvalid-pch", "-fpch-instantiate-templates"):
            kept.append(word)
    return kept


def tidy_commands(root, build):
    """For every C++ file its command, from the compilation database, and the headers it reads."""
    headers = dependencies(root, build)
    every_header = [root / name for name in sources(root, "*.h")]
    commands = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        words = shlex.split(entry["command"])
        output = words[words.index("-o") + 1] if "-o" in words else ""
        read = headers.get(output, every_header)
        commands[Path(entry["file"])] = (without_precompiled_header(words), read)
    found = {}
    for name in sources(root, "*.cpp"):
        path = root / name
        found[path] = commands.get(path) or (
            [*UNLISTED, f"-I{root}", f"-I{build}", f"-I{root}/runtime/core/include"]
            + ["-c", str(path)],
            every_header,
        )
    return found


def clang_tidy(root, build, logs, jobs):
    """A file is checked again when it, a header of it, its command or the settings change."""
    program = tool("clang-tidy")
    version = subprocess.run([program, "--version"], capture_output=True, check=True).stdout
    settings = version + (root / ".clang-tidy").read_bytes()
    cache, folder = build / "tidy/clean", build / "tidy"
    cache.mkdir(parents=True, exist_ok=True)
    contents = {}

    def digest(path):
        if path not in contents:
            contents[path] = hashlib.sha256(path.read_bytes()).digest() if path.exists() else b""
        return contents[path]

    commands = tidy_commands(root, build)
    database = [
        {"directory": str(build), "file": str(path), "arguments": words}
        for path, (words, _) in commands.items()
    ]
    (folder / "compile_commands.json").write_text(json.dumps(database))

    def check(item):
        path, (words, headers) = item
        key = hashlib.sha256(settings + "\0".join(words).encode())
        for used in [path, *sorted(set(headers))]:
            key.update(digest(used))
        mark = cache / key.hexdigest()
        if mark.exists():
            return True, ""
        done = subprocess.run(
            [program, "--quiet", "-p", str(folder), str(path)],
            capture_output=True,
            text=True,
            cwd=root,
        )
        if done.returncode == 0:
            mark.touch()
        return done.returncode == 0, done.stdout + done.stderr

    with ThreadPoolExecutor(jobs) as pool:
        outcomes = list(pool.map(check, commands.items()))
    log = logs / "clang-tidy.log"
    log.write_text("".join(text for ok, text in outcomes if not ok))
    bad = sum(not ok for ok, _ in outcomes)
    return bad == 0, "" if bad == 0 else f"{bad} of {len(outcomes)} files, see {log}"


def checks(root, build, logs, jobs):
    """Yields (name, passed, what to do) for each tool."""
    tools = {"clang-format": clang_format, "clang-tidy": clang_tidy}
    tools |= {"ruff-check": ruff_check, "ruff-format": ruff_format}
    if sources(root, "presses/*.kv"):
        tools["kvpc-fmt"] = kvpc_format
    for name, function in tools.items():
        try:
            yield name, *function(root, build, logs, jobs)
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            yield name, False, f"{type(error).__name__}: {error}"
