"""A loaded model comes in; the weights of its linear layers are packed for the CPU in place.

oneDNN, torch's library of CPU kernels, multiplies by weights in a layout of its own. A plain
`nn.Linear` brings them into it at every call, or does without. Packing does it once: a decoding
step reads the weights at the speed of memory, and several rows cost little more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

import torch
from torch import nn, Tensor

PACKED_DTYPES = (torch.float32, torch.bfloat16)


class PackedLinear(nn.Module):
    """An `nn.Linear` whose weights are packed; it has no attribute `weight`."""

    def __init__(self, linear: nn.Linear) -> None:
        """Pack the weights of `linear`, whose own may be freed then."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # Not a buffer: an opaque tensor cannot be moved or stored.
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, features: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features], both in the dtype of the weights."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            features, self._packed, self._bias, 'none', [], ''
        )
        return product


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Tell whether this torch packs weights of `dtype` on `device`.

    It does for float32 and bfloat16 on a CPU, if it was built with oneDNN.
    """
    return (
        device.type == 'cpu'
        and dtype in PACKED_DTYPES
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, '_linear_pointwise')
        and (dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))
    )


@torch.no_grad()
def pack_linear_layers(model: nn.Module) -> None:
    """Replace the linear layers of `model` that can be packed, one by one.

    Memory grows by one layer at most. Left as they are: layers on a GPU or of another dtype,
    quantised ones, subclasses of `nn.Linear`, and weights that another module uses too.
    """
    shared = _shared_weights(model)
    replace_layers(model, lambda module: _is_packable(module, shared), PackedLinear)


def replace_layers(
    model: nn.Module, is_replaced: Callable[[nn.Module], bool], make: Callable[[Any], nn.Module]
) -> None:
    """Replace the modules below `model` that `is_replaced` names, one by one."""
    # Names only: a list of the layers would keep all of them alive.
    for name in [name for name, m in model.named_modules() if name and is_replaced(m)]:
        parent, _, child = name.rpartition('.')
        owner = model.get_submodule(parent)
        setattr(owner, child, make(getattr(owner, child)))


def _is_packable(module: nn.Module, shared: Container[int]) -> bool:
    if type(module) is not nn.Linear or type(module.weight) is not nn.Parameter:
        return False
    weight = module.weight
    return id(weight) not in shared and can_pack(weight.dtype, weight.device)


def _shared_weights(model: nn.Module) -> set[int]:
    """Return the ids of parameters that are in more than one place, such as tied embeddings."""
    seen: set[int] = set()
    shared: set[int] = set()
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            (shared if id(weight) in seen else seen).add(id(weight))
    return shared
