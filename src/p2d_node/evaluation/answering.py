"""Answers the questions about keyframes with a model, and resumes an interrupted run.

Input: questions and images. Output: records for the file of answers. Several processes can share
the work: see `answer_workers`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
import hashlib
import os
from pathlib import Path
from typing import Any, Protocol

from p2d_node.assembly import clip_settings
from p2d_node.bags.image_files import camera_and_stamp_of, file_below, sample_name, stamp_ns_of
from p2d_node.clips import ClipSettings, NO_CLIP
from p2d_node.compressed_images import max_compressed_bytes
from p2d_node.config import DEFAULT_MAX_IMAGE_PIXELS, DriveConfig
from p2d_node.durable_files import read_file
from p2d_node.errors import ConfigError, ImageDecodeError, InferenceError, P2dError, quote
from p2d_node.evaluation.clip_images import earlier_images
from p2d_node.evaluation.record_file import OTHER_FOLDER, RecordFile
from p2d_node.pipeline import DrivingPipeline
from p2d_node.records import CameraFrame, CompressedImage, DrivingAnswer, FrameSet

RECORD_FIELDS: Mapping[str, Any] = {
    'question': str,
    'answer': str,
    'cut': str,
    'tokens_kept': int,
    'tokens_total': int,
    'prefill_ms': int | float,
    'generate_ms': int | float,
    'encode_ms': int | float,
    'select_ms': int | float,
    'workers': int,
    'num_frames': int,
    'pictures': str,
}
"""Fields of the record of an answer beside its `id`: name to type."""


class SweepQuestion(Protocol):
    """What answering needs of a question."""

    @property
    def id(self) -> str:
        """Name of the question, unique in its file."""
        ...

    @property
    def keyframe(self) -> str:
        """Name of the sweep that the question is about."""
        ...

    @property
    def question(self) -> str:
        """The question."""
        ...

    @property
    def images(self) -> Mapping[str, str]:
        """Camera to image name, as in the data."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerJob:
    """How questions are answered.

    Attributes:
        config: Settings of the pipeline.
        image_root: Folder that holds `samples/<CAMERA>/*.jpg`.
        instruction: Text put before each question; may be empty.
        workers: Number of processes that share the work.
        scheduler: Address of a running Dask cluster that does the work; None: this machine.
    """

    config: DriveConfig
    image_root: Path
    instruction: str = ''
    workers: int = 1
    scheduler: str | None = None

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras, in the model's order."""
        return tuple(self.config.cameras)

    @property
    def clip(self) -> ClipSettings:
        """What the clip of a keyframe consists of; `config` has it, see `with_clip_of_model`."""
        return clip_settings(self.config)


@dataclass(frozen=True, slots=True)
class Keyframe:
    """The questions about one sweep, each a `SweepQuestion` of its benchmark's own type."""

    name: str
    questions: tuple[Any, ...]


def group_keyframes(questions: Iterable[SweepQuestion]) -> list[Keyframe]:
    """Group questions by keyframe, in the order in which keyframes first appear."""
    groups: dict[str, list[SweepQuestion]] = {}
    for question in questions:
        groups.setdefault(question.keyframe, []).append(question)
    return [Keyframe(name, tuple(group)) for name, group in groups.items()]


def check_images(keyframes: Sequence[Keyframe], image_root: Path, cameras: Sequence[str]) -> None:
    """Check, before the first answer, that every image exists.

    Raises:
        ConfigError: A camera has no image, an image is missing or lies elsewhere, or the questions
            of one keyframe name different images.
    """
    for keyframe in keyframes:
        first, *others = keyframe.questions
        names = _image_names(first, cameras)
        for name in names.values():
            path = file_below(image_root, name)
            if not os.path.isfile(path):
                raise ConfigError(
                    f'images: {quote(str(path))}: there is no such image; check the folder'
                )
        for question in others:
            is_same = question.images is first.images  # or their names are
            if not is_same and _image_names(question, cameras) != names:
                raise ConfigError(
                    f'question {question.id}: its images are not those of {first.id}; needed: the '
                    'same for all questions of a keyframe'
                )


