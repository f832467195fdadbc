"""A rosbag2 comes in; its messages go out as the bytes that were recorded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from p2d_node.errors import ConfigError
from rosbags.rosbag2 import Reader, ReaderError


@dataclass(frozen=True, slots=True)
class SerializedMessage:
    """One recorded message.

    Attributes:
        topic: Name of the topic.
        log_time_ns: When it was recorded, nanoseconds since the epoch.
        data: The message in CDR.
    """

    topic: str
    log_time_ns: int
    data: bytes | memoryview


class BagReader:
    """Opens a bag; use it as a context manager. Not thread-safe.

    Attributes:
        topics: Name of each topic to its type, such as `sensor_msgs/msg/Image`.
        start_ns: Log time of the first message, nanoseconds since the epoch.
        duration_ns: Time from the first to the last message.
    """

    def __init__(self, bag: Path) -> None:
        """Open `bag`.

        Raises:
            ConfigError: The bag does not exist or cannot be read.
        """
        if not bag.exists():
            raise ConfigError(
                f'bag: got {str(bag)!r}, which does not exist; allowed: the folder of a rosbag2'
            )
        self._bag = bag
        try:
            self._reader = Reader(bag)
            self._reader.open()
        except (ReaderError, OSError, ValueError) as err:
            raise ConfigError(f'bag: {bag}: not a readable rosbag2: {_one_line(err)}') from err
        self.topics = {c.topic: c.msgtype for c in self._reader.connections}
        self.start_ns = self._reader.start_time
        self.duration_ns = self._reader.duration

    def __enter__(self) -> BagReader:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._reader.close()

    def messages(self) -> Iterator[SerializedMessage]:
        """Yield all messages in the order of their log times.

        Raises:
            ConfigError: The bag is damaged.
        """
        try:
            for connection, log_time_ns, data in self._reader.messages():
                yield SerializedMessage(connection.topic, log_time_ns, data)
        except (ReaderError, OSError, ValueError) as err:
            raise ConfigError(f'bag: {self._bag} is damaged: {_one_line(err)}') from err


def _one_line(err: Exception) -> str:
    """Return the message of `err` in one line; YAML's errors have several."""
    return ' '.join(str(err).split())
