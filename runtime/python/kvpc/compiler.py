"""Compiling presses: runs the executable `kvpc` and caches what it makes.

The compiler is a process of its own, so that no LLVM lives beside Torch. A module is cached under
the digest of its source (with what it imports), the options and the compiler itself, in the folder
that the environment variable KVPC_CACHE names, else $XDG_CACHE_HOME/kvpc or ~/.cache/kvpc.
"""

import hashlib
import operator
import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from . import library
from .budget import Budget
from .errors import ArgumentError, CompileError, Error, diagnostics_of, of_runtime
from .module import load

_NEEDED = {
    "int": "a whole number",
    "bool": "True or False",
    "fraction": "a number, at least 0 and less than 1",
    "budget": "kvpc.drop(r) or kvpc.keep(n) among the `defines`",
    "score": 'source text of a score, such as "tova()"',
    "press": 'source text of a press, such as "chunkkv()"',
}
_DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


def compile(
    program,
    *,
    defines=None,
    dtypes=None,
    channels=None,
    targets=None,
    press=None,
    optimization="O2",
    workspace=None,
    without=(),
    include=(),
):
    """The compiled Module of a program.

    program       name of a press or score of the library (`"snapkv"`), path of a `.kv` file
                  (a pathlib.Path, or text that ends in `.kv`), or source text
    defines       static parameters by name (`"window"`, or `"snapkv.window"` of one press): Python
                  values, or source text, as scores and presses need: `{"inner": "tova()"}`
    dtypes        of the cache, of `"f32"`, `"bf16"`, `"f16"`, or torch dtypes; left out: the first two
    channels      head sizes to specialise for; 0 stands for any
    targets       instruction sets, of `x86-64-v3`, `x86-64-v4`, `x86-64-v4+avx512bf16`. Left out:
                  this machine's (or KVPC_TARGET's) alone, as the module is for this process; to
                  carry one to other machines name all, or use `kvpc compile`
    press         which one (or ones) of the file to compile; None: all
    optimization  "O2", or "O0" for one pass per operation
    workspace     cap of wide buffers, as a fraction of the keys' bytes: what does not fit is made
                  again by each pass that reads it, with the same bits; 0 holds none
    without       optimisations (or one) to leave out, of "algebra", "fusion", "microkernel",
                  "exponents", "tiles", "weighing"
    include       folders (or one) for `import`

    What else is left out is the compiler's default. Raises CompileError with `diagnostics`,
    CompilerNotFound.
    """
    executable = library.compiler()
    if targets is None:
        targets = _machine()
    include = _list("include", include, str | os.PathLike, "the path of a folder")
    options = _options(
        {} if defines is None else defines,
        dtypes,
        channels,
        targets,
        press,
        optimization,
        workspace,
        without,
        include,
    )
    name, source, folder = _program(program)
    key = hashlib.sha256()
    for part in (_identity(executable), name, *options, *_texts(source, folder, include)):
        key.update(_bytes(str(part)) + b"\0")
    place = cache_folder() / f"{_stem(name)}-{key.hexdigest()[:32]}.kvm"
    if not place.exists():
        _make(executable, name, source if folder is None else None, options, place)
    return load(place)


# What `press` takes for the only budget.
_BUDGETS = ("drop", "keep", "compression_ratio")


