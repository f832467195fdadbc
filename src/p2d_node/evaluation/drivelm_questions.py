"""Reads DriveLM's questions with references and tags, in the official order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
import re
from typing import Any

from p2d_node.bags.image_files import image_names
from p2d_node.config_parameters import MAX_CAMERAS
from p2d_node.durable_files import read_data
from p2d_node.errors import ConfigError, quote
from p2d_node.evaluation.language_metrics import MAX_WORDS
from p2d_node.evaluation.predictions import first_duplicate

TASKS = ('perception', 'prediction', 'planning', 'behavior')
"""Order in which a keyframe's questions are numbered."""

LETTER = re.compile(r'[A-Z]')


class Tag(IntEnum):
    """How an answer is scored."""

    ACCURACY = 0
    JUDGE = 1
    LANGUAGE = 2
    MATCH = 3


MAX_ID_CHARACTERS = 256
"""Of the names of a scene and a frame, which are in the id of each question; and of a camera."""

MAX_REFERENCE_CHARACTERS = 1 << 16
"""`MAX_WORDS` words of 16 characters each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveLmQuestion:
    """One question about one keyframe.

    Attributes:
        id: `<scene>_<frame>_<number>`, as submissions name it.
        keyframe: `<scene>_<frame>`.
        question: The question.
        reference: The answer to compare with; None in test files.
        tags: How the answer is scored.
        has_tags: Whether the data has them; otherwise they follow from the reference.
        images: Camera to image name, as in the data.
    """

    id: str
    keyframe: str
    question: str
    reference: str | None
    tags: tuple[Tag, ...]
    has_tags: bool = True
    images: Mapping[str, str]


def read_questions(path: Path) -> list[DriveLmQuestion]:
    """Read DriveLM v1.1 (scenes with `key_frames`) or its flat list of conversations.

    Questions without tags are scored by language, and those with a one-letter reference by
    accuracy.

    Raises:
        ConfigError: The file is missing, empty or not in this format.
    """
    data = read_data(path, parameter='data', next_step='name the file of questions')
    try:
        read = _read_graph(data) if isinstance(data, dict) else _read_flat(data)
        questions = list(read)
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as err:
        raise ConfigError(
            f'{path}: not DriveLM data: {type(err).__name__}: {err}; needed: scenes with '
            'key_frames and QA, or a flat list with id, image and conversations'
        ) from err
    if not questions:
        raise ConfigError(f'{path}: holds no question')
    if not any(question.reference is None or question.reference.strip() for question in questions):
        raise ConfigError(f'{path}: every reference answer is empty; copy the file again')
    for question in questions:
        check_reference(f'{path}: question {question.id}', question.reference or '')
    twice = first_duplicate(question.id for question in questions)
    if twice is not None:
        raise ConfigError(f'{path}: the id {twice} occurs twice')
    return questions


def check_reference(where: str, *parts: str) -> None:
    """Check the size of a reference.

    Args:
        where: File and question, for the message.
        parts: The texts that it has.

    Raises:
        ConfigError: Together they have too many characters or words.
    """
    if (
        sum(map(len, parts)) > MAX_REFERENCE_CHARACTERS
        or sum(len(part.split()) for part in parts) > MAX_WORDS
    ):
        raise ConfigError(
            f'{where}: its reference has more than {MAX_WORDS} words or '
            f'{MAX_REFERENCE_CHARACTERS} characters, allowed: up to these; copy the file again'
        )


def _read_graph(data: Mapping[str, Any]) -> Iterator[DriveLmQuestion]:
    for scene, content in data.items():
        for frame, key_frame in content['key_frames'].items():
            keyframe = f'{scene}_{frame}'
            _check_length('the names of a scene and a frame', keyframe)
            items = [item for task in TASKS for item in key_frame['QA'].get(task, ())]
            paths = key_frame.get('image_paths', {})
            # One object for all questions: there may be thousands of them.
            images = dict(zip(paths, names_of_keyframe(paths), strict=True))
            for camera in images:
                _check_length('the name of a camera', camera)
            for number, item in enumerate(items):
                reference = None if item.get('A') is None else _text(item, 'A')
                yield DriveLmQuestion(
                    id=f'{keyframe}_{number}',
                    keyframe=keyframe,
                    question=_text(item, 'Q'),
                    reference=reference,
                    tags=_tags_of(item.get('tag'), reference),
                    has_tags=item.get('tag') is not None,
                    images=images,
                )


def _read_flat(data: Any) -> Iterator[DriveLmQuestion]:
    for item in data:
        texts = {turn['from']: _text(turn, 'value') for turn in item['conversations']}
        names = names_of_keyframe(item['image'])
        reference = texts.get('gpt')
        question_id = str(item['id'])
        _check_length('an id', question_id)
        yield DriveLmQuestion(
            id=question_id,
            keyframe=question_id.rpartition('_')[0],
            question=texts['human'].replace('<image>', '').strip(),
            reference=reference,
            tags=_tags_of(item.get('tag'), reference),
            has_tags=item.get('tag') is not None,
            images={camera_of(name): name for name in names},
        )


def _check_length(what: str, name: str) -> None:
    if len(name) > MAX_ID_CHARACTERS:
        raise ValueError(
            f'got {what} with {len(name)} characters, allowed: up to {MAX_ID_CHARACTERS}'
        )


def names_of_keyframe(images: Any) -> list[str]:
    """Return the names of the images of one sweep; see `image_names`.

    Raises:
        ValueError: There are too many.
    """
    if isinstance(images, (dict, list)) and len(images) > MAX_CAMERAS:
        raise ValueError(f'got {len(images)} images of a keyframe, allowed: up to {MAX_CAMERAS}')
    return image_names(images)


def _text(item: Mapping[str, Any], field: str) -> str:
    value = item[field]
    if not isinstance(value, str):
        raise TypeError(f'{field}: got {quote(value)}, allowed: a text')
    return value


def camera_of(name: str) -> str:
    """Return the camera in the name of a nuScenes image.

    Raises:
        ValueError: The name has no camera.
    """
    for part in re.split(r'__|/', name):
        if part.startswith('CAM_'):
            return part
    raise ValueError(f'the image name {name} holds no camera (CAM_...)')


def _tags_of(tags: Any, reference: str | None) -> tuple[Tag, ...]:
    if tags is not None:
        return tuple(Tag(tag) for tag in tags)
    if reference is not None and LETTER.fullmatch(reference.strip()):
        return (Tag.ACCURACY, Tag.LANGUAGE)
    return (Tag.LANGUAGE,)
