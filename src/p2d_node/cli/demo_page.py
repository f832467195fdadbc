"""The report of a demo: story, kept tokens, latency, answers, and what ran where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from p2d_node.cli.demo_report import References
from p2d_node.cli.report_parts import (
    latency_chart,
    machine_section,
    NUM_ANSWERS_SHOWN,
    small_jpeg,
    to_jpeg,
    tokens_chart,
)
from p2d_node.cli.table import stamp_ns
from p2d_node.latency import LATENCY_TREE
from p2d_node.reports.parts import Gallery, Notes, Page, Picture, Section, Table
from p2d_node.units import NS_PER_S


def demo_page(
    title: str,
    answers: Sequence[Any],
    timings: Sequence[Any],
    fronts: Mapping[int, bytes],
    *,
    picture: Any = None,
    references: References,
    num_sweeps: int,
    warning: str = '',
) -> Page:
    """Return the report of a demo.

    Args:
        title: What was played.
        answers: p2d_msgs/DrivingAnswer of all sweeps, one or more.
        timings: p2d_msgs/StageTiming of the sweeps.
        fronts: Capture stamp, nanoseconds, to JPEG of the reference camera.
        picture: The last `~/kept_tokens`, sensor_msgs/Image; None: there is none.
        references: Reference answers.
        num_sweeps: Sweeps that were played.
        warning: Shown above all; empty: none.
    """
    last = answers[-1]
    kept, total = sum(last.tokens_kept), sum(last.tokens_total)
    facts = [
        ('model', last.model),
        ('encoder', last.encoder),
        ('answers', str(len(answers))),
        ('sweeps answered', f'{len(timings)} of {num_sweeps}'),
        ('visual tokens kept', f'{kept} of {total} ({kept / max(1, total):.1%})'),
    ]
    sections = [
        Section('Story', [Notes([last.question]), _story(answers, fronts, references)]),
        Section('Kept tokens', _tokens(last, picture)),
        Section('Latency', [latency_chart(_times(timings))] if timings else []),
        Section('Answers', [_answers(answers, references)]),
        machine_section([('model', last.model), ('encoder', last.encoder)]),
    ]
    return Page(title=f'p2d demo: {title}', facts=facts, sections=sections, warning=warning)


def _story(answers: Sequence[Any], fronts: Mapping[int, bytes], references: References) -> Gallery:
    """Return the reference camera's pictures with the answers to the last question."""
    question = answers[-1].question
    told = {stamp_ns(a): a.answer for a in answers if a.question == question}
    pictures = []
    for stamp in sorted(set(told) & set(fronts)):
        seconds = f'{(stamp - min(told)) / NS_PER_S:.1f} s'
        reference = references.get((stamp, question))
        people = [] if reference is None else [f'people: {reference}']
        pictures.append(
            Picture(
                data=small_jpeg(fronts[stamp]),
                mime='image/jpeg',
                alt=f'front camera at {seconds}',
                lines=[told[stamp], *people, seconds],
            )
        )
    return Gallery(pictures)


def _tokens(answer: Any, picture: Any) -> list[Any]:
    cameras = list(answer.cameras)
    kept = dict(zip(cameras, answer.tokens_kept, strict=True))
    total = dict(zip(cameras, answer.tokens_total, strict=True))
    parts: list[Any] = [tokens_chart(kept, total)]
    if picture is not None:
        shape = (picture.height, picture.width, 3)
        data = to_jpeg(np.frombuffer(picture.data, np.uint8).reshape(shape))
        alt = 'the views of the last sweep; patches that the language model reads are lit'
        lines = ['The last sweep: the language model reads the lit patches.']
        shown = Picture(data=data, mime='image/jpeg', alt=alt, lines=lines)
        parts.insert(0, Gallery([shown], wide=True))
    return parts


def _times(timings: Sequence[Any]) -> list[dict[str, float]]:
    return [{name: getattr(t, name) for _, name, _ in LATENCY_TREE} for t in timings]


def _answers(answers: Sequence[Any], references: References) -> Table:
    first_ns = min(map(stamp_ns, answers))
    headings = ['s', 'question', 'answer', *(['people'] if references else [])]
    rows = []
    for answer in answers[:NUM_ANSWERS_SHOWN]:
        stamp = stamp_ns(answer)
        people = [references.get((stamp, answer.question), '')] if references else []
        seconds = round((stamp - first_ns) / NS_PER_S, 1)
        rows.append([seconds, answer.question, answer.answer, *people])
    return Table(headings, rows)
