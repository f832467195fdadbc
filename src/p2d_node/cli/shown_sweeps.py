"""Messages of the drive node come in; what viewers show of a sweep goes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from p2d_node.cli.report_parts import to_jpeg
from p2d_node.cli.table import stamp_ns
from p2d_node.viewers.shown_sweep import ShownSweep


def to_shown_sweep(
    number: int,
    timing: Any,
    answers: Sequence[Any],
    views: Mapping[str, bytes],
    pictures: Sequence[Any],
) -> ShownSweep:
    """Return one sweep.

    Args:
        number: Of the sweep, from 0.
        timing: Its p2d_msgs/StageTiming.
        answers: p2d_msgs/DrivingAnswer; those about other sweeps are left out.
        views: Camera to JPEG or PNG.
        pictures: `~/kept_tokens`, sensor_msgs/Image; those of other sweeps are left out.
    """
    stamp = stamp_ns(timing)
    ours = [answer for answer in answers if stamp_ns(answer) == stamp]
    picture = next((p for p in pictures if stamp_ns(p) == stamp), None)
    first = ours[:1]
    return ShownSweep(
        number=number,
        stamp_ns=stamp,
        views=views,
        kept_tokens=b'' if picture is None else to_jpeg(pixels_of(picture)),
        answers=[(answer.question, answer.answer) for answer in ours],
        tokens_kept={k: v for a in first for k, v in zip(a.cameras, a.tokens_kept, strict=True)},
        times_ms={
            name: getattr(timing, name)
            for name in timing.get_fields_and_field_types()
            if name.endswith('_ms')
        },
    )


def pixels_of(image: Any) -> Any:
    """Return a bgr8 sensor_msgs/Image as uint8 [height, width, 3]."""
    return np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
