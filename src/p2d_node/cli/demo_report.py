"""The files of a demo: answers, story, picture of kept tokens, plot of the latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
import json
from pathlib import Path
import textwrap
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from p2d_node.cli.table import stamp_text, to_dict
from p2d_node.records import StageTimes

STORY_COLUMNS = 4
STORY_PANEL_PX = (360, 202)
STORY_CAPTION_PX = 48
STORY_LINE_LENGTH = 42
"""Characters that fit under a panel."""

FONT = cv2.FONT_HERSHEY_SIMPLEX

STACKED_STAGES = tuple(
    stage.name for stage in fields(StageTimes) if stage.name not in {'ttft_ms', 'total_ms'}
)
"""Stages that run one after another; the other fields are sums of them."""


def write_answers(answers: Sequence[Any], path: Path) -> None:
    """Write one JSON object per answer."""
    lines = [json.dumps(to_dict(answer)) for answer in answers]
    path.write_text('\n'.join(lines) + '\n', encoding='utf-8')


def write_picture(image: Any, path: Path) -> None:
    """Write a bgr8 sensor_msgs/Image as PNG."""
    pixels = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
    cv2.imwrite(str(path), pixels)


def write_story(pictures: Mapping[int, bytes], answers: Sequence[Any], path: Path) -> None:
    """Draw the image of the reference camera in each sweep, above the answer to the last question.

    Args:
        pictures: Capture stamp, nanoseconds, to JPEG.
        answers: p2d_msgs/DrivingAnswer of all sweeps.
        path: PNG to write; not written if there is no answer.
    """
    if not answers:
        return
    question = answers[-1].question
    last = {_stamp_ns(a): a.answer for a in answers if a.question == question}
    panels = [_panel(pictures[stamp], last[stamp]) for stamp in sorted(last) if stamp in pictures]
    while len(panels) % STORY_COLUMNS:
        panels.append(np.zeros_like(panels[0]))
    rows = [panels[i : i + STORY_COLUMNS] for i in range(0, len(panels), STORY_COLUMNS)]
    cv2.imwrite(str(path), np.vstack([np.hstack(row) for row in rows]))


def _stamp_ns(answer: Any) -> int:
    stamp = answer.header.stamp
    return int(stamp.sec * 1_000_000_000 + stamp.nanosec)


def _panel(jpeg: bytes, answer: str) -> npt.NDArray[np.uint8]:
    """Return BGR uint8 [height, width, 3]: the picture with the answer below it."""
    decoded = np.asarray(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR))
    width, height = STORY_PANEL_PX
    panel = np.zeros((height + STORY_CAPTION_PX, width, 3), np.uint8)
    panel[:height] = cv2.resize(decoded, (width, height), interpolation=cv2.INTER_AREA)
    for number, line in enumerate(textwrap.wrap(answer, STORY_LINE_LENGTH)[:2]):
        place = (8, height + 20 + 20 * number)
        cv2.putText(panel, line, place, FONT, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
    return panel


def write_latency_plot(timings: Sequence[Any], title: str, path: Path) -> None:
    """Draw a stacked bar of stage times per sweep, milliseconds."""
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
