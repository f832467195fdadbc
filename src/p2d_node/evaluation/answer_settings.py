"""The settings of a configuration that answers depend on, as plain data.

Files of answers and studies store them, so that answers of other settings are not mixed in.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from p2d_node.checkpoints.devices import choose_device, choose_dtype
from p2d_node.config import DriveConfig

IRRELEVANT = frozenset(
    {
        'access',
        'cameras',
        'device',
        'encoder',
        'max_context_age_ms',
        'missing_camera_policy',
        'num_threads',
        'question_batch',
        'questions',
        'retention_ratio',
        'short_clip_policy',
        'stream_partial_answers',
        'sync',
    }
)
"""Settings that do not change answers by more than rounding, and the retention ratios, which
callers add themselves. A new setting counts as relevant until it is named here."""


def answer_settings(config: DriveConfig) -> dict[str, Any]:
    """Return name to value of every setting that answers depend on, except retention ratios.

    `dtype` is the resolved one of this machine.
    """
    settings = {name: value for name, value in asdict(config).items() if name not in IRRELEVANT}
    dtype = choose_dtype(config.dtype, choose_device(config.device))
    return settings | {'dtype': str(dtype).removeprefix('torch.')}
