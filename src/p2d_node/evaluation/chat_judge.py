"""A judge that is a chat model behind an OpenAI-compatible URL."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed, ThreadPoolExecutor
from contextlib import contextmanager
import json
import os
import re
from typing import Any
from urllib.parse import unquote, urlsplit

from p2d_node.errors import BackendUnavailableError, ConfigError, first_line, quote
from p2d_node.evaluation.judge import (
    as_item,
    Judgement,
    JudgeTask,
    Triple,
    UnreadableReplyError,
)
from p2d_node.evaluation.url_secrets import is_readable_on_the_way, mask_secrets

TIMEOUT_S = 120.0
MAX_RETRIES = 5
"""Retries of a request if the service is busy, each after a longer pause."""

NO_KEY = 'none'
"""The client requires a key, even if the service does not."""

WHITESPACE = re.compile(r'\s')

NOT_JSON = (ValueError, RecursionError)
"""What Python's JSON parser raises."""


class ChatJudge:
    """Asks a chat model for each answer, a few at a time.

    Attributes:
        url: The service, without user and password.
        exposes_secret: Whether a key or password is sent to it unencrypted over a network.
        identity: The service and the model.
    """

    def __init__(self, url: str, model: str, api_key: str = '', num_parallel: int = 1) -> None:
        """Connect to an OpenAI-compatible service.

        Args:
            url: Its base URL, which ends in `/v1`; it may have `user:password@`.
            model: Name of the chat model.
            api_key: Sent with every request; empty: the service needs none.
            num_parallel: Requests at a time.

        Raises:
            ConfigError: `url` is not a URL, or `num_parallel` is below 1.
            BackendUnavailableError: The client is not installed, or the environment names a proxy
                or certificates that cannot be used.
        """
        if not _is_web_address(url):
            raise ConfigError(
                f'judge_url: got {quote(mask_secrets(url))}, allowed: http://HOST/... or '
                'https://HOST/..., without ? and #; give the key in P2D_JUDGE_API_KEY'
            )
        if num_parallel < 1:
            raise ConfigError(f'judge_parallel: got {num_parallel}, allowed: 1 or more')
        try:
            import openai
            from p2d_node.evaluation.judge_connection import JudgeConnection
        except ImportError as err:
            raise BackendUnavailableError(
                f'judge_url: {err}; pip install -r requirements/evaluation.txt'
            ) from err
        self.url, login = _without_login(url)
        self.exposes_secret = bool(api_key or login) and is_readable_on_the_way(self.url)
        self._model, self._num_parallel = model, num_parallel
        self._secrets = _shown_secrets(api_key, login)
        self._error: type[Exception] = openai.OpenAIError
        try:
            connection = JudgeConnection(login)
        except Exception as err:  # for what the environment says, of many classes
            raise BackendUnavailableError(
                f'judge_url: {quote(first_line(err))}; check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY '
                'and SSL_CERT_FILE in the environment'
            ) from err
        with _without_settings_for_openai():
            self._client = openai.OpenAI(
                base_url=self.url,
                api_key=api_key or NO_KEY,
                timeout=TIMEOUT_S,
                max_retries=MAX_RETRIES,
                http_client=connection,
            )
        self.identity: Mapping[str, Any] = {'url': self.url, 'model': model}

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
            # The client would make an object of each value that the service sends.
            reply = self._client.chat.completions.with_raw_response.create(
                model=self._model,
                temperature=0,
                messages=[
                    {'role': 'system', 'content': task.instruction},
                    {'role': 'user', 'content': json.dumps(as_item(triple))},
                ],
            )
        except self._error as err:
            raise BackendUnavailableError(f'judge_url: {self.url}: {self._reason(err)}') from err
        try:
            content = json.loads(reply.content)
            return task.read(content['choices'][0]['message']['content'] or '')
        except (UnreadableReplyError, LookupError, TypeError, AttributeError, *NOT_JSON):
            return None

    def _reason(self, err: Exception) -> str:
        """Return what the service said, without the key if it repeats it."""
        said = str(err)
        for secret in self._secrets:
            said = said.replace(secret, '***')
        return quote(said)


@contextmanager
def _without_settings_for_openai() -> Iterator[None]:
    """Hide what the client would send of the environment: an organisation, a project, headers."""
    names = [name for name in os.environ if name.startswith('OPENAI_')]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname)
        _ = parts.port  # raises ValueError if it is not a port
    except ValueError:
        return False
    # The client appends the path of its requests, which would become part of a query.
    is_base = not parts.query and not parts.fragment
    is_web = parts.scheme in ('http', 'https') and WHITESPACE.search(url) is None
    return has_host and is_base and is_web


def _shown_secrets(api_key: str, login: tuple[str, str] | None) -> list[str]:
    """Return the texts that a service could repeat of what was sent to it, the longest first."""
    secrets = [api_key, *(login or ())]
    if login:
        secrets.append(base64.b64encode(':'.join(login).encode()).decode())
    return sorted(filter(None, secrets), key=len, reverse=True)


def _without_login(url: str) -> tuple[str, tuple[str, str] | None]:
    """Return a URL without `user:password@`, and user and password if it has them."""
    parts = urlsplit(url)
    login, _, host = parts.netloc.rpartition('@')
    user, _, password = login.partition(':')
    clean = parts._replace(netloc=host).geturl()
    return clean, (unquote(user), unquote(password)) if login else None
