"""What this machine reaches, measured: the yardstick of the floors."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("machine.cpp")
BYTES = 256 << 20  # far beyond any cache
ROUNDS = 4_000_000


def _library():
    """machine.cpp, compiled for this machine."""
    compiler = shutil.which("clang++-22") or shutil.which("clang++")
    if not compiler:
        raise SystemExit("the benchmark needs the compiler that kvpc is built with, clang++-22")
    name = hashlib.sha256(SOURCE.read_bytes() + compiler.encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"kvpc-benchmark-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"machine-{name}.so"
    if not path.exists():
        made = path.with_suffix(f".{os.getpid()}")
        options = ["-std=c++20", "-O2", "-march=native", "-shared", "-fPIC", "-pthread"]
        subprocess.run([compiler, *options, SOURCE, "-o", made], check=True)
        made.replace(path)
    return ctypes.CDLL(str(path))


class Machine:
    """Rates with a number of threads, the best of several attempts: bytes and operations a second."""

    def __init__(self, threads, attempts=5):
        self.threads = threads
        self.library = library = _library()
        source, target = torch.ones(BYTES // 4), torch.ones(BYTES // 4)
        at = [ctypes.c_void_p(x.data_ptr()) for x in (source, target)]
        size = ctypes.c_int64(BYTES)
        self.read = self._rate(attempts, library.machine_read, at[0], size)
        self.write = self._rate(attempts, library.machine_write, at[1], size)
        self.copy = self._rate(attempts, library.machine_copy, *at, size)
        self.f32 = self._flops(attempts, library.machine_fma)
        # Without dot products of bf16 pairs, bf16 is computed as f32.
        bf16 = getattr(library, "machine_bf16", None)
        self.bf16 = self._flops(attempts, bf16) if bf16 else self.f32

    def _rate(self, attempts, function, *arguments):
        function.restype = ctypes.c_double
        return BYTES / min(function(*arguments, self.threads) for _ in range(attempts))

    def _flops(self, attempts, function):
        function.restype = ctypes.c_double
        done = ctypes.c_double()
        arguments = ctypes.c_int64(ROUNDS), self.threads, ctypes.byref(done)
        seconds = min(function(*arguments) for _ in range(attempts))
        return done.value / seconds

    def floor(self, read, written, flops, dtype):
        """Seconds that nothing can go below: bytes at the rates of memory, plus operations at the
        peak. What a cache holds may be faster."""
        peak = self.bf16 if dtype == "bf16" else self.f32
        return read / self.read + written / self.write + flops / peak

    def json(self):
        return {
            "threads": self.threads,
            "read_bytes_per_s": self.read,
            "write_bytes_per_s": self.write,
            "copy_bytes_per_s": self.copy,
            "f32_flops": self.f32,
            "bf16_flops": self.bf16,
        }

    def __str__(self):
        return (
            f"{self.threads} threads: read {self.read / 1e9:.1f} GB/s, write {self.write / 1e9:.1f}, "
            f"copy {self.copy / 1e9:.1f} (bytes copied); multiply-adds f32 {self.f32 / 1e9:.0f} "
            f"Gflop/s, bf16 {self.bf16 / 1e9:.0f}"
        )


def describe():
    """What this machine is."""
    name, flags, huge = platform.processor(), "", ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        name = (
            f"{fields.get('model name')} (family {fields.get('cpu family')}, "
            f"model {fields.get('model')})"
        )
        have = set(fields.get("flags", "").split())
        flags = " ".join(x for x in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if x in have)
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if pages.exists():
        huge = pages.read_text().split("[")[1].split("]")[0]
    return {
        "cpu": name,
        "features": flags,
        "cores": os.cpu_count(),
        "transparent_huge_pages": huge,
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
    }
