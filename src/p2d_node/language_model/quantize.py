"""Weights of the decoder layers as 8- or 4-bit numbers, by torchao, PyTorch's own library.

A loaded model comes in, and its decoder layers' linear weights are replaced one by one.
Embeddings, output layer and vision encoder stay as they are; activations keep their number format.
"""

from __future__ import annotations

from typing import Any

from p2d_node.errors import BackendUnavailableError, ConfigError
import torch
from torch import nn

AS_IS = 'as_is'
INT8 = 'int8'
INT4 = 'int4'

INT4_GROUP = 128
"""Weights of a row that share a scale: torchao's default. Rows have to be multiples of it."""

INT4_CAPABILITY = (8, 0)
"""The first GPUs that torch's kernel for packed 4-bit weights runs on (Orin has 8.7)."""


def check_weights(weights: str, dtype: torch.dtype, device: torch.device) -> None:
    """Check before anything is loaded that weights can be quantised as `weights` says.

    Raises:
        ConfigError: A number format that the library does not take.
        BackendUnavailableError: The library is missing, or the device has no kernel for it.
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
    needed = 'a GPU of compute capability {}.{} or more'.format(*INT4_CAPABILITY)
    if device.type != 'cuda':
        raise BackendUnavailableError(
            f'weights: got int4 on device {device}, needed: {needed}; use int8'
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < INT4_CAPABILITY:
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
    """Replace the linear weights in `layers`, which `check_weights` has found to be possible.

    Each is moved to `device` on its own, so that the device never holds all of them unquantised.

    Args:
        layers: The decoder layers.
        weights: `as_is`, `int8` (a scale per row) or `int4` (a scale and an offset per 128).
        device: Where they go.

    Raises:
        ConfigError: Layers of a width that the 4-bit kernel does not take.
    """
    if weights == AS_IS:
        return
    quantization = _import_torchao()
    if weights == INT8:
        config = quantization.Int8WeightOnlyConfig(set_inductor_config=False)
    else:
        check_int4_widths(layers)
        config = quantization.Int4WeightOnlyConfig(
            group_size=INT4_GROUP,
            int4_packing_format='tile_packed_to_4d',  # what torch's own kernel reads
            set_inductor_config=False,
        )
    quantization.quantize_(layers, config, device=device)


def check_int4_widths(layers: nn.Module) -> None:
    """Raise `ConfigError` where a layer's width is no multiple of what shares a scale.

    The library would leave such a layer as it is without a word.
    """
    for name, module in layers.named_modules():
        if isinstance(module, nn.Linear) and module.in_features % INT4_GROUP:
            raise ConfigError(
                f'weights: got int4 for layer {name} of width {module.in_features}, allowed: '
                f'multiples of {INT4_GROUP}; use int8'
            )
