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
    return Budget("drop", float(ratio))


def keep(count):
    """A budget of `count` entries, 1 or more; of fewer, all are kept."""
    if isinstance(count, float) and not count.is_integer():
        from .errors import ArgumentError

        raise ArgumentError(f"`keep` is {count}; need a count, e.g. 1024", "kvm-parameter")
    return Budget("keep", int(count))
