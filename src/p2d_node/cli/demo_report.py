"""The files of a demo: answers, story, picture of kept tokens, plot of the latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
import json
from pathlib import Path
import textwrap
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from p2d_node.cli.screen import InertConsole
from p2d_node.cli.table import stamp_ns, stamp_text, to_dict
from p2d_node.compressed_images import AS_STORED
from p2d_node.durable_files import write_bytes
from p2d_node.errors import one_line
from p2d_node.figures import new_figure, write_figure
from p2d_node.records import StageTimes
from p2d_node.units import NS_PER_S
from rich.table import Table

STORY_COLUMNS = 4
STORY_PANEL_PX = (360, 202)
STORY_CAPTION_PX = 48
STORY_LINE_LENGTH = 42
"""Characters that fit under a panel."""

HEAD_LINE_PX = 28
FONT = cv2.FONT_HERSHEY_SIMPLEX
WHITE, ORANGE, GREEN = (255, 255, 255), (0, 165, 255), (120, 220, 120)
"""In BGR."""

References = Mapping[tuple[int, str], str]
"""(Stamp, nanoseconds; question) to reference answer."""

STACKED_STAGES = tuple(
    stage.name for stage in fields(StageTimes) if stage.name not in {'ttft_ms', 'total_ms'}
)
"""Stages that run one after another; the other fields are sums of them."""


def write_answers(answers: Sequence[Any], references: References, path: Path) -> None:
    """Write one JSON object per answer, with the reference answer if there is one."""
    records = []
    for answer in answers:
        reference = references.get((stamp_ns(answer), answer.question))
        records.append(to_dict(answer) | ({} if reference is None else {'reference': reference}))
    write_bytes(path, ''.join(f'{json.dumps(r)}\n' for r in records).encode())


def print_references(answers: Sequence[Any], references: References) -> None:
    """Print the answers beside the reference answers."""
    table = Table(title='answers beside those of people')
    for title in ('stamp', 'question', 'answer', 'reference'):
        table.add_column(title, no_wrap=title == 'stamp', overflow='fold')
    for answer in answers:
        reference = references.get((stamp_ns(answer), answer.question), '')
        stamp = stamp_text(answer.header.stamp)
        table.add_row(stamp, answer.question, answer.answer, reference)
    InertConsole().print(table)


def write_picture(image: Any, path: Path) -> None:
    """Write a bgr8 sensor_msgs/Image as PNG."""
    pixels = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
    _write_png(pixels, path)


def _write_png(pixels: npt.NDArray[np.uint8], path: Path) -> None:
    """Write BGR uint8 [height, width, 3]; a link is replaced, its target is not written to."""
    _, png = cv2.imencode('.png', pixels)
    write_bytes(path, png.tobytes())


def write_story(
    pictures: Mapping[int, bytes],
    answers: Sequence[Any],
    path: Path,
    *,
    references: References,
    warning: str = '',
) -> None:
    """Draw the image of the reference camera in each sweep, above the answer to the last question.

    Args:
        pictures: Capture stamp, nanoseconds, to JPEG.
        answers: p2d_msgs/DrivingAnswer of all sweeps.
        path: PNG to write; not written if no answer is about a picture.
        references: Reference answers, drawn below the model's.
        warning: Drawn above all; empty: none.
    """
    if not answers:
        return
    question = answers[-1].question
    last = {stamp_ns(a): a.answer for a in answers if a.question == question}
    missing = '-' if references else None
    panels = [
        _panel(pictures[stamp], last[stamp], references.get((stamp, question), missing))
        for stamp in sorted(last)
        if stamp in pictures
    ]
    if not panels:
        return
    while len(panels) % STORY_COLUMNS:
        panels.append(np.zeros_like(panels[0]))
    rows = [panels[i : i + STORY_COLUMNS] for i in range(0, len(panels), STORY_COLUMNS)]
    story = np.vstack([np.hstack(row) for row in rows])
    heads = [question, *([warning] if warning else [])]
    head = np.zeros((HEAD_LINE_PX * len(heads) + 8, story.shape[1], 3), np.uint8)
    for number, line in enumerate(heads):
        colour = WHITE if number == 0 else ORANGE
        _write(head, line, (8, HEAD_LINE_PX * (number + 1) - 6), colour, 0.6)
    _write_png(np.vstack([head, story]), path)


def _panel(jpeg: bytes, answer: str, reference: str | None) -> npt.NDArray[np.uint8]:
    """Return BGR uint8 [height, width, 3]: the picture with the answers below it."""
    decoded = np.asarray(cv2.imdecode(np.frombuffer(jpeg, np.uint8), AS_STORED))
    width, height = STORY_PANEL_PX
    texts = [(answer, WHITE)]
    if reference is not None:
        texts.append((f'people: {reference}', GREEN))
    panel = np.zeros((height + STORY_CAPTION_PX * len(texts), width, 3), np.uint8)
    panel[:height] = cv2.resize(decoded, (width, height), interpolation=cv2.INTER_AREA)
    for part, (text, colour) in enumerate(texts):
        lines = textwrap.wrap(text, STORY_LINE_LENGTH, max_lines=2, placeholder=' ...')
        for number, line in enumerate(lines):
            _write(panel, line, (8, height + STORY_CAPTION_PX * part + 20 * (number + 1)), colour)
    return panel


def _write(
    image: npt.NDArray[np.uint8],
    text: str,
    place: tuple[int, int],
    colour: tuple[int, int, int],
    scale: float = 0.5,
) -> None:
    cv2.putText(image, text, place, FONT, scale, colour, 1, cv2.LINE_AA)


def write_latency_plot(timings: Sequence[Any], title: str, path: Path) -> None:
    """Draw a stacked bar of stage times per sweep, milliseconds."""
    figure = new_figure(10, 5)
    axes = figure.subplots()
    positions = np.arange(len(timings))
    bottom = np.zeros(len(timings))
    for index, stage in enumerate(STACKED_STAGES):
        values = np.array([getattr(timing, stage) for timing in timings])
        label = stage.removesuffix('_ms')
        axes.bar(positions, values, bottom=bottom, label=label, color=f'C{index}')
        bottom += values
    first_ns = stamp_ns(timings[0]) if timings else 0
    seconds = [f'{(stamp_ns(timing) - first_ns) / NS_PER_S:.1f}' for timing in timings]
    axes.set_xticks(positions, seconds)
    axes.set(xlabel='capture, seconds from the first sweep', ylabel='ms')
    axes.set_title(one_line(title), parse_math=False)
    # From top to bottom, as the bars are stacked.
    axes.legend(loc='upper left', bbox_to_anchor=(1.0, 1.0), reverse=True)
    write_figure(path, figure, 110)
