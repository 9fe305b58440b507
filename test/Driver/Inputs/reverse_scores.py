"""SCORES OUT: writes the scores negated, as given scores of the first selection.
SCORES BEST WORST: checks that the kept token has the highest score in BEST, the lowest in WORST.
"""

import sys

import numpy as np
from safetensors.numpy import load_file, save_file

scores = load_file(sys.argv[1])["scores"]
if len(sys.argv) == 3:
    save_file({"scores.0": np.ascontiguousarray(-scores)}, sys.argv[2])
else:
    best, worst = (load_file(path)["tokens"].item() for path in sys.argv[2:])
    assert (best, worst) == (scores.argmax(), scores.argmin()), (best, worst, scores)
