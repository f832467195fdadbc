"""Serves sweeps over the WebSocket protocol of Foxglove, for machines without ROS tools."""

from __future__ import annotations

import socket
from typing import Any

from p2d_node.errors import ConfigError
from p2d_node.units import NS_PER_S
from p2d_node.viewers.shown_sweep import image_format, require_library, ShownSweep

LOCALHOST = '127.0.0.1'


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

        self._foxglove = foxglove
        self._node = node
        _check_free(host, port)
        # A context of its own: two servers in one process do not share topics.
        self._context = foxglove.Context()
        self._server = foxglove.start_server(
            name='p2d_node', host=host, port=port, context=self._context
        )
        self._channels: dict[str, Any] = {}

    @property
    def port(self) -> int:
        """The TCP port."""
        return int(self._server.port)

    def show(self, sweep: ShownSweep) -> None:
        """Send one sweep."""
        for camera, image in sweep.views.items():
            self._send_picture(f'/{camera}/image_rect/compressed', image, sweep.stamp_ns)
        if sweep.kept_tokens:
            self._send_picture(f'{self._node}/kept_tokens', sweep.kept_tokens, sweep.stamp_ns)
        self._send(f'{self._node}/timing', dict(sweep.times_ms), sweep.stamp_ns)
        for question, answer in sweep.answers:
            kept = dict(sweep.tokens_kept)
            answered = {'question': question, 'answer': answer, 'tokens_kept': kept}
            self._send(f'{self._node}/answer', answered, sweep.stamp_ns)

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


def _check_free(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as err:
        raise ConfigError(
            f'foxglove_port: got {port} on {host}, which cannot be served: {err.strerror}; name '
            'another port'
        ) from err
