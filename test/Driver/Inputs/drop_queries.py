"""OUT: keys and values of one row of 90 tokens, without queries."""

import sys

import numpy as np
from safetensors.numpy import save_file

random = np.random.default_rng(1)
arrays = {name: random.standard_normal((1, 2, 90, 16), np.float32) for name in ("keys", "values")}
save_file(arrays, sys.argv[1])
