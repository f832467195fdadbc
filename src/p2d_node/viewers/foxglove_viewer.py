"""Serves sweeps over the WebSocket protocol of Foxglove, for machines without ROS tools."""

from __future__ import annotations

from collections import Counter
import socket
from typing import Any

from p2d_node.errors import ConfigError, P2dError
from p2d_node.units import NS_PER_S
from p2d_node.viewers.shown_sweep import image_format, require_library, ShownSweep

LOCALHOST = '127.0.0.1'

MAX_CLIENTS = 4
"""With more clients no pictures are sent."""

MESSAGES_KEPT = 64
"""Per client that does not read fast enough; the oldest are dropped. A sweep of six cameras and 50
questions has 58."""

MAX_PICTURE_BYTES = 4 << 20
"""Larger pictures are left out, so that slow clients take 1 GiB at most, all of them together."""

MAX_CHANNELS = 128
"""Topics that are served; each new client gets a list of them, and names come from messages."""


class FoxgloveViewer:
    """A WebSocket server with the topics of the drive node: pictures, answers and times.

    Pictures are `foxglove.CompressedImage`, the others JSON with fields of the ROS messages. So
    config/foxglove.json fits both this server and a bridge of ROS topics.
    """

    def __init__(self, node: str, port: int, host: str = LOCALHOST) -> None:
        """Serve.

        Args:
            node: Full name of the drive node; begins the topics.
            port: TCP port; 0: a free one.
            host: Address of this machine that is served; 0.0.0.0: all of them.

        Raises:
            BackendUnavailableError: foxglove-sdk is not installed.
            ConfigError: The port is in use, or the address is not of this machine.
        """
        require_library('foxglove', '--foxglove')
        import foxglove

        # The server has a line for everything odd that a client sends, without a limit.
        foxglove.set_log_level('CRITICAL')
        self._foxglove = foxglove
        self._node = node
        _check_free(host, port)
        # A context of its own: two servers in one process do not share topics.
        self._context = foxglove.Context()
        self._clients = _Clients()
        self._server = foxglove.start_server(
            name='p2d_node',
            host=host,
            port=port,
            context=self._context,
            server_listener=self._clients,
            message_backlog_size=MESSAGES_KEPT,
        )
        self._channels: dict[str, Any] = {}

    @property
    def port(self) -> int:
        """The TCP port."""
        return int(self._server.port)

    def show(self, sweep: ShownSweep) -> None:
        """Send one sweep.

        Raises:
            P2dError: Pictures were left out; the rest was sent.
        """
        pictures = {f'/{name}/image_rect/compressed': view for name, view in sweep.views.items()}
        if sweep.kept_tokens:
            pictures[f'{self._node}/kept_tokens'] = sweep.kept_tokens
        large = [topic for topic, image in pictures.items() if len(image) > MAX_PICTURE_BYTES]
        has_room = self._clients.num <= MAX_CLIENTS
        for topic, image in pictures.items():
            is_known = topic in self._channels or len(self._channels) < MAX_CHANNELS
            if has_room and is_known and topic not in large:
                self._send_picture(topic, image, sweep.stamp_ns)
        self._send(f'{self._node}/timing', dict(sweep.times_ms), sweep.stamp_ns)
        for question, answer in sweep.answers:
            kept = dict(sweep.tokens_kept)
            answered = {'question': question, 'answer': answer, 'tokens_kept': kept}
            self._send(f'{self._node}/answer', answered, sweep.stamp_ns)
        if not has_room:
            raise P2dError(f'pictures: got more than {MAX_CLIENTS} clients; close some')
        if large:
            raise P2dError(
                f'{large[0]}: got {len(pictures[large[0]])} bytes, allowed: {MAX_PICTURE_BYTES}; '
                'publish JPEG'
            )

    def close(self) -> None:
        """End the server."""
        self._server.stop()

    def _send(self, topic: str, content: dict[str, Any], stamp_ns: int) -> None:
        if topic not in self._channels:
            self._channels[topic] = self._foxglove.Channel(
                topic, message_encoding='json', context=self._context
            )
        self._channels[topic].log(content, log_time=stamp_ns)

    def _send_picture(self, topic: str, image: bytes, stamp_ns: int) -> None:
        from foxglove.channels import CompressedImageChannel
        from foxglove.messages import CompressedImage, Timestamp

        if topic not in self._channels:
            self._channels[topic] = CompressedImageChannel(topic, context=self._context)
        sec, nsec = divmod(stamp_ns, NS_PER_S)
        message = CompressedImage(
            timestamp=Timestamp(sec, nsec), frame_id='', data=image, format=image_format(image)
        )
        self._channels[topic].log(message, log_time=stamp_ns)


class _Clients:
    """Counts the clients that have subscribed; the server calls it."""

    def __init__(self) -> None:
        self._subscriptions: Counter[int] = Counter()

    @property
    def num(self) -> int:
        return sum(count > 0 for count in tuple(self._subscriptions.values()))

    def on_subscribe(self, client: Any, channel: Any) -> None:
        self._subscriptions[client.id] += 1

    def on_unsubscribe(self, client: Any, channel: Any) -> None:
        """A client unsubscribes, or has gone."""
        self._subscriptions[client.id] -= 1
        if self._subscriptions[client.id] <= 0:
            del self._subscriptions[client.id]


def _check_free(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as err:
        raise ConfigError(
            f'foxglove_port: got {port} on {host}, which cannot be served: {err.strerror}; name '
            'another port'
        ) from err
