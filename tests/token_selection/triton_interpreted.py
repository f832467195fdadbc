"""Runs the Triton kernels in Triton's interpreter: `triton_interpreted.py CASES RESULT`.

It runs in a separate process, because the interpreter must be enabled before Triton is imported.
"""

import os
import sys

os.environ['TRITON_INTERPRET'] = '1'

from p2d_node.token_selection.tfps_triton import triton_order
import torch

cases, result = sys.argv[1:]
orders = {name: triton_order(tokens, count) for name, (tokens, count) in torch.load(cases).items()}
torch.save(orders, result)
