"""Where the parts of kvpc are: libkvpc_torch.so and the executable `kvpc`.

Build folder and installation are laid out alike (bin, lib, python/kvpc), so a package finds the
parts beside it. In a source tree, they are those of build/release. The environment variable
KVPC_BUILD names another folder, KVPC_COMPILER another executable.
"""

import errno
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import torch

from .errors import CompilerNotFound, Error

VERSION = "0.1.0"


def _prefixes():
    here = Path(__file__).resolve()
    if os.environ.get("KVPC_BUILD"):
        yield Path(os.environ["KVPC_BUILD"])
    yield here.parents[2]
    if here.parents[1].name == "python" and here.parents[2].name == "runtime":
        yield here.parents[3] / "build" / "release"


_ops = None
_loading = threading.Lock()


def ops():
    """The operators torch.ops.kvpc, loaded once, whichever thread is first."""
    global _ops
    if _ops is None:
        with _loading:
            if _ops is None:
                _ops = _load()
    return _ops


def _load():
    places = [prefix / "lib" / "libkvpc_torch.so" for prefix in _prefixes()]
    path = next((p for p in places if p.exists()), None)
    if path is None:
        raise Error(
            "libkvpc_torch.so is not in "
            + ", ".join(f"`{p.parent}`" for p in places)
            + "; build the target `kvpc_torch`, or set KVPC_BUILD to the folder of the build"
        )
    torch.ops.load_library(str(path))
    loaded = torch.ops.kvpc
    if loaded.version() != VERSION:
        raise Error(
            f"`{path}` is of kvpc {loaded.version()}, this package of {VERSION}; "
            "use the two of one build (a process takes the first library that is loaded)"
        )
    from .ops import register

    register()
    return loaded


def compiler():
    """Path of the executable `kvpc`."""
    named = os.environ.get("KVPC_COMPILER")
    places = [Path(named)] if named else [prefix / "bin" / "kvpc" for prefix in _prefixes()]
    for place in places:
        if place.is_file() and os.access(place, os.X_OK):
            return place
    found = None if named else shutil.which("kvpc")
    if found:
        return Path(found)
    raise CompilerNotFound(
        "the compiler `kvpc` is not at "
        + ", ".join(f"`{p}`" for p in places)
        + ("" if named else " nor on the PATH")
        + "; build the target `kvpc`, or set KVPC_COMPILER to its path"
    )


# What passes: memory is short, or the executable is just being replaced. EFAULT is what the kernel
# says of arguments that it could not read, seen once in 30,000 starts, from several threads.
_PASSING = (errno.EAGAIN, errno.EFAULT, errno.ENOMEM, errno.ETXTBSY)


def run(command, **options):
    """Runs a command whose first word is the compiler, to its end; its output is captured as text.

    A process that cannot be started for a passing reason is tried again twice, in 0.1 and 0.5 s.
    options: more of subprocess.run's.
    Errors: kvpc.Error, where it cannot be started.
    """
    pauses = [0.5, 0.1]
    while True:
        try:
            return subprocess.run(
                command, capture_output=True, text=True, errors="replace", check=False, **options
            )
        except OSError as error:
            if not pauses or error.errno not in _PASSING:
                raise Error(f"cannot start `{command[0]}`: {error.strerror.lower()}") from None
            time.sleep(pauses.pop())
