"""A rosbag2 comes in; its messages come out as the bytes they were recorded as."""

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
        topic: Where it was published.
        log_time_ns: When, nanoseconds since the epoch.
        data: CDR bytes.
    """

    topic: str
    log_time_ns: int
    data: bytes | memoryview


class BagReader:
    """Opens a bag; use it as a context manager. Not thread-safe."""

    def __init__(self, bag: Path) -> None:
        """Open `bag`.

        Raises:
            ConfigError: There is no bag, or it cannot be read.
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
        """Yield all messages, by log time.

        Raises:
            ConfigError: The bag is damaged.
        """
        try:
            for connection, log_time_ns, data in self._reader.messages():
                yield SerializedMessage(connection.topic, log_time_ns, data)
        except (ReaderError, OSError, ValueError) as err:
            raise ConfigError(f'bag: {self._bag} is damaged: {_one_line(err)}') from err


def _one_line(err: Exception) -> str:
    """Return the message of `err`; YAML's show the spot on lines of their own."""
    return ' '.join(str(err).split())