def press(program, *, name=None, defines=None, **parameters):
    """A press of the library (or of a file, or of source text), compiled with its static parameters.

    `kvpc.press("snapkv", drop=0.5, window=32)`: parameters that decide shapes, here `window`, are
    compiled in; the others, here the budget, belong to the call. Scores and presses are given as
    source text: `kvpc.press("chunkkv", inner="tova()")`. Other options of `compile` are not taken
    here: `kvpc.compile(...).press(...)`.
    """
    defines = dict(_defines({} if defines is None else defines))
    parameters = {key: _number(value) for key, value in parameters.items()}
    # Text can only be a score or a press, which are always static; but a path of a tensor.
    sure = {
        key: value
        for key, value in parameters.items()
        if (isinstance(value, bool) and key not in _BUDGETS)
        or (isinstance(value, str) and "(" in value)
    }
    scalars = {
        key: value
        for key, value in parameters.items()
        if key not in sure and key not in _BUDGETS and isinstance(value, int | float)
    }
    static = _static(program, name, defines | sure, scalars) if scalars else {}
    module = compile(program, defines=defines | sure | static, press=name)
    chosen = name or _only(module, program)
    known = module.presses[chosen].parameters if chosen in module.presses else {}
    fixed = {*sure, *static, *(k for k in scalars if k in known and known[k].static)}
    for key in known.keys() & parameters.keys() - fixed:
        if known[key].static and key in _BUDGETS:
            raise ArgumentError(
                f"`{key}=` is a budget here, and a static parameter of `{chosen}`; give that as "
                f"`defines={{'{key}': ...}}`",
                "kvm-parameter",
            )
        if known[key].static and parameters[key] is not None:
            raise _wrong(key, parameters[key], _NEEDED.get(known[key].type, "a number"))
    return module.press(chosen, **{k: v for k, v in parameters.items() if k not in fixed})


def _machine():
    """What modules run as in this process; None, and so all, where the machine is older."""
    try:
        return library.ops().machine() or None
    except RuntimeError as error:
        raise of_runtime(error) from None


def _only(module, program):
    """The press that is meant where none is named; None if that is not clear."""
    if program in module.presses:
        return program
    return next(iter(module.presses)) if len(module.presses) == 1 else None


def _static(program, name, defines, scalars):
    """Which of `scalars` must be compiled in, because they decide shapes.

    Only the compiler knows: the quickest module there is tells. Those that have their values there
    already are left out.
    """
    quick = {"dtypes": "f32", "channels": 0, "targets": "x86-64-v3", "optimization": "O0"}
    try:
        module = compile(program, defines=defines, press=name, **quick)
    except CompileError:
        module = None
    # Perhaps one of them has no default; if not, this compilation says what is wrong.
    needed = module is None
    if needed:
        module = compile(program, defines=defines | scalars, press=name, **quick)
    chosen = name or _only(module, program)
    known = module.presses[chosen].parameters if chosen in module.presses else {}
    static = [k for k in scalars if k in known and known[k].static]
    return {k: scalars[k] for k in static if needed or known[k].value != scalars[k]}


def cache_folder():
    """Where compiled modules are kept; made if it is not there.

    Loading runs code, so it must be ours: owned by this user, and writable by nobody else.
    """
    named = os.environ.get("KVPC_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(named) if named else Path(base) / "kvpc"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Error(
            f"the cache folder `{folder}` is not this user's alone; others could place code in it; "
            "set KVPC_CACHE to a folder of your own, or `chmod go-w` it"
        )
    return folder


def _number(value):
    """A Python number for one of NumPy's or of a tensor without axes."""
    return value.item() if getattr(value, "shape", None) == () else value


def _source_text(name, value):
    value = _number(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float | Budget | str):
        return str(value)
    raise ArgumentError(
        f"the define `{name}` is a {type(value).__name__}; need a number, true or false, "
        "kvpc.drop(r), kvpc.keep(n), or source text",
        "kvm-parameter",
    )


def _wrong(name, value, need):
    return ArgumentError(f"`{name}` is {value!r}; need {need}", "kvm-parameter")


def _list(name, given, kinds, need):
    """The one, or the several, that an option takes."""
    several = (given,) if isinstance(given, kinds) else given
    try:
        several = tuple(several)
    except TypeError:
        raise _wrong(name, given, f"{need}, or several") from None
    for one in several:
        if not isinstance(one, kinds):
            raise _wrong(name, one, need)
    return several


def _defines(defines):
    if not isinstance(defines, Mapping):
        raise _wrong("defines", defines, "values by the names of static parameters")
    for name in defines:
        if not isinstance(name, str):
            raise _wrong("a name in defines", name, "text")
    return defines


def _channels(given):
    """Whole numbers, NumPy's too."""
    try:
        several = given if isinstance(given, Iterable) and not isinstance(given, str) else (given,)
        if not any(isinstance(c, bool) for c in several):
            return tuple(operator.index(c) for c in several)
    except TypeError:
        pass
    raise _wrong("channels", given, "a head size, or several; 0 stands for any")


