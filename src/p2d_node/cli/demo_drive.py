"""What the demo plays and asks: a drawn drive, or keyframes of DriveLM and their questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
import statistics

from p2d_node.bags.image_files import camera_and_stamp_of, read_image, resolve_image, stamp_ns_of
from p2d_node.bags.records import BagImage
from p2d_node.cli.synthetic import draw_images
from p2d_node.config import DEFAULT_QUESTIONS
from p2d_node.errors import ConfigError
from p2d_node.evaluation.answering import check_images, group_keyframes, Keyframe
from p2d_node.evaluation.drivelm_questions import read_questions
from p2d_node.records import NUSCENES_CAMERAS
from p2d_node.units import NS_PER_MS

SCENARIO = 'lead-brakes'
NUM_SWEEPS = 10
PERIOD_MS = 1000.0
"""Ten seconds of driving; the vehicle ahead brakes after six."""

NUM_QUESTIONS = 3
MAX_QUESTION_LENGTH = 100
SIDES = ('back', 'left', 'right')


@dataclass(frozen=True, slots=True)
class DemoDrive:
    """Sweeps, the questions about them, and the answers of people.

    Attributes:
        title: One line for the user.
        images: By capture stamp.
        questions: Asked about every sweep.
        references: (stamp of the front camera, nanoseconds; question) to reference answer.
        is_drawn: Whether the images are drawn.
    """

    title: str
    images: Sequence[BagImage]
    questions: tuple[str, ...]
    references: Mapping[tuple[int, str], str] = field(default_factory=dict)
    is_drawn: bool = False

    @property
    def period_ms(self) -> float:
        """Usual time from one sweep to the next, milliseconds."""
        stamps = sorted(i.stamp_ns for i in self.images if i.camera == NUSCENES_CAMERAS[0])
        periods = [after - before for before, after in pairwise(stamps)]
        return statistics.median(periods) / NS_PER_MS if periods else PERIOD_MS


def drawn_drive(seed: int) -> DemoDrive:
    """Draw the drive of the demo."""
    images = list(draw_images(SCENARIO, NUM_SWEEPS, period_ms=PERIOD_MS, seed=seed))
    return DemoDrive(f'drawn, scenario {SCENARIO}', images, DEFAULT_QUESTIONS, is_drawn=True)


def drivelm_drive(data: Path, image_root: Path) -> DemoDrive:
    """Read the first scene of a DriveLM file, and the short questions that most keyframes have.

    Raises:
        ConfigError: The file or an image is missing, or not in this format.
    """
    keyframes = group_keyframes(read_questions(data))
    scene = _scene_of(keyframes[0])
    keyframes = [keyframe for keyframe in keyframes if _scene_of(keyframe) == scene][:NUM_SWEEPS]
    check_images(keyframes, image_root, NUSCENES_CAMERAS)
    questions = _common_questions(keyframes)
    if not questions:
        raise ConfigError(
            f'data: {data} has no question of up to {MAX_QUESTION_LENGTH} characters that is not '
            'about a marked object (<c...>); name another file'
        )
    paths = {
        keyframe.name: [
            resolve_image(keyframe.questions[0].images[camera], image_root)
            for camera in NUSCENES_CAMERAS
        ]
        for keyframe in keyframes
    }
    return DemoDrive(
        f'{len(keyframes)} keyframes of {data} (nuScenes: CC BY-NC-SA 4.0, Motional)',
        [_read(path, image_root) for path in sorted(chain(*paths.values()), key=stamp_ns_of)],
        questions,
        {
            (stamp_ns_of(paths[keyframe.name][0]), question.question): question.reference
            for keyframe in keyframes
            for question in keyframe.questions
            if question.question in questions and question.reference is not None
        },
    )


def _scene_of(keyframe: Keyframe) -> str:
    return keyframe.name.rpartition('_')[0]


def _common_questions(keyframes: Sequence[Keyframe]) -> tuple[str, ...]:
    counts = Counter(
        text
        for keyframe in keyframes
        for text in dict.fromkeys(question.question for question in keyframe.questions)
        if len(text) <= MAX_QUESTION_LENGTH and '<' not in text
    )
    ranked = sorted(counts, key=lambda text: (-counts[text], len(text)))[:NUM_QUESTIONS]
    # The story shows the front view above the answer to the last question.
    return tuple(sorted(ranked, key=lambda text: not any(side in text for side in SIDES)))


def _read(path: Path, root: Path) -> BagImage:
    camera, stamp_ns = camera_and_stamp_of(path)
    return read_image(path, root=root, camera=camera, stamp_ns=stamp_ns)
