"""Renders chat templates, which are programs that come with a checkpoint, within limits."""

from __future__ import annotations

from collections.abc import Callable
import random
from types import SimpleNamespace
from typing import NoReturn, TypeVar

from jinja2 import TemplateError
from p2d_node.limited_process import run_limited
from transformers.utils import chat_template_utils

Result = TypeVar('Result')

LIMIT_S = 3.0
MEMORY_BYTES = 256 << 20
MAX_RESULT_BYTES = 1 << 20


def render_limited(render: Callable[[], Result]) -> Result:
    """Call a function that renders templates, in a process of its own.

    In that process a template gets neither the date nor chance: the same messages always give the
    same text.

    Args:
        render: Returns JSON data.

    Raises:
        LimitError: It raised an error, or reached a limit.
    """

    def render_alone() -> Result:
        for name in ('choice', 'choices', 'random', 'randrange', 'sample', 'shuffle'):
            setattr(random, name, _refuse)  # `random` and `lipsum` of Jinja
        chat_template_utils.datetime = SimpleNamespace(now=_refuse)  # `strftime_now`
        return render()

    result: Result = run_limited(
        render_alone,
        limit_s=LIMIT_S,
        memory_bytes=MEMORY_BYTES,
        result_bytes=MAX_RESULT_BYTES,
    )
    return result


def _refuse(*_args: object, **_kwargs: object) -> NoReturn:
    raise TemplateError('its result depends on the date or on chance')
