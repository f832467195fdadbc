"""What a demo leaves behind: answers, the picture of kept tokens, the latency plot."""

from __future__ import annotations

from collections.abc import Sequence
import json
from pathlib import Path
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
from p2d_node.cli.table import stamp_text
from p2d_node.cli.watch import to_dict

STACKED_STAGES = (
    'sync_wait_ms',
    'queue_ms',
    'decode_ms',
    'preprocess_ms',
    'encode_ms',
    'select_ms',
    'prefill_ms',
    'generate_ms',
)


def write_answers(answers: Sequence[Any], path: Path) -> None:
    """Write one JSON object per answer."""
    lines = [json.dumps(to_dict(answer)) for answer in answers]
    path.write_text('\n'.join(lines) + '\n', encoding='utf-8')


def write_picture(image: Any, path: Path) -> None:
    """Write a bgr8 sensor_msgs/Image as PNG."""
    pixels = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
    cv2.imwrite(str(path), pixels)


def write_latency_plot(timings: Sequence[Any], title: str, path: Path) -> None:
    """Draw the stages of every sweep on top of each other, in milliseconds."""
    mpl.use('Agg')
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 5), layout='constrained')
    positions = np.arange(len(timings))
    bottom = np.zeros(len(timings))
    for index, stage in enumerate(STACKED_STAGES):
        values = np.array([getattr(timing, stage) for timing in timings])
        label = stage.removesuffix('_ms')
        axes.bar(positions, values, bottom=bottom, label=label, color=f'C{index}')
        bottom += values
    stamps = [stamp_text(timing.header.stamp) for timing in timings]
    axes.set_xticks(positions, stamps, rotation=30, ha='right')
    axes.set(xlabel='capture of the reference camera (s)', ylabel='ms', title=title)
    axes.legend(loc='upper left', bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=110)
    plt.close(figure)
