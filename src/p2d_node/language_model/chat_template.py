"""The chat template of a checkpoint: the text before and after the question.

A template is a program that comes with the checkpoint. It runs at start, in a process with limits;
afterwards prompts are put together without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from p2d_node.checkpoints.template_process import render_limited
from p2d_node.errors import ConfigError
from p2d_node.limited_process import LimitError

PROBES = ('Is the road wet?', '7 questions,\nand a "quote".')
"""Two questions; what a template writes around them must be the same."""

Frame = tuple[str, str] | str
"""The text before and after the question, or why the template fails."""

LONG_QUESTION = 'What is at <c1,CAM_FRONT,714.3,503.6>, and is it "too near"?\n' * 64
"""As long as a question may be; a tokenizer may take minutes for it."""

USUAL_PICTURES = 12
MAX_FRAME_CHARACTERS = 32_768
"""Around a question. Each character may be a token that every sweep pays for."""

NEXT_STEP = (
    'copy the chat template for pictures (chat_template.jinja or chat_template.json) from the '
    'checkpoint'
)


class ChatTemplate:
    """Puts prompts together. Use it from one thread at a time."""

    def __init__(self, tokenizer: Any) -> None:
        """Render the template for all usual numbers of pictures, and try out the tokenizer.

        Raises:
            ConfigError: The template or the tokenizer takes too long or too much memory.
        """
        self._tokenizer = tokenizer
        self._frames: dict[int, Frame] = {}
        self._render(range(1, USUAL_PICTURES + 1))

    def render(self, num_pictures: int, text: str) -> str:
        """Return the chat with pictures and one question.

        Raises:
            ConfigError: The template fails, takes too long or too much memory, or depends on
                something besides the messages.
        """
        if num_pictures not in self._frames:
            self._render([num_pictures])
        frame = self._frames[num_pictures]
        if isinstance(frame, str):
            raise ConfigError(f'model: its chat template fails: {frame}; {NEXT_STEP}')
        before, after = frame
        return f'{before}{text}{after}'

    def _render(self, counts: Sequence[int]) -> None:
        try:
            frames = render_limited(lambda: _render_frames(self._tokenizer, counts))
        except LimitError as err:
            raise ConfigError(
                f'model: its tokenizer or chat template fails: {err}; copy their files from the '
                'checkpoint'
            ) from err
        self._frames.update(zip(counts, frames, strict=True))


def _render_frames(tokenizer: Any, counts: Sequence[int]) -> list[Frame]:
    tokenizer.encode(LONG_QUESTION, add_special_tokens=False)
    frames = [_render_frame(tokenizer, count) for count in counts]
    for frame in frames:
        if not isinstance(frame, str):  # a template may write what the tokenizer is slow for
            tokenizer.encode(PROBES[0].join(frame), add_special_tokens=False)
    return frames


def _render_frame(tokenizer: Any, num_pictures: int) -> Frame:
    """Return the text before and after the question; runs in a process of its own."""
    try:
        first, second = (_render_once(tokenizer, num_pictures, probe) for probe in PROBES)
    except TemplateError as err:
        return str(err)
    if first != second:
        return 'it writes different things around different questions'
    return first


def _render_once(tokenizer: Any, num_pictures: int, question: str) -> tuple[str, str]:
    content = [{'type': 'image'}] * num_pictures + [{'type': 'text', 'text': question}]
    try:
        text = tokenizer.apply_chat_template(
            [{'role': 'user', 'content': content}],
            add_generation_prompt=True,
            tokenize=False,
        )
    except (TemplateError, MemoryError):
        raise
    except Exception as err:  # a template is a program: it may raise anything
        raise TemplateError(f'{type(err).__name__}: {err}') from err
    if text.count(question) != 1:
        raise TemplateError(f'it writes the question {text.count(question)} times')
    before, _, after = text.partition(question)
    if len(before) + len(after) > MAX_FRAME_CHARACTERS:
        raise TemplateError(f'it writes {len(before) + len(after)} characters around a question')
    return before, after
