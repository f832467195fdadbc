"""The chat template of a checkpoint: what it writes around pictures and question.

A template is a program that comes with the checkpoint. It runs at start, in a process with limits;
afterwards prompts are put together without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from jinja2 import TemplateError
from p2d_node.checkpoints.template_process import render_limited
from p2d_node.errors import ConfigError
from p2d_node.limited_process import LimitError
from p2d_node.prompt_layout import PROMPT_KEY, PromptLayout

Result = TypeVar('Result')

PROBES = ('Is the road wet?', '7 questions,\nand a "quote".')
"""Two questions; what a template writes around them must be the same."""

Frame = tuple[str, str] | str
"""The text before and after the question, or why the template fails."""

LONG_QUESTION = 'Is the café at <c1,CAM_FRONT,714.3,503.6>, 車道, "too near"?\n' * 64
"""As long as a question may be; a tokenizer may take minutes for it."""

USUAL_PICTURES = 12
MAX_FRAME_CHARACTERS = 32_768
"""Around a question."""

MAX_FRAME_TOKENS = 4096
"""The same. Every sweep pays for them, with the square of their number; published models have some
hundreds."""

MARKS = (
    (' mark "one" ', '\tmark two;\n'),
    ('\n1st <mark> ', ' 2nd: {mark}\n', ' - third mark?\t'),
)
"""Texts around one picture and around two; a template must write them as they are."""

ANSWER_MARK = ' the answer'

Content = list[dict[str, str]]
Message = dict[str, str | Content]

NEXT_STEP = (
    'copy the chat template for pictures (chat_template.jinja or chat_template.json) from the '
    'checkpoint'
)


@dataclass(frozen=True, slots=True)
class _Markup:
    """What a template writes around the texts of a layout.

    Attributes:
        before: The system turn and the start of the user's turn.
        picture: One picture.
        turn: From the end of the user's turn to the start of the assistant's.
    """

    before: str
    picture: str
    turn: str


class ChatTemplate:
    """Puts prompts together. Use it from one thread at a time.

    Attributes:
        layout: The texts around pictures and question; None for a text after all pictures.
    """

    def __init__(self, tokenizer: Any, layout: PromptLayout | None = None) -> None:
        """Render the template, and try out the tokenizer.

        Without a layout it is rendered for all usual numbers of pictures, with one for one picture
        and for two.

        Raises:
            ConfigError: The template or the tokenizer takes too long or too much memory, or the
                template does not fit the layout.
        """
        self.layout = layout
        self._tokenizer = tokenizer
        self._frames: dict[int, Frame] = {}
        self._markup = _Markup('', '', '')
        if layout is None:
            self._render(range(1, USUAL_PICTURES + 1))
        else:
            self._markup = self._render_markup(layout)

    def render(self, num_pictures: int, text: str) -> str:
        """Return the chat with pictures and one question.

        Raises:
            ConfigError: The template fails, takes too long or too much memory, or depends on
                something besides the messages.
        """
        if num_pictures not in self._frames:
            # Fewer pictures, too: the first clip is the longest, and it is tried at start.
            self._render([n for n in range(1, num_pictures + 1) if n not in self._frames])
        frame = self._frames[num_pictures]
        if isinstance(frame, str):
            raise ConfigError(f'model: its chat template fails: {frame}; {NEXT_STEP}')
        before, after = frame
        return f'{before}{text}{after}'

    def render_layout(
        self, layout: PromptLayout, cameras: Sequence[str], question: str, context: str
    ) -> str:
        """Return the chat with the texts of the layout; the template is not rendered again.

        Args:
            layout: The layout that this template was rendered for.
            cameras: The camera of each picture, in prompt order.
            question: The question.
            context: What stands before the question; may be empty.

        Raises:
            ConfigError: The model has no name for a camera.
        """
        return _join(self._markup, layout, cameras, layout.question_text(question, context))

    def _render(self, counts: Sequence[int]) -> None:
        frames = _limited(lambda: _render_frames(self._tokenizer, counts))
        self._frames.update(zip(counts, frames, strict=True))

    def _render_markup(self, layout: PromptLayout) -> _Markup:
        markup: list[str] | str = _limited(lambda: _find_markup(self._tokenizer, layout))
        if isinstance(markup, str):
            raise ConfigError(
                f'model: its chat template does not fit {PROMPT_KEY} in config.json: {markup}; '
                f'{NEXT_STEP}'
            )
        return _Markup(*markup)


def _limited(render: Callable[[], Result]) -> Result:
    try:
        return render_limited(render)
    except LimitError as err:
        raise ConfigError(
            f'model: its tokenizer or chat template fails: {err}; copy their files from the '
            'checkpoint'
        ) from err


def _join(markup: _Markup, layout: PromptLayout, cameras: Sequence[str], question: str) -> str:
    pictures = ''.join(text + markup.picture for text in layout.picture_texts(cameras))
    return f'{markup.before}{pictures}{question}{markup.turn}{layout.answer}'


def _find_markup(tokenizer: Any, layout: PromptLayout) -> list[str] | str:
    """Return the parts of `_Markup`, or why there are none; runs in a process of its own."""
    tokenizer.encode(LONG_QUESTION, add_special_tokens=False)
    try:
        before, picture, turn = _render_marks(tokenizer, layout, MARKS[0])
        if _render_marks(tokenizer, layout, MARKS[1]) != [before, picture, picture, turn]:
            return 'it writes different things around one picture and around two'
    except TemplateError as err:
        return str(err)
    if layout.system and before.count(layout.system) != 1:
        return f'it writes the system text {before.count(layout.system)} times'
    markup = _Markup(before, picture, turn)
    longest = _join(markup, layout, layout.longest_prompt, layout.question_text(PROBES[0]))
    if len(longest) > MAX_FRAME_CHARACTERS:
        return f'they write {len(longest)} characters, allowed: up to {MAX_FRAME_CHARACTERS}'
    return _too_many_tokens(tokenizer, longest) or [before, picture, turn]


def _render_marks(tokenizer: Any, layout: PromptLayout, marks: Sequence[str]) -> list[str]:
    """Return what the template writes before, between and after `marks`, with pictures between."""
    content: Content = [{'type': 'text', 'text': marks[0]}]
    for mark in marks[1:]:
        content += [{'type': 'image'}, {'type': 'text', 'text': mark}]
    messages: list[Message] = [{'role': 'user', 'content': content}]
    if layout.system:
        system: Content = [{'type': 'text', 'text': layout.system}]
        messages.insert(0, {'role': 'system', 'content': system})
    if layout.answer:  # as if the assistant's turn had begun with it
        answer: Content = [{'type': 'text', 'text': ANSWER_MARK}]
        messages.append({'role': 'assistant', 'content': answer})
    text = _apply(tokenizer, messages, add_generation_prompt=not layout.answer)
    parts: list[str] = []
    for mark in [*marks, ANSWER_MARK] if layout.answer else marks:
        before, _, rest = text.partition(mark)
        if text.count(mark) != 1:
            raise TemplateError('it does not write texts and pictures as they are, in their order')
        parts.append(before)
        text = rest
    return parts if layout.answer else [*parts, text]


def _render_frames(tokenizer: Any, counts: Sequence[int]) -> list[Frame]:
    tokenizer.encode(LONG_QUESTION, add_special_tokens=False)
    return [_render_frame(tokenizer, count) for count in counts]


def _render_frame(tokenizer: Any, num_pictures: int) -> Frame:
    """Return the text before and after the question; runs in a process of its own."""
    try:
        first, second = (_render_once(tokenizer, num_pictures, probe) for probe in PROBES)
    except TemplateError as err:
        return str(err)
    if first != second:
        return 'it writes different things around different questions'
    return _too_many_tokens(tokenizer, PROBES[0].join(first)) or first


def _too_many_tokens(tokenizer: Any, text: str) -> str:
    """Return why a model is not given a text; empty if it is. The tokenizer may be slow for it."""
    num_tokens = len(tokenizer.encode(text, add_special_tokens=False))
    if num_tokens <= MAX_FRAME_TOKENS:
        return ''
    return f'it writes {num_tokens} tokens, allowed: up to {MAX_FRAME_TOKENS}'


def _render_once(tokenizer: Any, num_pictures: int, question: str) -> tuple[str, str]:
    content: Content = [{'type': 'image'}] * num_pictures + [{'type': 'text', 'text': question}]
    message: Message = {'role': 'user', 'content': content}
    text = _apply(tokenizer, [message], add_generation_prompt=True)
    if text.count(question) != 1:
        raise TemplateError(f'it writes the question {text.count(question)} times')
    before, _, after = text.partition(question)
    if len(before) + len(after) > MAX_FRAME_CHARACTERS:
        raise TemplateError(f'it writes {len(before) + len(after)} characters around a question')
    return before, after


def _apply(tokenizer: Any, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    try:
        text = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=add_generation_prompt, tokenize=False
        )
    except (TemplateError, MemoryError):
        raise
    except Exception as err:  # a template is a program: it may raise anything
        raise TemplateError(f'{type(err).__name__}: {err}') from err
    return str(text)