def _image_names(question: SweepQuestion, cameras: Sequence[str]) -> dict[str, str]:
    """Return camera to the name of its image below the folder of the images."""
    missing = [camera for camera in cameras if camera not in question.images]
    if missing:
        raise ConfigError(
            f'question {question.id} has no image of {missing[0]}; its cameras: '
            f'{", ".join(question.images)}; set camera_names in the parameter file to these'
        )
    names = {camera: sample_name(question.images[camera]) for camera in cameras}
    for camera, name in names.items():
        if camera_and_stamp_of(Path(name))[0] != camera:
            raise ConfigError(
                f'question {question.id}: got {Path(name).name} as the image of {camera}; name '
                'the image of this camera'
            )
    return names


def describe_failure(keyframe: Keyframe, err: P2dError) -> str:
    """Return the message of a keyframe's error, with the image file if one camera failed."""
    broken = err.broken if isinstance(err, ImageDecodeError) else {}
    images = [keyframe.questions[0].images[camera] for camera in broken]
    return ': '.join([f'keyframe {keyframe.name}', *images, str(err)])


def load_sweep(
    keyframe: Keyframe,
    image_root: Path,
    cameras: Sequence[str],
    clip: ClipSettings = NO_CLIP,
    max_pixels: int = DEFAULT_MAX_IMAGE_PIXELS,
) -> FrameSet:
    """Read the images of a keyframe and of its clip, as its cameras would have sent them.

    Args:
        keyframe: The keyframe.
        image_root: Folder of the images.
        cameras: Names of the cameras.
        clip: What a clip consists of.
        max_pixels: Largest image; a file that is too large for it is not read.

    Raises:
        ConfigError: An image cannot be read.
    """
    names = _image_names(keyframe.questions[0], cameras)
    sweeps = [*earlier_images(image_root, names, clip), names]
    *earlier, newest = [_read_sweep(image_root, names, max_pixels) for names in sweeps]
    return replace(newest, earlier=tuple(earlier))


def read_camera_image(path: Path, root: Path, max_pixels: int) -> bytes:
    """Read an image file that may be decoded: see `max_compressed_bytes` and `file_below`.

    Raises:
        ConfigError: It cannot be read, is too large, hardly any of it is on the disk, or it lies
            outside of `root`.
    """
    try:
        max_bytes = max_compressed_bytes(max_pixels)
        return read_file(path, max_bytes, may_be_sparse=False, below=root)
    except OSError as err:
        raise ConfigError(f'{path}: cannot be read: {err.strerror}') from err


def _read_sweep(image_root: Path, names: Mapping[str, str], max_pixels: int) -> FrameSet:
    frames = {}
    for camera, name in names.items():
        path = file_below(image_root, name)
        image = CompressedImage(
            format='jpeg', data=read_camera_image(path, image_root, max_pixels)
        )
        frames[camera] = CameraFrame(camera, stamp_ns_of(path), image)
    stamp_ns = next(iter(frames.values())).stamp_ns
    return FrameSet(stamp_ns=stamp_ns, frames=frames, first_arrival_ns=0, closed_ns=0)


def _load(job: AnswerJob, keyframe: Keyframe) -> FrameSet:
    max_pixels = job.config.max_image_pixels
    return load_sweep(keyframe, job.image_root, job.cameras, job.clip, max_pixels)


def digest_sweep(sweep: FrameSet) -> str:
    """Return the SHA-256 of the image files of a sweep from `load_sweep`, with its clip."""
    digest = hashlib.sha256()
    for camera, clip in sweep.clip.items():
        for frame in clip:
            digest.update(f'{camera} {len(frame.payload.data)} '.encode())
            digest.update(frame.payload.data)
    return digest.hexdigest()


