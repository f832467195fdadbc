"""Publishes drawn sweeps on camera topics, and spoils frames as a fault says.

It knows from which sweep each published stamp came, so a set of frames that mixes sweeps is found
by truth and not by stamps.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
import heapq
import itertools
import threading
import time
from typing import Any

from p2d_node.ros.conversions import to_time
from p2d_node.units import NS_PER_MS, NS_PER_S
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

Change = Callable[['SentFrame'], Iterable['SentFrame']]
"""Gets a frame before it is sent; returns what is sent in its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SentFrame:
    """A frame on its way to a topic.

    Attributes:
        camera: Name of the camera.
        sweep: Number of the sweep that it was captured in.
        stamp_ns: Capture stamp, ROS time in nanoseconds; a fault may have changed it.
        data: JPEG file; a fault may have damaged it.
        delay_s: How much later than captured it is sent.
    """

    camera: str
    sweep: int
    stamp_ns: int
    data: bytes
    delay_s: float = 0.0


class FaultyCameras:
    """Cameras that expose one after the other, in a thread of their own.

    Attributes:
        rate_hz: Sweeps per second; may be changed while they run.
        change: What a fault does to frames; None: nothing.
        num_sweeps: Number of sweeps so far.
    """

    def __init__(
        self,
        node: Node,
        topics: Mapping[str, str],
        offsets_ms: Mapping[str, float],
        sweeps: Sequence[Mapping[str, bytes]],
        rate_hz: float,
    ) -> None:
        """Create the publishers; `start` sends the first frame.

        Args:
            node: The node that publishes.
            topics: Camera to topic.
            offsets_ms: Camera to exposure after the start of a sweep.
            sweeps: Camera to JPEG file, of each sweep; they are sent again and again.
            rate_hz: Sweeps per second.
        """
        self.cameras = tuple(topics)
        self.rate_hz = rate_hz
        self.change: Change | None = None
        self.num_sweeps = 0
        self._node = node
        self._topics = topics
        self._offsets_ms = offsets_ms
        self._sweeps = sweeps
        self._sweeps_of: defaultdict[tuple[str, int], set[int]] = defaultdict(set)
        self._starts_ns: dict[int, int] = {}
        self._lock = threading.Lock()
        self._publishers: dict[str, Any] = {}
        for camera in topics:
            self.open(camera)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name='cameras', daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._ending.set()
        self._thread.join(timeout=5.0)

    def open(self, camera: str, *, reliable: bool = True) -> None:
        """Create the publisher of a camera, in place of the one that it has."""
        self.close(camera)
        reliability = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        quality = QoSProfile(depth=10, reliability=reliability)
        publisher = self._node.create_publisher(CompressedImage, self._topics[camera], quality)
        with self._lock:
            self._publishers[camera] = publisher

    def close(self, camera: str) -> None:
        """Destroy the publisher of a camera."""
        with self._lock:
            publisher = self._publishers.pop(camera, None)
        if publisher is not None:
            self._node.destroy_publisher(publisher)

    def topic_of(self, camera: str) -> str:
        """Return the topic of a camera."""
        return self._topics[camera]

    def is_mixed(self, stamps_ns: Mapping[str, int]) -> bool:
        """Tell whether frames, camera to published stamp, come from different sweeps.

        Stamps that no frame had, because the node replaced a stamp of 0, tell nothing.
        """
        with self._lock:
            known = [
                self._sweeps_of[item] for item in stamps_ns.items() if item in self._sweeps_of
            ]
        return bool(known) and not set.intersection(*known)

    def captured_ns(self, camera: str, stamp_ns: int) -> int | None:
        """Return when the last sweep with a published stamp began, ROS time in nanoseconds."""
        with self._lock:
            sweeps = self._sweeps_of.get((camera, stamp_ns))
            return self._starts_ns[max(sweeps)] if sweeps else None

    def _run(self) -> None:
        waiting: list[tuple[float, int, SentFrame]] = []
        order = itertools.count()
        next_s = time.monotonic()
        while not self._ending.is_set():
            for frame, due_s in self._expose(next_s):
                for sent in self.change(frame) if self.change else (frame,):
                    heapq.heappush(waiting, (due_s + sent.delay_s, next(order), sent))
            next_s = max(next_s + 1.0 / self.rate_hz, time.monotonic() - 1.0)
            while waiting and waiting[0][0] < next_s:
                due_s, _, frame = heapq.heappop(waiting)
                if self._ending.wait(max(0.0, due_s - time.monotonic())):
                    return
                self._send(frame)
            if self._ending.wait(max(0.0, next_s - time.monotonic())):
                return

    def _expose(self, start_s: float) -> list[tuple[SentFrame, float]]:
        """Return the frames of the next sweep and when each is due, steady clock."""
        number, self.num_sweeps = self.num_sweeps, self.num_sweeps + 1
        start_ns = time.time_ns() + round((start_s - time.monotonic()) * NS_PER_S)
        with self._lock:
            self._starts_ns[number] = start_ns
        pictures = self._sweeps[number % len(self._sweeps)]
        return [
            (
                SentFrame(
                    camera=camera,
                    sweep=number,
                    stamp_ns=start_ns + round(self._offsets_ms[camera] * NS_PER_MS),
                    data=pictures[camera],
                ),
                start_s + self._offsets_ms[camera] / 1000.0,
            )
            for camera in self.cameras
        ]

    def _send(self, frame: SentFrame) -> None:
        with self._lock:
            publisher = self._publishers.get(frame.camera)
            self._sweeps_of[frame.camera, frame.stamp_ns].add(frame.sweep)
        if publisher is None:
            return
        header = Header(stamp=to_time(max(0, frame.stamp_ns)), frame_id=frame.camera)
        message = CompressedImage(header=header, format='jpeg', data=array('B', frame.data))
        publisher.publish(message)


def of_camera(camera: str, change: Change) -> Change:
    """Return a change that spoils the frames of one camera only."""
    return lambda frame: change(frame) if frame.camera == camera else (frame,)


def with_stamp(frame: SentFrame, seconds: float) -> SentFrame:
    """Return a frame whose stamp is later by `seconds`."""
    return replace(frame, stamp_ns=frame.stamp_ns + round(seconds * NS_PER_S))
