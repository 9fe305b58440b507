"""A B: checks that two results keep the same tokens."""

import sys

from safetensors.numpy import load_file

a, b = (load_file(path) for path in sys.argv[1:])
assert (a["tokens"] == b["tokens"]).all(), (a["tokens"], b["tokens"])
