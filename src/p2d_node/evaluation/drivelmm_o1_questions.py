"""Reads DriveLMM-o1's questions with reasoning and final answers.

The fields are those that the authors' evaluation script reads (ayesha-ishaq/DriveLMM-o1,
evaluation/evaluation_script.py: idx, image, question, steps, final_answer). Their scripts disagree
whether the file is a list of items or an object with the items as values; both are accepted.
That `image` names six nuScenes images comes from public code that reads the file: the authors' own
code expects stitched images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
import re
from typing import Any

from p2d_node.config_parameters import MAX_CAMERAS
from p2d_node.durable_files import read_data
from p2d_node.errors import ConfigError, quote
from p2d_node.evaluation.drivelm_questions import (
    camera_of,
    check_reference,
    MAX_ID_CHARACTERS,
    names_of_keyframe,
)
from p2d_node.evaluation.predictions import first_duplicate

TEXTS = ('idx', 'question', 'steps', 'final_answer')
ID = re.compile(r'(.+)_(\d{1,9})')

CHOICE_NUMBERS = frozenset({2, 3, 4, 5, 8})
"""Numbers at the end of the ids of the questions that the authors score as multiple choice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveLmmO1Question:
    """One question about one keyframe.

    Attributes:
        id: `<scene>_<frame>_<number>`.
        keyframe: `<scene>_<frame>`.
        question: The question; a multiple choice names its options.
        steps: The reasoning to compare with.
        final_answer: The final answer to compare with.
        images: Camera to image name, as in the data.
    """

    id: str
    keyframe: str
    question: str
    steps: str
    final_answer: str
    images: Mapping[str, str]

    @property
    def is_choice(self) -> bool:
        """Whether the letter of the final answer counts."""
        return int(self.id.rpartition('_')[2]) in CHOICE_NUMBERS

    @property
    def reference(self) -> str:
        """The whole answer to compare with."""
        return f'{self.steps}\nFinal Answer: {self.final_answer}'


def read_o1_questions(path: Path) -> list[DriveLmmO1Question]:
    """Read DriveLMM-o1's test file.

    Raises:
        ConfigError: The file is missing or empty, or an item is not in this format.
    """
    data = read_data(path, parameter='data', next_step='name the file of questions')
    items = list(data.values()) if isinstance(data, dict) else data
    if not isinstance(items, list):
        raise ConfigError(f'{path}: not DriveLMM-o1 data; needed: a list of items')
    questions = [_read_item(path, number, item) for number, item in enumerate(items)]
    if not questions:
        raise ConfigError(f'{path}: holds no question')
    twice = first_duplicate(question.id for question in questions)
    if twice is not None:
        raise ConfigError(f'{path}: the idx {twice} occurs twice')
    return questions


def _read_item(path: Path, number: int, item: Any) -> DriveLmmO1Question:
    fields = item if isinstance(item, dict) else {}
    where = f'{path}: item {number} (idx {quote(fields.get("idx"))})'
    for name in TEXTS:
        if not isinstance(fields.get(name), str):
            raise ConfigError(
                f'{where}: has no text {name}; needed: {", ".join(TEXTS)} and image, as in '
                "DriveLMM-o1's test file"
            )
    # The length comes first: the expression takes time for each character.
    parts = ID.fullmatch(fields['idx']) if len(fields['idx']) <= MAX_ID_CHARACTERS else None
    if parts is None:
        raise ConfigError(
            f'{where}: needed: an idx like <scene>_<frame>_<number> of up to {MAX_ID_CHARACTERS} '
            'characters'
        )
    check_reference(where, fields['steps'], fields['final_answer'])
    return DriveLmmO1Question(
        id=fields['idx'],
        keyframe=parts[1],
        question=fields['question'].replace('<image>', '').strip(),
        steps=fields['steps'],
        final_answer=fields['final_answer'],
        images=_read_images(where, fields.get('image')),
    )


def _read_images(where: str, names: Any) -> dict[str, str]:
    try:
        return {camera_of(name): name for name in names_of_keyframe(names)}
    except (ValueError, TypeError) as err:
        raise ConfigError(
            f'{where}: image: got {quote(names)}, needed: up to {MAX_CAMERAS} names of nuScenes '
            'images, samples/<CAMERA>/...'
        ) from err
