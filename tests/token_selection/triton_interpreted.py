"""Runs the Triton kernels in Triton's interpreter: `triton_interpreted.py CASES RESULT`.

The interpreter must be chosen before Triton is first imported, so this is a process of its own.
"""

import os
import sys

os.environ['TRITON_INTERPRET'] = '1'

from p2d_node.token_selection.tfps_triton import triton_order
import torch

cases, result = sys.argv[1:]
orders = {name: triton_order(tokens, count) for name, (tokens, count) in torch.load(cases).items()}
torch.save(orders, result)
