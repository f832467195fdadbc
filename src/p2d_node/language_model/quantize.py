"""Quantises the linear weights of the decoder layers to 8 or 4 bits, with torchao.

Layers are quantised in place. Embeddings, output layer and vision encoder are not quantised, and
activations keep their number format.
"""

from __future__ import annotations

from typing import Any

from p2d_node.errors import BackendUnavailableError, ConfigError
import torch
from torch import nn

AS_IS = 'as_is'
INT8 = 'int8'
INT4 = 'int4'

INT4_GROUP_SIZE = 128
"""Weights of a row that share a scale, torchao's default. It must divide the length of rows."""

MIN_INT4_CAPABILITY = (8, 0)
"""Minimum compute capability of torch's kernel for packed 4-bit weights (Orin has 8.7)."""


def check_quantization(weights: str, dtype: torch.dtype, device: torch.device) -> None:
    """Check, before loading, that weights can be quantised.

    Args:
        weights: `as_is`, `int8` or `int4`.
        dtype: Number format of the activations.
        device: Device of the model.

    Raises:
        ConfigError: torchao does not support this quantisation with `dtype`.
        BackendUnavailableError: torchao is missing, or `device` has no kernel.
    """
    if weights == AS_IS:
        return
    allowed = {
        INT8: (torch.float32, torch.bfloat16, torch.float16),
        INT4: (torch.bfloat16,),
    }[weights]
    if dtype not in allowed:
        names = ', '.join(str(d).removeprefix('torch.') for d in allowed)
        got = str(dtype).removeprefix('torch.')
        raise ConfigError(f'weights: got {weights} with dtype {got}, allowed with it: {names}')
    if weights == INT4:
        _check_int4_device(device)
    _import_torchao()


def _check_int4_device(device: torch.device) -> None:
    needed = 'a GPU of compute capability {}.{} or more'.format(*MIN_INT4_CAPABILITY)
    if device.type != 'cuda':
        raise BackendUnavailableError(
            f'weights: got int4 on device {device}, needed: {needed}; use int8'
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_INT4_CAPABILITY:
        raise BackendUnavailableError(
            f'weights: got int4 on a GPU of compute capability {capability[0]}.{capability[1]}, '
            f'needed: {needed}; use int8'
        )


def _import_torchao() -> Any:
    try:
        from torchao import quantization
    except ImportError as err:
        raise BackendUnavailableError(
            f'weights: torchao is not usable: {err}; pip install --no-deps torchao==0.18.0, '
            'or set weights to as_is'
        ) from err
    return quantization


def quantize_layers(layers: nn.Module, weights: str, device: torch.device) -> None:
    """Quantise the linear weights in `layers` in place; call `check_quantization` first.

    Layers are moved to `device` one at a time, so that it never holds all of them unquantised.

    Args:
        layers: The decoder layers.
        weights: `as_is`, `int8` (a scale per row) or `int4` (a scale and an offset per group of
            128).
        device: Device of the quantised layers.

    Raises:
        ConfigError: The width of a layer is not supported by the 4-bit kernel.
    """
    if weights == AS_IS:
        return
    quantization = _import_torchao()
    if weights == INT8:
        config = quantization.Int8WeightOnlyConfig(set_inductor_config=False)
    else:
        check_int4_widths(layers)
        config = quantization.Int4WeightOnlyConfig(
            group_size=INT4_GROUP_SIZE,
            int4_packing_format='tile_packed_to_4d',  # the layout of torch's own kernel
            set_inductor_config=False,
        )
    quantization.quantize_(layers, config, device=device)


def check_int4_widths(layers: nn.Module) -> None:
    """Check that the width of each linear layer is a multiple of `INT4_GROUP_SIZE`.

    torchao would silently leave other layers unquantised.

    Raises:
        ConfigError: A layer has another width.
    """
    for name, module in layers.named_modules():
        if isinstance(module, nn.Linear) and module.in_features % INT4_GROUP_SIZE:
            raise ConfigError(
                f'weights: got int4 for layer {name} of width {module.in_features}, allowed: '
                f'multiples of {INT4_GROUP_SIZE}; use int8'
            )
