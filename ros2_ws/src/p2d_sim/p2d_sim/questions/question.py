"""The record of one question, and the names of the views in it."""

from __future__ import annotations

from dataclasses import dataclass

VIEW_NAMES = ('front', 'front left', 'front right', 'back', 'back left', 'back right')
ALL_VIEWS = tuple(range(len(VIEW_NAMES)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question about one sweep.

    Attributes:
        kind: Name of the kind, e.g. `count`; multiple choice has `choice ` before it.
        group: `perception`, `prediction`, `planning` or `behavior`.
        tag: How DriveLM scores the answer: 0 exact match, 1 by a judge, 2 by its wording.
        text: The question.
        answer: The answer.
        content: Words behind the letter of a multiple choice answer; else empty.
        options: All possible answers; empty for yes or no and for free text.
        cameras: Indices of the views that the question is about.
        targets: (view, id) of the objects that the question is about; empty if it is about whole
            views. Ids are those of the id maps, see `drawing.View`.
    """

    kind: str
    group: str
    tag: int
    text: str
    answer: str
    content: str = ''
    options: tuple[str, ...] = ()
    cameras: tuple[int, ...]
    targets: tuple[tuple[int, int], ...] = ()
