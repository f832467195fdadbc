"""A configuration comes in; the part of it that answers depend on goes out, as plain data.

Answers that are kept, and studies that are joined, carry it, so that what was made otherwise is
not taken for the same.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from p2d_node.checkpoints.devices import choose_device, choose_dtype
from p2d_node.config import DriveConfig

NO_MATTER = frozenset(
    {
        'cameras',
        'device',
        'encoder',
        'missing_camera_policy',
        'num_threads',
        'question_batch',
        'questions',
        'retention_ratio',
        'stream_partial_answers',
        'sync',
    }
)
"""Settings that do not change answers, or no more than rounding does, and the retention ratios,
which their users treat by themselves; what is new in the configuration counts until it is named
here."""


def answer_settings(config: DriveConfig) -> dict[str, Any]:
    """Return name to value of every setting that answers depend on, retention ratios apart.

    `dtype` is the one that the configuration leads to on this machine.
    """
    settings = {name: value for name, value in asdict(config).items() if name not in NO_MATTER}
    dtype = choose_dtype(config.dtype, choose_device(config.device))
    return settings | {'dtype': str(dtype).removeprefix('torch.')}
