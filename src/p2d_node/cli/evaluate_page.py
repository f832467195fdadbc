"""The report of an evaluation: story, scores, latency, kept tokens, answers, what ran where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from p2d_node.bags.image_files import resolve_image
from p2d_node.cli.report_parts import (
    machine_section,
    NUM_ANSWERS_SHOWN,
    ratios_chart,
    small_jpeg,
)
from p2d_node.errors import ConfigError, cut, ImageDecodeError
from p2d_node.evaluation.answering import read_camera_image
from p2d_node.reports.parts import Gallery, Notes, Page, Picture, Section, Table

STORY_LENGTH = 8

MAX_CHARACTERS = 4000
"""Of a text in a report."""


def evaluation_page(
    report: Mapping[str, Any],
    rows: Sequence[tuple[str, Any]],
    questions: Sequence[Any],
    predictions: Mapping[str, str],
    *,
    data: str,
    images: Path,
    ratios: Mapping[str, float],
    max_pixels: int,
) -> Page:
    """Return the report of an evaluation.

    Args:
        report: What the verb prints as JSON.
        rows: The same, flat.
        questions: Those that were asked.
        predictions: Id of a question to its answer.
        data: Name of the data.
        images: Folder of the images.
        ratios: Camera to retention ratio; the first camera tells the story.
        max_pixels: Largest image.
    """
    latency = [(name.split(' ', 1)[1], value) for name, value in rows if 'latency' in name]
    scores = [[n, 'absent' if v is None else v] for n, v in rows if not _is_no_score(n)]
    facts = [
        ('model', str(report['model'])),
        ('questions', str(len(questions))),
        ('visual tokens kept', f'{report["tokens_kept_share"]:.1%}'),
    ]
    sections = [
        Section('Story', [_story(questions, predictions, images, next(iter(ratios)), max_pixels)]),
        Section(
            'Scores',
            [Table(('', 'value'), scores), Notes([f'{note}.' for note in report['notes']])],
        ),
        Section('Latency', [Table(('ms', 'value'), latency)]),
        Section('Kept tokens', [ratios_chart(ratios)]),
        Section('Answers', [_answers(questions, predictions)]),
        machine_section([('model', str(report['model'])), ('data', data)]),
    ]
    return Page(title=f'p2d evaluate: {data}', facts=facts, sections=sections)


def _is_no_score(name: str) -> bool:
    return name.startswith(('latency', 'notes', 'model', 'max_new', 'tokens_kept'))


def _lines(question: Any, predictions: Mapping[str, str]) -> list[str]:
    people = [] if question.reference is None else [f'people: {question.reference}']
    lines = [predictions.get(question.id, ''), question.question, *people]
    return [cut(line, MAX_CHARACTERS) for line in lines]


def _story(
    questions: Sequence[Any],
    predictions: Mapping[str, str],
    images: Path,
    camera: str,
    max_pixels: int,
) -> Gallery:
    """Return a camera's views of the first keyframes, with the answer to the first question.

    A picture that cannot be used is left out: after an earlier run nobody has decoded it yet.
    """
    firsts: dict[str, Any] = {}
    for question in questions:
        firsts.setdefault(question.keyframe, question)
    pictures = []
    for question in list(firsts.values())[:STORY_LENGTH]:
        try:
            path = resolve_image(question.images[camera], images)
            view = small_jpeg(read_camera_image(path, images, max_pixels), camera, max_pixels)
        except (ConfigError, ImageDecodeError):
            continue
        pictures.append(
            Picture(
                data=view,
                mime='image/jpeg',
                alt=f'{camera} of {question.keyframe}',
                lines=_lines(question, predictions),
            )
        )
    return Gallery(pictures)


def _answers(questions: Sequence[Any], predictions: Mapping[str, str]) -> Table:
    rows = [
        (question.question, predictions.get(question.id, ''), question.reference or '')
        for question in questions[:NUM_ANSWERS_SHOWN]
    ]
    cut_rows = [[cut(text, MAX_CHARACTERS) for text in row] for row in rows]
    return Table(('question', 'answer', 'people'), cut_rows)
