"""Where the parts of kvpc are: libkvpc_torch.so and the executable `kvpc`.

Build folder and installation are laid out alike (bin, lib, python/kvpc), so a package finds the
parts beside it. In a source tree, they are those of build/release. The environment variable
KVPC_BUILD names another folder, KVPC_COMPILER another executable.
"""

import os
import shutil
import threading
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
