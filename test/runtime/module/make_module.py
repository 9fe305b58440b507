"""Makes modules from C, to test the runtime without the compiler: `make_module.py OUT.kvm`.

`build` takes any header and any link flags, so that tests can make modules that must be refused.
"""

import hashlib
import json
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
MAGIC = b"KVPCMOD\n"


def section(header, bytecode=b"", major=1, minor=0, magic=MAGIC, digest=None):
    """The bytes of `.kvpc`; `header` is a dict or the JSON itself."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    digest = digest or hashlib.sha256(text + bytecode).digest()
    prefix = 88
    total = prefix + len(text) + len(bytecode)
    places = (prefix, len(text), prefix + len(text), len(bytecode))
    return (
        struct.pack("<8sIIQQQQQ32s", magic, major, minor, total, *places, digest) + text + bytecode
    )


def budget(default=None):
    return parameter("budget", "budget", default or {"drop": 0.5}, doc="what to keep")


def parameter(name, type, default=None, **fields):
    return {"name": name, "type": type, "static": False, "default": default, **fields}


def variants(name, sizes=(0,), targets=1, dtypes=("f32", "bf16")):
    return [
        {
            "dtype": dtype,
            "channels": size,
            "target": target,
            "plan": f"plan_{name}",
            "run": f"run_{name}_{dtype}",
        }
        for target in range(targets)
        for dtype in dtypes
        for size in sizes
    ]


def press(name, parameters, runtime=None, **fields):
    names = [
        p["name"] for p in parameters if not p["static"] and p.get("axes") in (None, ["layer"])
    ]
    return {
        "name": name,
        "doc": f"the press {name}",
        "kind": "press",
        "parameters": parameters,
        "runtime": names if runtime is None else runtime,
        "weights": [],
        "inputs": {},
        "uniform": False,
        "ragged": False,
        "data_counts": False,
        "drops_channels": False,
        "drops_tokens": True,
        "reuse": 0,
        "score_axes": ["head", "token"],
        "variants": variants(name),
        **fields,
    }


def presses():
    """The presses of fake.c."""
    static = {
        "name": "size",
        "type": "int",
        "static": True,
        "default": 64,
        "value": 4,
        "min": 1,
        "max": None,
    }
    return [
        press("last", [budget()], uniform=True),
        press(
            "window",
            [
                budget(),
                parameter("gain", "float", 1.0, min=0, max=10),
                parameter("share", "fraction", 0.25),
                parameter("seed", "int", 0),
                static,
            ],
            inputs={"queries": 4},
            locations={"queries": "window.kv:3:13"},
        ),
        press("positive", [], score_axes=None, ragged=True, data_counts=True),
        press("thin", [], score_axes=["head", "channel"], drops_channels=True, drops_tokens=False),
        press(
            "shared",
            [budget()],
            score_axes=None,
            inputs={"queries": 1},
            reuse=2,
            leader_inputs=["queries"],
        ),
        press(
            "weighted",
            [
                parameter("filter", "float", axes=["layer", "head", "channel"]),
                parameter("ratios", "fraction", axes=["layer"]),
            ],
            weights=[{"name": "filter", "axes": ["head", "channel"], "layered": True}],
        ),
        press(
            "everything",
            [budget()],
            inputs={"hidden": "all", "unrotated_queries": 2, "output_weight": True, "rope": True},
        ),
    ]


def header(**fields):
    return {
        "compiler": "kvpc 0.1.0",
        "format": [1, 0],
        "abi": 1,
        "optimization": "O2",
        "source": "fake.c",
        "source_digest": "0" * 64,
        "dtypes": ["f32", "bf16"],
        "channels": [0],
        "targets": ["x86-64-v3"],
        "presses": presses(),
        **fields,
    }


def build(out, content=None, source="fake.c", flags=(), name=".kvpc"):
    """Compiles `source` with `content` (section bytes or a header) as section `.kvpc`."""
    content = header() if content is None else content
    data = content if isinstance(content, bytes) else section(content)
    compiler = shutil.which("clang-22") or shutil.which("clang")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "header.bin").write_bytes(data)
        (Path(folder) / "header.s").write_text(
            f'.section {name},"",@progbits\n.incbin "header.bin"\n'
        )
        subprocess.run(
            [
                compiler, "-shared", "-fPIC", "-nostdlib", "-ffreestanding", "-fno-builtin", "-O1",
                "-fvisibility=hidden", "-std=c11", "-fuse-ld=lld", "-Wl,--build-id=none", *flags,
                "-I", ROOT / "runtime/core/include", HERE / source, "header.s", "-o", Path(out).absolute(),
            ],
            cwd=folder, check=True,
        )  # fmt: skip
    return Path(out)


if __name__ == "__main__":
    build(sys.argv[1])
