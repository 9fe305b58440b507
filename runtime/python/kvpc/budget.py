"""Budgets: how many entries survive."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """`drop(r)` or `keep(n)`; made by the functions of these names."""

    kind: str
    amount: float | int

    def __str__(self):
        return f"{self.kind}({self.amount})"

    __repr__ = __str__


def drop(ratio):
    """A budget that drops a fraction: of n entries, int(n * (1 - ratio)) are kept, at least one.

    ratio: 0 <= ratio < 1.
    """
    try:
        return Budget("drop", float(ratio))
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise _wrong("drop", ratio, "fraction, e.g. 0.5") from None


def keep(count):
    """A budget of `count` entries, 1 or more; of fewer, all are kept."""
    try:
        whole = int(count)
        if not isinstance(count, str) and whole == count:
            return Budget("keep", whole)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        pass
    raise _wrong("keep", count, "count, e.g. 1024")


def _wrong(name, value, need):
    from .errors import ArgumentError

    return ArgumentError(f"`{name}` is {value!r}; need a {need}", "kvm-parameter")
