"""A rosbag2 comes in; its messages go out as the bytes that were recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from p2d_node.bags.limited_reader import LimitedReader
from p2d_node.bags.limits import check_bytes, MAX_MESSAGE_BYTES
from p2d_node.errors import ConfigError
from p2d_node.units import MAX_STAMP_NS
from rosbags.interfaces import Connection, QosDurability

SUFFIXES = ('.mcap', '.db3')
"""Endings of the files of a bag."""

READABLE = (
    'allowed: a rosbag2 of storage mcap or sqlite3, plain or compressed with zstd; if it is one, '
    'copy it again'
)
DAMAGED = 'copy it again, or repair it with: ros2 bag reindex'


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
        latched: Name of each topic that was offered to late subscribers too, such as /tf_static,
            to the number of messages that its publishers kept for them.
        start_ns: Log time of the first message, nanoseconds since the epoch; 0 for an empty bag.
        duration_ns: Time from the first to the last message.
    """

    def __init__(self, bag: Path) -> None:
        """Open `bag`: the folder of a rosbag2, or one of its files.

        Raises:
            ConfigError: The bag does not exist or cannot be read.
        """
        _check_path(bag)
        self._bag = bag
        with _bag_faults(f'{bag} cannot be read', READABLE):
            self._reader = LimitedReader(bag)
            self._reader.open()
            connections = list(self._reader.connections)
            self.topics = {c.topic: _full_type_name(c.msgtype) for c in connections}
            self.latched = {c.topic: kept for c in connections if (kept := _num_kept(c))}
            is_empty = not self._reader.message_count
            self.start_ns = 0 if is_empty else self._reader.start_time
            self.duration_ns = 0 if is_empty else self._reader.duration
            self._check_time(self.start_ns)

    def __enter__(self) -> BagReader:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with _bag_faults(f'{self._bag} is damaged', DAMAGED):
            self._reader.close()

    def messages(self) -> Iterator[SerializedMessage]:
        """Yield all messages in the order of their log times.

        Raises:
            ConfigError: The bag is damaged.
        """
        recorded = iter(self._reader.messages())
        while True:
            with _bag_faults(f'{self._bag} is damaged', DAMAGED):
                item = next(recorded, None)
                if item is None:
                    return
                connection, log_time_ns, data = item
                self._check_time(log_time_ns)
                check_bytes('a message', len(data), MAX_MESSAGE_BYTES)
            yield SerializedMessage(connection.topic, log_time_ns, data)

    def _check_time(self, log_time_ns: int) -> None:
        if not 0 <= log_time_ns <= MAX_STAMP_NS:
            raise ValueError(
                f'got a log time of {log_time_ns} ns, allowed: 0 to {MAX_STAMP_NS} since the epoch'
            )


def _check_path(bag: Path) -> None:
    allowed = f'allowed: the folder of a rosbag2, or one of its files ({" or ".join(SUFFIXES)})'
    if not bag.exists():
        raise ConfigError(f'bag: got {str(bag)!r}, which does not exist; {allowed}')
    if bag.is_file() and bag.suffix not in SUFFIXES:
        raise ConfigError(f'bag: got the file {str(bag)!r}; {allowed}')
    if bag.is_dir() and not (bag / 'metadata.yaml').exists():
        files = sorted(path.name for path in bag.iterdir() if path.suffix in SUFFIXES)
        next_step = f'name its file {" or ".join(files)}' if files else allowed
        raise ConfigError(f'bag: {bag} has no metadata.yaml; {next_step}')


def _full_type_name(type_name: str) -> str:
    """Return `package/msg/Name`; some recorders leave `msg` out."""
    package, _, name = type_name.partition('/')
    return type_name if '/' in name else f'{package}/msg/{name}'


def _num_kept(connection: Connection) -> int:
    profiles = getattr(connection.ext, 'offered_qos_profiles', ())
    return sum(
        max(1, qos.depth) for qos in profiles if qos.durability == QosDurability.TRANSIENT_LOCAL
    )


@contextmanager
def _bag_faults(what: str, next_step: str) -> Iterator[None]:
    """Translate the errors of the libraries under the reader, which have no common class."""
    try:
        yield
    except Exception as err:
        reason = ' '.join(str(err).split()) or type(err).__name__  # YAML's errors have many lines
        raise ConfigError(f'bag: {what}: {reason}; {next_step}') from err
