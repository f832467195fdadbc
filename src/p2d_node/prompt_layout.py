"""How a model's prompt is laid out around pictures of several cameras and frames.

Most models read the sentence of DriveLM that names the views, then the question. Some were trained
on texts of their own: a name before the pictures of a camera, a number before each picture, marks
around the question. A checkpoint folder describes such a layout in its config.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from p2d_node.errors import ConfigError, quote

PROMPT_KEY = 'p2d_prompt'
"""In config.json: an object with the fields of `PromptLayout`; absent for DriveLM's sentence."""

MAX_NAMED_CAMERAS = 64
MAX_NAME_CHARACTERS = 100
MAX_LABEL_CHARACTERS = 200
MAX_TEXT_CHARACTERS = 4000
MAX_FRAMES = 16
MIN_INTERVAL_MS, MAX_INTERVAL_MS = 5, 10_000

NAME, FRAME, QUESTION, CONTEXT = '{name}', '{frame}', '{question}', '{context}'
"""Placeholders of the templates."""

NEXT_STEP = 'edit config.json, or copy it again'


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLayout:
    """The texts around pictures and question; `from_config` checks them.

    A camera's text stands before its first picture, a frame's text before every picture. Frames
    of a camera are numbered from 0, oldest first.

    Attributes:
        camera_names: Camera of the vehicle to the model's name for it. Its order is that of the
            pictures in the prompt. Cameras of different vehicles may have the same name.
        system: Text of the system turn; empty for no such turn.
        camera: Template with `{name}`; may be empty.
        frame: Template with `{frame}`; may be empty.
        context: Template with `{context}`; it stands before `question` if there is a context.
        question: Template with `{question}`.
        answer: What the assistant's turn opens with; may be empty.
        frames_per_camera: Number of frames of a camera that the model was trained on.
        frame_interval_ms: Time between them, milliseconds.
    """

    camera_names: Mapping[str, str]
    system: str = ''
    camera: str = ''
    frame: str = ''
    context: str = '{context} '
    question: str = '{question}'
    answer: str = ''
    frames_per_camera: int = 1
    frame_interval_ms: int = 100

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> PromptLayout | None:
        """Read the layout from a checkpoint's config.json; None if it has none.

        Raises:
            ConfigError: A field is unknown, missing, or has a value that is not allowed.
        """
        content = config.get(PROMPT_KEY)
        if content is None:
            return None
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(content) - known) if isinstance(content, dict) else [content]
        if unknown:
            raise ConfigError(
                f'model: config.json: {PROMPT_KEY}: got {quote(unknown[0])}, allowed: an object '
                f'with {", ".join(sorted(known))}; {NEXT_STEP}'
            )
        pairs = _read_pairs(content.get('camera_names'))
        for name, value in content.items():
            check = CHECKS.get(name)
            if check is not None:
                _check(name, value, *check)
        return cls(**{**content, 'camera_names': dict(pairs)})

    def to_json(self) -> dict[str, Any]:
        """Return the value of `PROMPT_KEY`; names as pairs, whose order every program keeps."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**content, 'camera_names': [list(pair) for pair in self.camera_names.items()]}

    def check_cameras(self, cameras: Sequence[str]) -> None:
        """Check the cameras of a vehicle.

        Args:
            cameras: Each once.

        Raises:
            ConfigError: The model has no name for a camera, or one name for two of them.
        """
        used: dict[str, str] = {}
        for camera in cameras:
            name = self.name_of(camera)
            if name in used:
                raise ConfigError(
                    f'cameras: got {used[name]} and {camera}, which the model both knows as '
                    f'{name!r}, allowed: one of them; change camera_names'
                )
            used[name] = camera

    def in_order(self, cameras: Sequence[str]) -> tuple[str, ...]:
        """Return cameras in the order of the prompt; the frames of a camera stay together.

        Raises:
            ConfigError: The model has no name for a camera.
        """
        places = {camera: place for place, camera in enumerate(self.camera_names)}
        for camera in cameras:
            self.name_of(camera)
        return tuple(sorted(cameras, key=places.__getitem__))

    def name_of(self, camera: str) -> str:
        """Return the model's name of a camera.

        Raises:
            ConfigError: It has none.
        """
        if camera not in self.camera_names:
            raise ConfigError(
                f'cameras: got {camera}, allowed: {", ".join(self.camera_names)}, which the model '
                f'was trained on; change camera_names, or add it to {PROMPT_KEY} in config.json'
            )
        return self.camera_names[camera]

    def picture_texts(self, cameras: Sequence[str]) -> list[str]:
        """Return the text before each picture.

        Args:
            cameras: The camera of each picture, in prompt order; the frames of a camera stand one
                after the other, oldest first.

        Raises:
            ConfigError: The model has no name for a camera.
        """
        texts: list[str] = []
        frame, before = 0, None
        for camera in cameras:
            frame = frame + 1 if camera == before else 0
            label = self.frame.replace(FRAME, str(frame))
            name = self.name_of(camera)
            texts.append(label if frame else self.camera.replace(NAME, name) + label)
            before = camera
        return texts

    def question_text(self, question: str, context: str = '') -> str:
        """Return the text after the last picture."""
        before = self.context.replace(CONTEXT, context) if context else ''
        return before + self.question.replace(QUESTION, question)

    @property
    def longest_prompt(self) -> tuple[str, ...]:
        """The cameras of pictures that need the most text: every name, with all its frames."""
        cameras = {name: camera for camera, name in self.camera_names.items()}.values()
        return tuple(camera for camera in cameras for _ in range(self.frames_per_camera))


def _check(name: str, value: Any, is_allowed: Callable[[Any], bool], allowed: str) -> None:
    if not is_allowed(value):
        raise ConfigError(
            f'model: config.json: {PROMPT_KEY}.{name}: got {quote(value)}, allowed: {allowed}; '
            f'{NEXT_STEP}'
        )


def _is_text(value: Any, max_characters: int) -> bool:
    if not isinstance(value, str) or len(value) > max_characters:
        return False
    return not any('\ud800' <= character <= '\udfff' for character in value)


def _read_pairs(value: Any) -> list[tuple[str, str]]:
    """Return camera and name of each entry of an object, or of a list of pairs, in its order."""
    entries = list(value.items()) if isinstance(value, dict) else value
    _check('camera_names', value, lambda _: _are_pairs(entries), NAME_TABLE)
    return [(camera, name) for camera, name in entries]


def _are_pairs(entries: Any) -> bool:
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_NAMED_CAMERAS:
        return False
    if not all(isinstance(entry, list | tuple) and len(entry) == 2 for entry in entries):
        return False
    texts = [text for entry in entries for text in entry]
    are_names = all(text and _is_text(text, MAX_NAME_CHARACTERS) for text in texts)
    return are_names and len(dict(entries)) == len(entries)


def _is_template(value: Any, placeholder: str) -> bool:
    return _is_text(value, MAX_LABEL_CHARACTERS) and value.count(placeholder) == 1


def _is_count(value: Any, largest: int) -> bool:
    return type(value) is int and 1 <= value <= largest


NAME_TABLE = (
    f"1 to {MAX_NAMED_CAMERAS} pairs of a camera of the vehicle and the model's name for it, or "
    f'an object from one to the other, each a text of 1 to {MAX_NAME_CHARACTERS} characters'
)
_TEXT = f'a text of up to {MAX_TEXT_CHARACTERS} characters'
_LABEL = f'a text of up to {MAX_LABEL_CHARACTERS} characters'

CHECKS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    'system': (lambda value: _is_text(value, MAX_TEXT_CHARACTERS), _TEXT),
    'camera': (
        lambda value: value == '' or _is_template(value, NAME),
        f'{_LABEL} with {NAME} in it once, or an empty one',
    ),
    'frame': (
        lambda value: value == '' or _is_template(value, FRAME),
        f'{_LABEL} with {FRAME} in it once, or an empty one',
    ),
    'context': (
        lambda value: _is_template(value, CONTEXT),
        f'{_LABEL} with {CONTEXT} in it once',
    ),
    'question': (
        lambda value: _is_template(value, QUESTION),
        f'{_LABEL} with {QUESTION} in it once',
    ),
    'answer': (lambda value: _is_text(value, MAX_LABEL_CHARACTERS), _LABEL),
    'frames_per_camera': (lambda value: _is_count(value, MAX_FRAMES), f'1 to {MAX_FRAMES}'),
    'frame_interval_ms': (
        lambda value: _is_count(value, MAX_INTERVAL_MS) and value >= MIN_INTERVAL_MS,
        f'{MIN_INTERVAL_MS} to {MAX_INTERVAL_MS}, whole milliseconds',
    ),
}
"""Field to the check of its value, and what is allowed."""
