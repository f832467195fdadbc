"""The HTTP connection to a chat judge: it follows no redirects and reads no endless replies."""

from __future__ import annotations

from contextlib import suppress
from http.cookiejar import CookieJar, DefaultCookiePolicy
import socket
import threading
from typing import Any

import httpx2
import openai
from p2d_node.errors import BackendUnavailableError, quote

MAX_REPLY_BYTES = 1 << 20
"""A judgement is a number or twelve ratings; the words around it take some kilobytes."""

MAX_REPLY_S = 180.0
"""From the begin of a request to the last byte of its reply. Longer than the timeout of a single
read, after which the client asks again: a service that is only busy gets its retries."""


class JudgeConnection(openai.DefaultHttpxClient):
    """Sends the requests of the OpenAI client. Any thread may use it."""

    def __init__(self, login: tuple[str, str] | None) -> None:
        """Connect.

        Args:
            login: Name and password for the service; None: the key of the OpenAI client is sent.
        """
        super().__init__(
            auth=login,
            follow_redirects=False,
            # Cookies of its replies would add up, and be sent with every request.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            # Without compression the limit holds for what is received and for what is unpacked.
            headers={'Accept-Encoding': 'identity'},
            # `_Deadline` ends a request by its connection, which so must be of its own.
            limits=httpx2.Limits(max_keepalive_connections=0),
        )

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request and return its whole reply.

        Raises:
            BackendUnavailableError: The reply is a redirect, compressed, too long or too slow.
        """
        deadline = _Deadline(MAX_REPLY_S)
        request.extensions = {**request.extensions, 'trace': deadline.follow}
        try:
            with deadline:
                reply = super().send(request, **{**options, 'stream': True})
                try:
                    self._check(reply)
                    content = _read(reply)
                finally:
                    reply.close()
        except httpx2.HTTPError:
            if not deadline.has_passed:
                raise
        if deadline.has_passed:
            raise BackendUnavailableError(
                f'judge_url: {request.url.host} sends its reply for more than {MAX_REPLY_S:g} s; '
                'ask another service'
            )
        headers = httpx2.Headers(reply.headers)
        # A charset would name any codec of Python; without one the content is read as UTF-8.
        headers['content-type'] = headers.get('content-type', '').partition(';')[0]
        return httpx2.Response(
            reply.status_code, headers=headers, content=content, request=request
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


class _Deadline:
    """Ends the connection of a request that takes too long.

    The timeouts of the client are per read: a service that sends a byte now and then, or interim
    replies without end, never exceeds them.
    """

    def __init__(self, seconds: float) -> None:
        self.has_passed = False
        self._timer = threading.Timer(seconds, self._pass)
        self._timer.daemon = True
        self._socket: Any = None

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def follow(self, event: str, info: dict[str, Any]) -> None:
        """Note the socket of a connection, plain or encrypted, once it is made."""
        if event.endswith(('.connect_tcp.complete', '.start_tls.complete')):
            self._socket = info['return_value'].get_extra_info('socket')
            if self.has_passed:
                self._end()

    def _pass(self) -> None:
        self.has_passed = True
        self._end()

    def _end(self) -> None:
        if self._socket is not None:
            with suppress(OSError):  # it has ended already
                self._socket.shutdown(socket.SHUT_RDWR)


def _read(reply: httpx2.Response) -> bytes:
    content = bytearray()
    for part in reply.iter_raw():
        content += part
        if len(content) > MAX_REPLY_BYTES:
            raise BackendUnavailableError(
                f'judge_url: {reply.url.host} sent more than {MAX_REPLY_BYTES} bytes in one '
                'reply, allowed: up to these; ask another service'
            )
    return bytes(content)