def check_pictures(job: AnswerJob, keyframes: Iterable[Keyframe], answers: RecordFile) -> None:
    """Check that stored answers are about the pictures that now lie in the folder.

    Each picture of a keyframe with stored answers is read once.

    Raises:
        ConfigError: An answer is about other pictures of the same names, or an image cannot be
            read.
    """
    for keyframe in keyframes:
        stored = [answers.done[q.id] for q in keyframe.questions if q.id in answers.done]
        if not stored:
            continue
        digest = digest_sweep(_load(job, keyframe))
        for record in stored:
            if record['pictures'] != digest:
                raise ConfigError(
                    f'{answers.path}: the answer to {quote(record["id"])} is about pictures of '
                    f'SHA-256 {quote(record["pictures"][:16])}, now those of its keyframe have '
                    f'{digest[:16]}; {OTHER_FOLDER}'
                )


def _prompt(question: SweepQuestion, instruction: str) -> str:
    return f'{instruction}\n{question.question}'.strip()


def check_prompts(
    pipeline: DrivingPipeline, keyframes: Iterable[Keyframe], instruction: str = ''
) -> None:
    """Check that the model can be asked all questions.

    Raises:
        ConfigError: A question is too long, or holds special tokens of the model.
    """
    for question in (question for keyframe in keyframes for question in keyframe.questions):
        try:
            pipeline.check_questions([_prompt(question, instruction)])
        except ConfigError as err:
            raise ConfigError(f'data: question {quote(question.id)}: {err}') from err


def answer_keyframe(
    pipeline: DrivingPipeline, keyframe: Keyframe, job: AnswerJob
) -> list[dict[str, Any]]:
    """Answer the questions of one keyframe over one visual prefix; return records to store.

    Raises:
        ConfigError: An image cannot be read.
        InferenceError: The bytes are not an image, or a model stage failed.
    """
    sweep = _load(job, keyframe)
    questions = [_prompt(question, job.instruction) for question in keyframe.questions]
    try:
        answers = pipeline.answer(sweep, questions)
    except (ImageDecodeError, InferenceError) as err:
        raise InferenceError(describe_failure(keyframe, err)) from err
    pictures = digest_sweep(sweep)
    return [
        _to_record(question, answer, len(answers), job) | {'pictures': pictures}
        for question, answer in zip(keyframe.questions, answers, strict=True)
    ]


def _to_record(
    question: SweepQuestion, answer: DrivingAnswer, num_questions: int, job: AnswerJob
) -> dict[str, Any]:
    """Return the record of an answer; prefill and generation are its share of the sweep's."""
    times = answer.times
    return {
        'id': question.id,
        'question': question.question,
        'answer': answer.answer,
        'cut': answer.cut.value,
        'tokens_kept': sum(answer.tokens_kept.values()),
        'tokens_total': sum(answer.tokens_total.values()),
        'prefill_ms': times.prefill_ms / num_questions,
        'generate_ms': times.generate_ms / num_questions,
        'encode_ms': times.encode_ms,
        'select_ms': times.select_ms,
        'workers': job.workers,
        'num_frames': max(map(len, answer.clip_stamps_ns.values())),
    }


def unanswered(keyframes: Sequence[Keyframe], answers: RecordFile) -> list[Keyframe]:
    """Return the keyframes with questions that `answers` lacks, each with only these."""
    left = [
        Keyframe(keyframe.name, tuple(q for q in keyframe.questions if q.id not in answers.done))
        for keyframe in keyframes
    ]
    return [keyframe for keyframe in left if keyframe.questions]


def answer_all(
    job: AnswerJob, keyframes: Sequence[Keyframe], answers: RecordFile
) -> Iterator[int]:
    """Answer the keyframes in this process, in order; yield the number of answers of each."""
    pipeline = DrivingPipeline.from_config(job.config)
    try:
        check_prompts(pipeline, keyframes, job.instruction)
        for keyframe in keyframes:
            answers.append(answer_keyframe(pipeline, keyframe, job))
            yield len(keyframe.questions)
    finally:
        pipeline.close()
