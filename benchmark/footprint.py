"""Memory of this process and of a cache, in bytes. Linux only."""

import ctypes
import gc
import re
from pathlib import Path

PROCESS = Path("/proc/self")


def resident():
    """What is in memory now: Rss of all mappings, shared libraries included."""
    text = (PROCESS / "smaps_rollup").read_text()
    return 1024 * int(re.search(r"^Rss:\s+(\d+) kB", text, re.MULTILINE)[1])


def peak():
    """The most that was resident since `reset`: VmHWM."""
    text = (PROCESS / "status").read_text()
    return 1024 * int(re.search(r"^VmHWM:\s+(\d+) kB", text, re.MULTILINE)[1])


def reset():
    """The peak begins anew: writing 5 to clear_refs, proc(5)."""
    (PROCESS / "clear_refs").write_text("5")


def settle():
    """What was freed goes back to the system, so that `resident` is of what is in use."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


class Phases:
    """Memory above what the process had when this was made, by phase.

    peaks, residents  name of a phase → bytes; resident is after the phase, settled
    """

    def __init__(self):
        settle()
        self.base, self.peaks, self.residents = resident(), {}, {}
        reset()

    def end(self, name):
        """Ends a phase; the next one begins."""
        self.peaks[name] = peak() - self.base
        settle()
        self.residents[name] = resident() - self.base
        reset()


def cache_bytes(cache, modules=()):
    """What a cache keeps alive, over distinct storages, whoever filled it.

    modules: attention layers; the positions that kvpress masks lie there, and count.
    """
    from kvpc.cache import storage_bytes

    masked = {}
    for module in modules:
        for index in getattr(module, "masked_key_indices", None) or ():
            storage = index.untyped_storage()
            masked[storage.data_ptr()] = storage.nbytes()
    return storage_bytes(cache) + sum(masked.values())
