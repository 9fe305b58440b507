"""The lint part of scripts/test: each tool is one check over all of the project's files."""

import functools
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Where clang-tidy's complaints count, beside the file it is given.
HEADERS = r"/(dialect|lib|tools|runtime|test|benchmark)/.*\.(h|cpp)$"
GROUP = 12


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
    for name in sources(root, "*.cpp", ":!*/Inputs/*"):
        path = root / name
        if path not in commands:
            # Not compiled here: as a neighbour is, or the nearest above it.
            near = max(commands, key=lambda other: len(os.path.commonpath([other, path])))
            words = commands[near][0]
            commands[path] = [*words[: words.index("-c")], "-c", str(path)], every_header
        found[path] = commands[path]
    return found


def clang_tidy(root, build, logs, jobs):
    """Checks each file whose text, headers, command or settings have changed since it was clean.

    Files of one target go in groups through one run, which parses their common headers once. The
    files that it complains of are read again alone; so a clash between two files of a group, which
    is not an error of theirs, costs time and nothing else.
    """
    program, config = tool("clang-tidy"), root / ".clang-tidy"
    version = subprocess.run([program, "--version"], capture_output=True, check=True).stdout
    settings = version + config.read_bytes()
    clean, folder = build / "tidy/clean", build / "tidy"
    clean.mkdir(parents=True, exist_ok=True)

    @functools.cache
    def digest(path):
        return hashlib.sha256(path.read_bytes()).digest() if path.exists() else b""

    targets, marks, total = {}, {}, 0
    for path, (words, headers) in tidy_commands(root, build).items():
        total += 1
        options = list(words[1 : words.index("-c")])
        for own in ("-o", "-MF", "-MT"):  # what is each file's own would put each in its own group
            if own in options:
                del options[(at := options.index(own)) : at + 2]
        key = hashlib.sha256(settings + "\0".join(options).encode())
        for used in [path, *sorted(set(headers))]:
            key.update(digest(used))
        marks[path] = clean / key.hexdigest()
        if not marks[path].exists():
            targets.setdefault(tuple(options), []).append(path)

    log = logs / "clang-tidy.log"
    log.write_text("")

    def check(options, paths):
        """Those of the files that are not clean; the log says why."""
        source = paths[0]
        if len(paths) > 1:
            name = hashlib.sha256("\0".join(map(str, paths)).encode()).hexdigest()[:16]
            source = folder / f"{name}.cpp"
            source.write_text("".join(f'#include "{path}"\n' for path in paths))
        done = subprocess.run(
            [program, "--quiet", f"--config-file={config}", f"--header-filter={HEADERS}"]
            + [str(source), "--", *options],
            capture_output=True,
            text=True,
            cwd=build,
        )
        if done.returncode == 0:
            for path in paths:
                marks[path].touch()
            return []
        if len(paths) > 1:
            accused = [path for path in paths if f"{path}:" in done.stdout]
            rest = [path for path in paths if path not in accused]
            if rest and accused:
                parts = [[path] for path in accused] + [rest]
            else:
                parts = [paths[: len(paths) // 2], paths[len(paths) // 2 :]]
            return [path for part in parts for path in check(options, part)]
        with open(log, "a") as out:
            out.write(done.stdout + done.stderr)
        return [source]

    groups = [
        (list(options), paths[i : i + GROUP])
        for options, paths in targets.items()
        for i in range(0, len(paths), GROUP)
    ]
    groups.sort(key=lambda group: -len(group[1]))
    with ThreadPoolExecutor(jobs) as pool:
        unclean = [path for found in pool.map(lambda g: check(*g), groups) for path in found]
    return not unclean, f"{len(unclean)} of {total} files, see {log}" if unclean else ""


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
