"""A judge of free answers: a command of the user's, or a chat model behind an OpenAI-like URL.

There is none by default; what a judge would score is then absent from the report, never zero.
A judge gives one score per answer (DriveLM), or one rating per criterion (DriveLMM-o1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import json
import re
import shlex
import subprocess
from typing import Any, Protocol, TypeVar
import urllib.error
import urllib.request

from p2d_node.errors import BackendUnavailableError, ConfigError

TIMEOUT_S = 120.0
MAX_SCORE = 100.0
MIN_RATING, MAX_RATING = 1.0, 10.0

STATED_MEAN = 'Overall Score'
"""Where a judge that rates criteria may state their mean, by its own arithmetic."""

INSTRUCTION = (
    'You grade answers about driving scenes. Compare the answer with the reference: same objects, '
    'same states, same decision and reason? Reply with one number from 0 (contradicts it) to 100 '
    '(says the same), and nothing else.'
)

RATING_INSTRUCTION = (
    'You rate the reasoning in answers about driving scenes against a reference. Rate each '
    'criterion from 1 (not at all) to 10 (fully). Reply with one JSON object that maps the name '
    'of each criterion to its number, and nothing else. The criteria: '
)

Triple = tuple[str, str, str]
"""Question, answer and reference."""

T = TypeVar('T')


class Judge(Protocol):
    """Scores free answers."""

    def __call__(self, triples: Sequence[Triple]) -> list[float]:
        """Return the score of each answer, 0 to 100."""
        ...

    def rate(
        self, triples: Sequence[Triple], criteria: Mapping[str, str]
    ) -> list[dict[str, float]]:
        """Return for each answer a rating, 1 to 10, per criterion.

        Args:
            triples: The answers.
            criteria: Name of each criterion, and what it asks.
        """
        ...


class CommandJudge:
    """Runs a command once: JSON lines in, one line per answer out."""

    def __init__(self, command: str) -> None:
        """Take a command as typed into a shell; it gets question, answer and reference."""
        self._words = shlex.split(command)
        if not self._words:
            raise ConfigError('--judge-command: got an empty text, allowed: a command')

    def __call__(self, triples: Sequence[Triple]) -> list[float]:
        """Return the score of each answer, 0 to 100: the command writes one number per line.

        Raises:
            BackendUnavailableError: The command fails or says something else than scores.
        """
        items = [_as_item(triple) for triple in triples]
        return self._run(items, _to_score, 'one number per line')

    def rate(
        self, triples: Sequence[Triple], criteria: Mapping[str, str]
    ) -> list[dict[str, float]]:
        """Return ratings; the command gets `criteria` too and writes one object per line.

        Raises:
            BackendUnavailableError: The command fails or says something else than ratings.
        """
        items = [{**_as_item(triple), 'criteria': criteria} for triple in triples]
        needed = 'one JSON object per line'
        return self._run(items, lambda line: _to_ratings(line, criteria), needed)

    def _run(
        self, items: Sequence[Mapping[str, Any]], read: Callable[[str], T], needed: str
    ) -> list[T]:
        """Return what the command writes, a line per item, as `read` understands it."""
        lines = '\n'.join(json.dumps(item) for item in items)
        try:
            result = subprocess.run(
                self._words, input=lines, capture_output=True, text=True, check=True
            )
        except OSError as err:
            raise BackendUnavailableError(f'--judge-command: {self._words[0]}: {err}') from err
        except subprocess.CalledProcessError as err:
            said = (err.stderr.strip().splitlines() or ['nothing'])[-1]
            raise BackendUnavailableError(
                f'--judge-command: exit status {err.returncode}, it said: {said}'
            ) from err
        replies = [read(line) for line in result.stdout.split('\n') if line.strip()]
        if len(replies) != len(items):
            raise BackendUnavailableError(
                f'--judge-command: got {len(replies)} lines for {len(items)} answers, needed: '
                f'{needed}'
            )
        return replies


class ChatJudge:
    """Asks a chat model for each answer."""

    def __init__(self, url: str, model: str, api_key: str = '') -> None:
        """Take the base URL of an OpenAI-compatible service, up to `/v1`."""
        if not url.startswith(('http://', 'https://')):
            raise ConfigError(f'--judge-url: got {url!r}, allowed: http://... or https://...')
        self._url, self._model, self._api_key = url.rstrip('/'), model, api_key

    def __call__(self, triples: Sequence[Triple]) -> list[float]:
        """Return the score of each answer, 0 to 100.

        Raises:
            BackendUnavailableError: The service does not answer, or not with a score.
        """
        return [_to_score(self._ask(INSTRUCTION, triple)) for triple in triples]

    def rate(
        self, triples: Sequence[Triple], criteria: Mapping[str, str]
    ) -> list[dict[str, float]]:
        """Return for each answer a rating, 1 to 10, per criterion.

        Raises:
            BackendUnavailableError: The service does not answer, or not with ratings.
        """
        asked = '; '.join(f'{name}: {meaning}' for name, meaning in criteria.items())
        instruction = f'{RATING_INSTRUCTION}{asked}.'
        return [_to_ratings(self._ask(instruction, triple), criteria) for triple in triples]

    def _ask(self, instruction: str, triple: Triple) -> str:
        body = {
            'model': self._model,
            'temperature': 0,
            'messages': [
                {'role': 'system', 'content': instruction},
                {'role': 'user', 'content': json.dumps(_as_item(triple))},
            ],
        }
        headers = {'Content-Type': 'application/json'}
        if self._api_key:
            headers['Authorization'] = f'Bearer {self._api_key}'
        request = urllib.request.Request(
            f'{self._url}/chat/completions', json.dumps(body).encode(), headers
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                reply: Any = json.load(response)
            return str(reply['choices'][0]['message']['content'])
        except (urllib.error.URLError, TimeoutError, ValueError, LookupError, TypeError) as err:
            raise BackendUnavailableError(f'--judge-url: {self._url}: {err}') from err


def _as_item(triple: Triple) -> dict[str, str]:
    return dict(zip(('question', 'answer', 'reference'), triple, strict=True))


def _to_score(text: str) -> float:
    number = re.search(r'-?\d+(\.\d+)?', text)
    score = float(number.group()) if number else -1.0
    if not 0.0 <= score <= MAX_SCORE:
        raise BackendUnavailableError(f'judge: got {text[:80]!r}, allowed: a number from 0 to 100')
    return score


def _to_ratings(text: str, criteria: Mapping[str, str]) -> dict[str, float]:
    """Read a JSON object, also one with words around it, as chat models like to reply."""
    try:
        reply = json.loads(text[text.find('{') : text.rfind('}') + 1])
    except ValueError as err:
        raise BackendUnavailableError(
            f'judge: got {text[:80]!r}, allowed: a JSON object with a number per criterion'
        ) from err
    names = [*criteria, *(name for name in (STATED_MEAN,) if name in reply)]
    return {name: _to_rating(name, reply.get(name)) for name in names}


def _to_rating(name: str, value: Any) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not MIN_RATING <= value <= MAX_RATING:
        raise BackendUnavailableError(
            f'judge: {name}: got {value!r}, allowed: a number from 1 to 10'
        )
    return float(value)