def _options(defines, dtypes, channels, targets, press, optimization, workspace, without, include):
    if optimization not in ("O0", "O2"):
        raise ArgumentError(
            f'`optimization` is "{optimization}"; need "O0" or "O2"', "kvm-parameter"
        )
    defines = sorted(_defines(defines).items())
    options = [f"-D{name}={_source_text(name, value)}" for name, value in defines]
    options += [f"-I{Path(folder).absolute()}" for folder in include]
    if dtypes is not None:
        dtypes = _list("dtypes", dtypes, str | torch.dtype, 'a torch dtype, "f32", "bf16" or "f16"')
        options.append("--dtype=" + ",".join(_DTYPES.get(d, str(d)) for d in dtypes))
    if channels is not None:
        options.append("--channels=" + ",".join(map(str, _channels(channels))))
    if targets is not None:
        targets = _list("targets", targets, str, "the name of an instruction set")
        options.append("--target=" + ",".join(targets))
    for one in () if press is None else _list("press", press, str, "the name of a press"):
        options.append(f"--press={one}")
    if workspace is not None:
        workspace = _number(workspace)
        if isinstance(workspace, bool) or not isinstance(workspace, int | float):
            raise _wrong("workspace", workspace, "a fraction of the keys' bytes")
        options.append(f"--workspace={workspace}")
    if without := _list("without", without, str, "the name of an optimisation"):
        options.append("--without=" + ",".join(without))
    return [*options, f"-{optimization}"]


def _program(program):
    """(what the command line names, source text or None, folder of its imports or None).

    Bytes that are no text pass through: the compiler says where they are.
    """
    if not isinstance(program, str | os.PathLike):
        raise ArgumentError(
            f"the program is a {type(program).__name__}; need the name of a press, the path of a "
            "file (.kv), or source text",
            "kvm-parameter",
        )
    if isinstance(program, os.PathLike) or (program.endswith(".kv") and "\n" not in program):
        path = Path(program).absolute()
        try:
            return str(path), path.read_text("utf-8", "surrogateescape"), path.parent
        except OSError as error:
            reason = error.strerror.lower()
            raise CompileError(f"cannot read `{path}`: {reason} [kvpc-file]") from None
    if re.fullmatch(r"\w+", program):
        return program, None, None
    return "source.kv", program, None


def _bytes(text):
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _stem(name):
    return re.sub(r"\W", "_", Path(name).stem)


def _identity(executable):
    """Tells one compiler from another, also while the same version is being worked on."""
    status = executable.stat()
    return f"{_version(executable, status.st_mtime_ns)} {status.st_size} {status.st_mtime_ns}"


_versions = {}


def _version(executable, stamp):
    key = (executable, stamp)
    if key not in _versions:
        _versions[key] = library.run([executable, "--version"]).stdout.strip()
    return _versions[key]


def _texts(source, folder, include):
    """The source, and that of all files that it may import, in a fixed order. One too many, of a
    name in a comment or in a folder that comes later, does no harm."""
    texts, waiting, seen = [], [(source or "", folder)], set()
    while waiting:
        text, beside = waiting.pop()
        texts.append(text)
        for name in re.findall(r"import(?:\s|#[^\n]*\n)+([\w']+)", text):
            for place in (beside, *map(Path, include)):
                path = place / f"{name}.kv" if place is not None else None
                if path and path.exists() and path not in seen:
                    seen.add(path)
                    waiting.append((path.read_text("utf-8", "surrogateescape"), path.parent))
    return texts


def _make(executable, name, text, options, place):
    with tempfile.TemporaryDirectory(prefix=".kvpc-", dir=place.parent) as folder:
        if text is not None:
            (Path(folder) / name).write_bytes(_bytes(text))
        made = Path(folder) / "module.kvm"
        command = [executable, "compile", name, "-o", made, *options]
        # In a folder where a name of the library is the name of no file.
        done = library.run(command, stdin=subprocess.DEVNULL, cwd=folder)
        if done.returncode or not made.exists():
            kind = {1: "", 2: "the command line is wrong: "}.get(
                done.returncode, f"the compiler failed with exit code {done.returncode}: "
            )
            raise CompileError(kind + done.stderr.strip(), diagnostics_of(done.stderr))
        os.replace(made, place)
