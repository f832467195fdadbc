"""A rosbag2 or an MCAP file comes in; its ROS messages go out as bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from p2d_node.bags.limited_reader import LimitedReader
from p2d_node.bags.limits import check_bytes, MAX_MESSAGE_BYTES
from p2d_node.errors import BackendUnavailableError, ConfigError
from p2d_node.units import MAX_STAMP_NS
from rosbags.interfaces import Connection, QosDurability

SUFFIXES = ('.mcap', '.db3')
"""Endings of the files of a bag."""

READABLE = (
    'allowed: a rosbag2 of storage mcap or sqlite3, plain or compressed with zstd, or a file of '
    'nuscenes2mcap; if it is one, copy it again'
)
MCAP_MAGIC = b'\x89MCAP0\r\n'
MCAP_START_BYTES = len(MCAP_MAGIC) + 9
"""Up to the profile: the magic, and kind and length of the first record."""

ROS_PROFILE = b'\x04\0\0\0ros2'
"""In the first record of an MCAP file that ROS 2 recorded."""

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


class _Source(Protocol):
    """What `BagReader` needs of a reader; times in nanoseconds since the epoch."""

    @property
    def connections(self) -> list[Connection]: ...

    @property
    def message_count(self) -> int: ...

    @property
    def start_time(self) -> int: ...

    @property
    def duration(self) -> int: ...

    def messages(self) -> Iterator[tuple[Connection, int, bytes | memoryview]]: ...

    def close(self) -> None: ...


class BagReader:
    """Opens a bag; use it as a context manager. Not thread-safe.

    Attributes:
        source: The parameter that names the bag, and its path; for messages.
        topics: Name of each topic to its type, such as `sensor_msgs/msg/Image`.
        latched: Name of each topic that was offered to late subscribers too, such as /tf_static,
            to the number of messages that its publishers kept for them.
        start_ns: Log time of the first message, nanoseconds since the epoch; 0 for an empty bag.
        duration_ns: Time from the first to the last message.
    """

    def __init__(self, bag: Path, *, parameter: str = 'bag') -> None:
        """Open a bag.

        Args:
            bag: The folder of a rosbag2, one of its files, or a file of nuscenes2mcap.
            parameter: The parameter that names it; messages begin with it.

        Raises:
            ConfigError: The bag does not exist or cannot be read.
            BackendUnavailableError: A library for this kind of file is missing.
        """
        _check_path(bag, parameter)
        self.source = f'{parameter}: {bag}'
        with _bag_faults(f'{self.source} cannot be read', READABLE):
            self._reader = _open(bag)
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
        with self.faults():
            self._reader.close()

    def faults(self) -> AbstractContextManager[None]:
        """Return a context that raises ConfigError, "the bag is damaged", for any error."""
        return _bag_faults(f'{self.source} is damaged', DAMAGED)

    def messages(self) -> Iterator[SerializedMessage]:
        """Yield all messages in the order of their log times.

        Raises:
            ConfigError: The bag is damaged.
        """
        recorded = iter(self._reader.messages())
        while True:
            with self.faults():
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


def _open(bag: Path) -> _Source:
    if bag.is_file() and bag.suffix == '.mcap' and not _is_of_ros(bag):
        return _open_protobuf(bag)
    reader = LimitedReader(bag)
    reader.open()
    return reader


def _is_of_ros(path: Path) -> bool:
    """Return whether an MCAP file is one of ROS 2, or cannot be read as an MCAP file."""
    with path.open('rb') as file:
        start = file.read(MCAP_START_BYTES + len(ROS_PROFILE))
    return not start.startswith(MCAP_MAGIC) or start.endswith(ROS_PROFILE)


def _open_protobuf(path: Path) -> _Source:
    try:
        from p2d_node.bags.protobuf_mcap import ProtobufMcapReader
    except ImportError as err:
        raise BackendUnavailableError(
            f'{err.name} is not installed, and {path} holds messages in protobuf; '
            'pip install mcap-protobuf-support'
        ) from err
    return ProtobufMcapReader(path)


def _check_path(bag: Path, parameter: str) -> None:
    allowed = f'allowed: the folder of a rosbag2, or one of its files ({" or ".join(SUFFIXES)})'
    if not bag.exists():
        raise ConfigError(f'{parameter}: got {str(bag)!r}, which does not exist; {allowed}')
    if not bag.is_file() and not bag.is_dir():
        raise ConfigError(f'{parameter}: got {str(bag)!r}, which is no plain file; {allowed}')
    if bag.is_file() and bag.suffix not in SUFFIXES:
        raise ConfigError(f'{parameter}: got the file {str(bag)!r}; {allowed}')
    if bag.is_dir() and not (bag / 'metadata.yaml').exists():
        files = sorted(path.name for path in bag.iterdir() if path.suffix in SUFFIXES)
        next_step = f'name its file {" or ".join(files)}' if files else allowed
        raise ConfigError(f'{parameter}: {bag} has no metadata.yaml; {next_step}')


def _full_type_name(type_name: str) -> str:
    """Return `package/msg/Name`; some recorders leave `msg` out. Names of other forms stay."""
    package, _, name = type_name.partition('/')
    return type_name if '/' in name or not name else f'{package}/msg/{name}'


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
    except (BackendUnavailableError, MemoryError):
        raise
    except Exception as err:
        reason = ' '.join(str(err).split())  # YAML's errors have many lines
        if not reason or isinstance(err, LookupError):  # whose text is a mere key
            reason = f'{type(err).__name__}: {reason}'.removesuffix(': ')
        raise ConfigError(f'{what}: {reason}; {next_step}') from err
