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
ROUNDS = 2_000_000


def _library():
    """machine.cpp, compiled for this machine."""
    compiler = shutil.which("clang++-22") or shutil.which("clang++")
    if not compiler:
        raise SystemExit("the benchmark needs the compiler that kvpc is built with, clang++-22")
    # Without the last, 512-bit vectors are split on machines that have them.
    options = ["-std=c++20", "-O2", "-march=native", "-shared", "-fPIC", "-pthread"]
    options.append("-mprefer-vector-width=512")
    told = SOURCE.read_bytes() + " ".join([compiler, *options]).encode()
    name = hashlib.sha256(told).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"kvpc-benchmark-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"machine-{name}.so"
    if not path.exists():
        made = path.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler, *options, SOURCE, "-o", made], check=True)
        made.replace(path)
    return ctypes.CDLL(str(path))


class Machine:
    """Rates with a number of threads, the best that was seen: bytes and operations a second."""

    def __init__(self, threads):
        self.threads = threads
        self.read = self.write = self.copy = self.f32 = self.bf16 = 0
        self.library = _library()
        self.source, self.target = torch.ones(BYTES // 4), torch.ones(BYTES // 4)
        self.measure(10)

    def measure(self, attempts=2):
        """Tries again: other processes may have been in the way."""
        library, size = self.library, ctypes.c_int64(BYTES)
        source, target = (ctypes.c_void_p(x.data_ptr()) for x in (self.source, self.target))
        for _ in range(attempts):
            self.read = max(self.read, self._rate(library.machine_read, source, size))
            self.write = max(self.write, self._rate(library.machine_write, target, size))
            self.copy = max(self.copy, self._rate(library.machine_copy, source, target, size))
            self.f32 = max(self.f32, self._flops(library.machine_fma))
            # Without dot products of bf16 pairs, bf16 is computed as f32.
            bf16 = getattr(library, "machine_bf16", None)
            self.bf16 = max(self.bf16, self._flops(bf16)) if bf16 else self.f32

    def _rate(self, function, *arguments):
        function.restype = ctypes.c_double
        return BYTES / function(*arguments, self.threads)

    def _flops(self, function):
        function.restype = ctypes.c_double
        done = ctypes.c_double()
        seconds = function(ctypes.c_int64(ROUNDS), self.threads, ctypes.byref(done))
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
