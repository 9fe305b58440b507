"""What goes wrong, as classes. A message says what is there, what is needed and how to mend it; it
ends with a stable code in brackets, which is also the attribute `code`.
"""

import re
from dataclasses import dataclass, field


class Error(Exception):
    """Base of all errors of this package."""

    def __init__(self, message, code=None):
        found = re.search(r"\[([a-z][a-z0-9-]*)\]\s*$", str(message))
        self.code = code or (found and found[1])
        super().__init__(f"{message} [{code}]" if code and not found else message)


class ModuleError(Error):
    """A file that is no module, is damaged, or does not fit this runtime or machine."""


class ArgumentError(Error, ValueError):
    """A parameter of a press: unknown, missing, of a wrong type, out of its range, NaN."""


class StaticParameter(ArgumentError):
    """A parameter that was fixed when the module was compiled."""


class RequireError(ArgumentError):
    """A `require` of the program does not hold for this call."""


class InputError(Error, ValueError):
    """A tensor of a call: its shape, strides, dtype or device."""


class MissingInput(InputError):
    """An input that the press needs is not given."""


class ExtraInput(InputError):
    """An input that the press does not use is given."""


class StateError(Error):
    """A layer that takes another layer's choice has no state, or a wrong one."""


class Unsupported(Error):
    """What this press or this runtime cannot do."""


class HookError(Error):
    """A model, cache or call that the hook of Hugging Face models cannot serve. `code` says which of
    them."""

    def __init__(self, message, code):
        super().__init__(f"{message} [{code}]", code)


class CompilerNotFound(Error):
    """The executable `kvpc` is not there."""


@dataclass
class Diagnostic:
    """One message of the compiler. `notes` belong to it and have no notes themselves."""

    file: str
    line: int
    column: int
    severity: str
    message: str
    code: str | None = None
    notes: list = field(default_factory=list)

    def __str__(self):
        return f"{self.file}:{self.line}:{self.column}: {self.severity}: {self.message}" + (
            f" [{self.code}]" if self.code else ""
        )


class CompileError(Error):
    """A program that does not compile. `diagnostics` lists the compiler's messages."""

    def __init__(self, message, diagnostics=()):
        code = next((d.code for d in diagnostics if d.severity == "error"), None)
        super().__init__(message)
        self.code = code or self.code
        self.diagnostics = list(diagnostics)


_LINE = re.compile(
    r"^(?P<file>.+?):(?P<line>\d+):(?P<column>\d+): (?P<severity>error|warning|note): "
    r"(?P<text>.*?)(?: \[(?P<code>[a-z][a-z0-9-]*)\])?$"
)


def diagnostics_of(text):
    """The diagnostics in what the compiler printed; source lines and carets are left out."""
    found = []
    for line in text.splitlines():
        match = _LINE.match(line)
        if not match:
            continue
        one = Diagnostic(
            match["file"],
            int(match["line"]),
            int(match["column"]),
            match["severity"],
            match["text"],
            match["code"],
        )
        if one.severity == "note" and found:
            found[-1].notes.append(one)
        else:
            found.append(one)
    return found


_CLASSES = {
    "kvm-file": ModuleError,
    "kvm-not-a-module": ModuleError,
    "kvm-truncated": ModuleError,
    "kvm-format": ModuleError,
    "kvm-damaged": ModuleError,
    "kvm-digest": ModuleError,
    "kvm-target": ModuleError,
    "kvm-press": ArgumentError,
    "kvm-parameter": ArgumentError,
    "kvm-static-parameter": StaticParameter,
    "kvm-require": RequireError,
    "kvm-dtype": InputError,
    "kvm-channels": InputError,
    "kvm-shape": InputError,
    "kvm-stride": InputError,
    "kvm-device": InputError,
    "kvm-missing-input": MissingInput,
    "kvm-extra-input": ExtraInput,
    "kvm-state": StateError,
    "kvm-unsupported": Unsupported,
    "kvm-memory": Error,
}


def of_runtime(error):
    """The error of this package that an operator's RuntimeError stands for, else the error itself."""
    text = str(error)
    found = re.search(r"\[(kvm-[a-z-]+)\]\s*$", text)
    return _CLASSES.get(found[1], Error)(text) if found else error
