"""The HTTP connection to a chat judge: it follows no redirects and reads no endless replies."""

from __future__ import annotations

import time
from typing import Any

import httpx2
import openai
from p2d_node.errors import BackendUnavailableError, quote

MAX_REPLY_BYTES = 1 << 20
"""A judgement is a number or twelve ratings; the words around it take some kilobytes."""

MAX_REPLY_S = 120.0
"""From the first byte of a reply to its last."""


class JudgeConnection(openai.DefaultHttpxClient):
    """Sends the requests of the OpenAI client. Any thread may use it."""

    def __init__(self, login: tuple[str, str] | None) -> None:
        """Connect.

        Args:
            login: Name and password for the service; None: the key of the OpenAI client is sent.
        """
        # Without compression the limit holds for what is received and for what is unpacked.
        super().__init__(
            auth=login, follow_redirects=False, headers={'Accept-Encoding': 'identity'}
        )

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request and return its whole reply.

        Raises:
            BackendUnavailableError: The reply is a redirect, compressed, or too long.
        """
        reply = super().send(request, **{**options, 'stream': True})
        try:
            self._check(reply)
            content = _read(reply)
        finally:
            reply.close()
        return httpx2.Response(
            reply.status_code, headers=reply.headers, content=content, request=request
        )

    def _check(self, reply: httpx2.Response) -> None:
        if reply.next_request is not None:
            raise BackendUnavailableError(
                f'judge_url: {reply.url.host} redirects to {quote(reply.next_request.url.host)}, '
                'which would get questions, answers and the key; if you trust it, name it in '
                'judge_url'
            )
        encoding = reply.headers.get('content-encoding', 'identity')
        if encoding != 'identity':
            raise BackendUnavailableError(
                f'judge_url: {reply.url.host} sent a reply of the encoding {quote(encoding)}, '
                'allowed: identity; ask another service'
            )


def _read(reply: httpx2.Response) -> bytes:
    content = bytearray()
    end_s = time.monotonic() + MAX_REPLY_S
    for part in reply.iter_raw():
        content += part
        if time.monotonic() > end_s:
            raise BackendUnavailableError(
                f'judge_url: {reply.url.host} sends its reply for more than {MAX_REPLY_S:g} s; '
                'ask another service'
            )
        if len(content) > MAX_REPLY_BYTES:
            raise BackendUnavailableError(
                f'judge_url: {reply.url.host} sent more than {MAX_REPLY_BYTES} bytes in one '
                'reply, allowed: up to these; ask another service'
            )
    return bytes(content)
