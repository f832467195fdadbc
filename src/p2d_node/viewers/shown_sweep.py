"""What a viewer shows of one answered sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Protocol

from p2d_node.errors import BackendUnavailableError


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSweep:
    """One answered sweep.

    Attributes:
        number: Of the sweep, from 0.
        stamp_ns: Capture time of the reference camera, ROS time in nanoseconds.
        views: Camera to the content of a JPEG or PNG file.
        kept_tokens: JPEG of the views with the kept patches lit; empty: there is none.
        answers: Question and answer.
        tokens_kept: Camera to number of kept visual tokens.
        times_ms: Field of `p2d_msgs/StageTiming` to milliseconds.
    """

    number: int
    stamp_ns: int
    views: Mapping[str, bytes]
    kept_tokens: bytes = b''
    answers: Sequence[tuple[str, str]] = ()
    tokens_kept: Mapping[str, int] = field(default_factory=dict)
    times_ms: Mapping[str, float] = field(default_factory=dict)


class Viewer(Protocol):
    """Shows sweeps; use it from one thread."""

    def show(self, sweep: ShownSweep) -> None:
        """Show one sweep; an error says what of it is not shown."""

    def close(self) -> None:
        """Write what is left, and end the connection."""


def image_format(image: bytes) -> str:
    """Return `png` or `jpeg`, by the first bytes of a file."""
    return 'png' if image.startswith(b'\x89PNG') else 'jpeg'


def require_library(module: str, option: str) -> None:
    """Raise `BackendUnavailableError` if the library behind an option is not installed."""
    if find_spec(module) is None:
        raise BackendUnavailableError(
            f'{module} is not installed, and {option} needs it; '
            'pip install -r requirements/watch.txt'
        )
