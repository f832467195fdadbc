"""A judge that is a chat model behind an OpenAI-compatible URL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed, ThreadPoolExecutor
import json
import re
from typing import Any
from urllib.parse import urlsplit

from p2d_node.errors import BackendUnavailableError, ConfigError
from p2d_node.evaluation.judge import (
    as_item,
    Judgement,
    JudgeTask,
    Triple,
    UnreadableReplyError,
)

TIMEOUT_S = 120.0
MAX_RETRIES = 5
"""Retries of a request if the service is busy, each after a longer pause."""

NO_KEY = 'none'
"""The client requires a key, even if the service does not."""

WHITESPACE = re.compile(r'\s')
USER = re.compile(r'(//)[^/]*@')
"""Name and password before a host; they are removed from messages."""


class ChatJudge:
    """Asks a chat model for each answer, a few at a time."""

    def __init__(self, url: str, model: str, api_key: str = '', num_parallel: int = 1) -> None:
        """Connect to an OpenAI-compatible service by its base URL, which ends in `/v1`.

        Raises:
            ConfigError: `url` is not a URL, or `num_parallel` is below 1.
            BackendUnavailableError: The client is not installed.
        """
        if not _is_web_address(url):
            raise ConfigError(
                f'judge_url: got {url!r}, allowed: http://HOST/... or https://HOST/...'
            )
        if num_parallel < 1:
            raise ConfigError(f'judge_parallel: got {num_parallel}, allowed: 1 or more')
        try:
            import openai
        except ImportError as err:
            raise BackendUnavailableError(
                f'judge_url: {err}; pip install -r requirements/evaluation.txt'
            ) from err
        self._shown_url = USER.sub(r'\1', url)
        self._model, self._num_parallel = model, num_parallel
        self._error: type[Exception] = openai.OpenAIError
        self._client = openai.OpenAI(
            base_url=url, api_key=api_key or NO_KEY, timeout=TIMEOUT_S, max_retries=MAX_RETRIES
        )
        self.identity: Mapping[str, Any] = {'url': url, 'model': model}

    def judge(self, task: JudgeTask, triples: Sequence[Triple]) -> Iterator[tuple[int, Judgement]]:
        """Yield judgements as they come; None where the model's reply cannot be read.

        Raises:
            BackendUnavailableError: The service refuses, or does not answer.
        """
        with ThreadPoolExecutor(self._num_parallel) as pool:
            asked = {pool.submit(self._ask, task, t): index for index, t in enumerate(triples)}
            try:
                for reply in as_completed(asked):
                    yield asked[reply], reply.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, task: JudgeTask, triple: Triple) -> Judgement:
        try:
            reply = self._client.chat.completions.create(
                model=self._model,
                temperature=0,
                messages=[
                    {'role': 'system', 'content': task.instruction},
                    {'role': 'user', 'content': json.dumps(as_item(triple))},
                ],
            )
        except self._error as err:
            raise BackendUnavailableError(f'judge_url: {self._shown_url}: {err}') from err
        try:
            return task.read(reply.choices[0].message.content or '')
        except (UnreadableReplyError, LookupError, TypeError, AttributeError):
            return None


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname)
        _ = parts.port  # raises ValueError if it is not a port
    except ValueError:
        return False
    return has_host and parts.scheme in ('http', 'https') and WHITESPACE.search(url) is None
