"""kvpc: compiled compression of KV caches.

    import kvpc

    press = kvpc.press("snapkv", drop=0.5, window=32)     # from the library, compiled and cached
    out = press.compress(keys, values, queries=queries)   # on tensors
    with press(model):                                    # or on a Hugging Face model
        model.generate(...)

`compile` and `load` give modules, `Module.press` a press with its arguments. All errors are
kvpc.Error; a call that fails has changed nothing.
"""

from . import errors
from .budget import Budget, drop, keep
from .compiler import compile, press
from .errors import (
    ArgumentError,
    CompileError,
    CompilerNotFound,
    Diagnostic,
    Error,
    ExtraInput,
    InputError,
    MissingInput,
    ModuleError,
    RequireError,
    StateError,
    StaticParameter,
    Unsupported,
)
from .library import VERSION as __version__
from .module import Module, Parameter, PressInfo, inspect, load
from .picture import plot
from .presses import Output, Press, Rope, State, select
from .saved import load_cache, save_cache

__all__ = [
    "ArgumentError",
    "Budget",
    "CompileError",
    "CompilerNotFound",
    "Diagnostic",
    "Error",
    "ExtraInput",
    "InputError",
    "MissingInput",
    "Module",
    "ModuleError",
    "Output",
    "Parameter",
    "Press",
    "PressInfo",
    "RequireError",
    "Rope",
    "State",
    "StateError",
    "StaticParameter",
    "Unsupported",
    "__version__",
    "compile",
    "drop",
    "errors",
    "inspect",
    "keep",
    "load",
    "load_cache",
    "plot",
    "press",
    "save_cache",
    "select",
]
