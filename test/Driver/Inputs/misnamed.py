"""Files in which something is called or made otherwise than a call has it."""

import sys

import torch
from safetensors.torch import save_file

keys, values = torch.randn(2, 1, 2, 8, 4).unbind()
given = {"keys": keys.clone(), "values": values.clone()}
queries = torch.randn(1, 2, 1, 8, 4, dtype=torch.float16)
positions = torch.tensor([0, 1, 2, 3, 4, 5, 7, 6]).expand(1, 2, 8).contiguous()
for name, more in {
    "lengths": {"lengths": torch.tensor([5])},
    "filter": {"filter": torch.ones(1, 2, 4)},
    "nan": {"weight.filter": torch.full((1, 2, 4), torch.nan)},
    "dtype": {"queries": queries},
    "positions": {"original_positions": positions},
}.items():
    save_file(given | more, f"{sys.argv[1]}/{name}.safetensors")
