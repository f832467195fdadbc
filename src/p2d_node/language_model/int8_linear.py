"""Modules come in; their linear layers are quantised to 8 bits in place, for a CPU.

Weights have one scale per row. Activations get a scale and an offset at every call (dynamic
quantisation), so nothing is calibrated. torch's kernels for it need no bfloat16 instructions.
"""

from __future__ import annotations

from p2d_node.checkpoints.devices import adds_int8_products
from p2d_node.errors import BackendUnavailableError
from p2d_node.language_model.packed_linear import replace_layers
import torch
from torch import nn, Tensor

MAX_INT8 = 127


class Int8Linear(nn.Module):
    """An `nn.Linear` with 8-bit weights and activations; it has no attribute `weight`."""

    def __init__(self, linear: nn.Linear) -> None:
        """Quantise the weights of `linear`, whose own may be freed then."""
        super().__init__()
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / MAX_INT8
        offsets = torch.zeros_like(scales, dtype=torch.int64)
        quantised = torch.quantize_per_channel(weight, scales, offsets, axis=0, dtype=torch.qint8)
        bias = None if linear.bias is None else linear.bias.detach().float()
        self._reduce_range = not adds_int8_products()  # seven bits of the activations
        self._packed = torch.ops.quantized.linear_prepack(quantised, bias)

    def forward(self, features: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features], in the dtype of `features`."""
        product: Tensor = torch.ops.quantized.linear_dynamic(
            features.float(), self._packed, reduce_range=self._reduce_range
        )
        return product.to(features.dtype)


def check_int8_encoder(device: torch.device) -> None:
    """Check, before loading, that `quantize_linear_layers` works here.

    Raises:
        BackendUnavailableError: Not a CPU, or this torch has no kernels for it.
    """
    if device.type != 'cpu':
        raise BackendUnavailableError(
            f'encoder.weights: got int8 on device {device}, allowed: cpu; on a GPU build an '
            'engine with p2d build-engine, and set encoder.weights to as_is'
        )
    if torch.backends.quantized.engine == 'none':
        raise BackendUnavailableError(
            'encoder.weights: got int8, but this torch was built without kernels for it; set it '
            'to as_is'
        )


@torch.no_grad()
def quantize_linear_layers(model: nn.Module) -> None:
    """Replace the linear layers below `model`, one by one; subclasses are left as they are."""
    replace_layers(model, lambda module: type(module) is nn.Linear, Int8Linear)
