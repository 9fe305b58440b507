"""lit: every .mlir, .kv and .test file under test/ is a test; its RUN lines say how."""

import os
import shutil

import lit.formats
from lit.llvm import llvm_config
from lit.llvm.subst import ToolSubst

# lit makes these two before it reads this file
config = globals()["config"]
lit_config = globals()["lit_config"]

config.name = "kvpc"
config.test_format = lit.formats.ShTest(execute_external=False)
config.suffixes = [".mlir", ".kv", ".test"]
config.excludes = ["Inputs", "python", "parity"]
config.test_source_root = os.path.dirname(__file__)
config.test_exec_root = os.path.join(config.kvpc_build, "test")

bin_dir = os.path.join(config.kvpc_build, "bin")
llvm_config.use_default_substitutions()  # FileCheck, not, count, %s, %t, %S
llvm_config.add_tool_substitutions(
    [
        "kvpc",
        "kvp-opt",
        "split-file",
        "llvm-readelf",
        "llvm-objdump",
        "llvm-objcopy",
        "llvm-nm",
        ToolSubst("%python", command=config.kvpc_python),
    ],
    [bin_dir, config.llvm_tools_dir],
)
config.substitutions.append(("%presses", os.path.join(config.kvpc_source, "presses")))
config.substitutions.append(("%source", config.kvpc_source))
config.substitutions.append(("%build", config.kvpc_build))

llvm_config.with_environment("PYTHONPATH", os.path.join(config.kvpc_build, "python"))
# Results must not depend on the user's cache or library folders.
for variable in ("KVPC_CACHE_DIR", "KVPC_PRESSES", "XDG_CACHE_HOME"):
    config.environment.pop(variable, None)

if config.kvpc_torch == "ON":
    config.available_features.add("torch")
emulator = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
if emulator:
    config.available_features.add("qemu-x86_64")
    config.substitutions.append(("%qemu", emulator))
