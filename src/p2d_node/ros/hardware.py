"""Names the computer of a node, for `hardware_id` in its diagnostics."""

from __future__ import annotations

import socket

from p2d_node.config import DriveConfig
import torch


def hardware_name(config: DriveConfig, device: torch.device | None = None) -> str:
    """Return the configured name, or that of the host and of the GPU that is used.

    Args:
        config: The configuration.
        device: The device of the model; None before one is loaded.
    """
    if config.hardware_id:
        return config.hardware_id
    host = socket.gethostname()
    if device is None or device.type != 'cuda':
        return host
    return f'{host}, {torch.cuda.get_device_name(device)}'
