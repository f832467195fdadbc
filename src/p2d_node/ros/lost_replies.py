"""Bounds the time that replies to clients cost which cannot receive them.

Before a reply to a client whose QoS does not fit, rmw waits for up to 100 ms, and rclpy lets no
other thread of Python run meanwhile. Neither tells which client a request came from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
import time
from typing import Any

from p2d_node.ros.refusals import Refusals

MAX_LOST, PERIOD_S = 3, 5.0
"""Replies that may be lost in this time; until it is over no more are sent."""

LOST_S = 0.09
"""A reply that takes longer to send has reached nobody."""


class LostReplies:
    """Stops the replies of services for a while after some were lost. Any thread may send."""

    def __init__(self, services: Iterable[Any], refusals: Refusals) -> None:
        """Take over the replies.

        Args:
            services: rclpy services, before an executor serves them.
            refusals: Gets the replies that are lost or not sent.
        """
        self._refusals = refusals
        self._lost_s: deque[float] = deque([-PERIOD_S] * MAX_LOST, maxlen=MAX_LOST)
        for service in services:
            self._take_over(service)

    def _take_over(self, service: Any) -> None:
        send, name = service.send_response, name_of(service)

        def send_or_drop(response: Any, header: Any) -> None:
            begun_s = time.monotonic()
            if begun_s - self._lost_s[0] < PERIOD_S:
                reason = f'{MAX_LOST} clients received no reply, so none is sent for a while'
                self._refusals.add(name, reason)
                return
            send(response, header)
            if time.monotonic() - begun_s > LOST_S:
                self._lost_s.append(begun_s)
                self._refusals.add(name, 'its client receives no replies; correct its QoS')

        service.send_response = send_or_drop


def name_of(service: Any) -> str:
    """Return the name of a service of the node: `~/get_parameters`."""
    return f'~/{service.srv_name.rpartition("/")[2]}'
