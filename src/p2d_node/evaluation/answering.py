"""Answers every question of a DriveLM file with a model; a run that is cut goes on where it was.

Answers are appended to a file of JSON lines, one keyframe at a time, as they come.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
import json
import os
from pathlib import Path
from typing import Any

from p2d_node.bags.drivelm import resolve_image, stamp_ns_of
from p2d_node.errors import ConfigError
from p2d_node.evaluation.drivelm_questions import DriveLmQuestion
from p2d_node.pipeline import DrivingPipeline
from p2d_node.records import CameraFrame, CompressedImage, DrivingAnswer, FrameSet


@dataclass(frozen=True, slots=True)
class Keyframe:
    """The questions about one sweep."""

    name: str
    questions: tuple[DriveLmQuestion, ...]


def group_keyframes(questions: Iterable[DriveLmQuestion]) -> list[Keyframe]:
    """Group questions by keyframe, in the order in which keyframes first appear."""
    groups: dict[str, list[DriveLmQuestion]] = {}
    for question in questions:
        groups.setdefault(question.keyframe, []).append(question)
    return [Keyframe(name, tuple(group)) for name, group in groups.items()]


def check_images(keyframes: Sequence[Keyframe], image_root: Path, cameras: Sequence[str]) -> None:
    """Make sure before the first answer that every picture is there.

    Raises:
        ConfigError: A camera without picture, or a picture that is not there.
    """
    for keyframe in keyframes:
        for path in _image_paths(keyframe, image_root, cameras).values():
            if not path.is_file():
                raise ConfigError(f'{path}: there is no such image; check --images')


def _image_paths(keyframe: Keyframe, image_root: Path, cameras: Sequence[str]) -> dict[str, Path]:
    images = keyframe.questions[0].images
    missing = [camera for camera in cameras if camera not in images]
    if missing:
        raise ConfigError(f'keyframe {keyframe.name}: has no image of {missing[0]}')
    return {camera: resolve_image(images[camera], image_root) for camera in cameras}


def load_sweep(keyframe: Keyframe, image_root: Path, cameras: Sequence[str]) -> FrameSet:
    """Read the pictures of a keyframe as the cameras would have sent them.

    Raises:
        ConfigError: A picture that cannot be read.
    """
    frames = {}
    for camera, path in _image_paths(keyframe, image_root, cameras).items():
        try:
            image = CompressedImage(format='jpeg', data=path.read_bytes())
        except OSError as err:
            raise ConfigError(f'{path}: cannot be read: {err.strerror}') from err
        frames[camera] = CameraFrame(camera, stamp_ns_of(path), image)
    stamp_ns = frames[cameras[0]].stamp_ns
    return FrameSet(stamp_ns=stamp_ns, frames=frames, first_arrival_ns=0, closed_ns=0)


def answer_keyframe(
    pipeline: DrivingPipeline, keyframe: Keyframe, image_root: Path
) -> list[dict[str, Any]]:
    """Answer the questions of one keyframe over one visual prefix; returns records to store."""
    sweep = load_sweep(keyframe, image_root, tuple(pipeline.config.cameras))
    answers = pipeline.answer(sweep, [question.question for question in keyframe.questions])
    return [
        _to_record(question, answer)
        for question, answer in zip(keyframe.questions, answers, strict=True)
    ]


def _to_record(question: DriveLmQuestion, answer: DrivingAnswer) -> dict[str, Any]:
    times = answer.times
    return {
        'id': question.id,
        'question': question.question,
        'answer': answer.answer,
        'tokens_kept': sum(answer.tokens_kept.values()),
        'tokens_total': sum(answer.tokens_total.values()),
        'prefill_ms': times.prefill_ms,
        'generate_ms': times.generate_ms,
        'encode_ms': times.encode_ms,
        'select_ms': times.select_ms,
    }


class AnswerFile:
    """Answers on disk, one JSON object per line, after a line that says what made them.

    `done` holds the answers by question id. Use it from one thread.
    """

    def __init__(self, path: Path, made_by: Mapping[str, Any]) -> None:
        """Open the file, or begin it; a last line that was cut short is dropped.

        Raises:
            ConfigError: Not such a file, or one of another model, data or settings.
        """
        self.done: dict[str, dict[str, Any]] = {}
        self._path = path
        if path.exists():
            self._read(made_by)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write([made_by])

    def _read(self, made_by: Mapping[str, Any]) -> None:
        lines = self._path.read_bytes().split(b'\n')
        whole = b''.join(line + b'\n' for line in lines[:-1])
        if lines[-1]:
            os.truncate(self._path, len(whole))
        try:
            head, *records = [json.loads(line) for line in whole.splitlines()]
            self.done = {record['id']: record for record in records}
        except (ValueError, KeyError, TypeError) as err:
            raise ConfigError(
                f'{self._path}: not a file of answers: {err}; name another with --out'
            ) from err
        for name, value in made_by.items():
            if head.get(name) != value:
                raise ConfigError(
                    f'{self._path}: its answers were made with {name} {head.get(name)!r}, now it '
                    f'is {value!r}; name another file with --out'
                )

    def append(self, records: Sequence[dict[str, Any]]) -> None:
        """Add the answers of a keyframe; they are on disk when this returns."""
        self._write(records)
        self.done |= {record['id']: record for record in records}

    def _write(self, records: Sequence[Mapping[str, Any]]) -> None:
        with self._path.open('a', encoding='utf-8') as file:
            file.write(''.join(f'{json.dumps(record)}\n' for record in records))
            file.flush()
            os.fsync(file.fileno())


def answer_all(
    pipeline: DrivingPipeline,
    keyframes: Sequence[Keyframe],
    image_root: Path,
    answers: AnswerFile,
) -> Iterator[int]:
    """Answer what `answers` lacks; yields the number of answered questions per keyframe."""
    for keyframe in keyframes:
        open_questions = tuple(q for q in keyframe.questions if q.id not in answers.done)
        if open_questions:
            rest = Keyframe(keyframe.name, open_questions)
            answers.append(answer_keyframe(pipeline, rest, image_root))
        yield len(keyframe.questions)
