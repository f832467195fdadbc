"""A judge of free answers: a command of the user's, or a chat model behind an OpenAI-like URL.

There is none by default; what a judge would score is then absent from the report, never zero.
"""

from __future__ import annotations

from collections.abc import Sequence
import json
import re
import shlex
import subprocess
from typing import Any
import urllib.error
import urllib.request

from p2d_node.errors import BackendUnavailableError, ConfigError

TIMEOUT_S = 120.0
MAX_SCORE = 100.0

INSTRUCTION = (
    'You grade answers about driving scenes. Compare the answer with the reference: same objects, '
    'same states, same decision and reason? Reply with one number from 0 (contradicts it) to 100 '
    '(says the same), and nothing else.'
)

Triple = tuple[str, str, str]


class CommandJudge:
    """Runs a command once: JSON lines in, one score per line out."""

    def __init__(self, command: str) -> None:
        """Take a command as typed into a shell; it gets question, answer and reference."""
        self._words = shlex.split(command)
        if not self._words:
            raise ConfigError('--judge-command: got an empty text, allowed: a command')

    def __call__(self, triples: Sequence[Triple]) -> list[float]:
        """Return the score of each answer, 0 to 100.

        Raises:
            BackendUnavailableError: The command fails or says something else than scores.
        """
        lines = '\n'.join(json.dumps(_as_item(triple)) for triple in triples)
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
        scores = [_to_score(line) for line in result.stdout.split('\n') if line.strip()]
        if len(scores) != len(triples):
            raise BackendUnavailableError(
                f'--judge-command: got {len(scores)} lines for {len(triples)} answers, needed: '
                'one number per line'
            )
        return scores


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
        return [self._ask(triple) for triple in triples]

    def _ask(self, triple: Triple) -> float:
        body = {
            'model': self._model,
            'temperature': 0,
            'messages': [
                {'role': 'system', 'content': INSTRUCTION},
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
            return _to_score(reply['choices'][0]['message']['content'])
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
