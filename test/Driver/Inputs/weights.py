"""weights.py WHOLE SLICED LAYER: one call, with a weight of three layers whole, and of one of them."""

import sys

import numpy
from safetensors.numpy import save_file

whole, sliced, layer = sys.argv[1], sys.argv[2], int(sys.argv[3])
random = numpy.random.default_rng(0)
tensors = {
    name: random.standard_normal((1, 2, 30, 8), dtype=numpy.float32) for name in ("keys", "values")
}
weight = random.standard_normal((2, 3, 8), dtype=numpy.float32)
save_file(tensors | {"weight.f": weight}, whole)
save_file(tensors | {"weight.f": numpy.ascontiguousarray(weight[:, layer])}, sliced)
