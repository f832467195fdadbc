"""Options that several verbs have."""

from __future__ import annotations

from typing import Any

from p2d_node.cli.options import argument, same_as
from p2d_node.config import DriveConfig, RETENTION_RATIO

PARAMETER_FILE_HELP = 'Parameter file of the drive node.'

AS_IN_FILE = {'default': None, 'default_text': 'as in --params-file, else as the model says'}


def json_output(help: str = 'Print the result as JSON.') -> Any:
    """Declare `--json`."""
    return argument(False, help)


def device() -> Any:
    """Declare `--device`."""
    return same_as(DriveConfig, 'device')


def threads(default_text: str = "torch's own choice") -> Any:
    """Declare `--threads`."""
    return argument(
        None,
        'CPU threads of torch.',
        flag='--threads',
        minimum=1,
        maximum=1024,
        default_text=default_text,
    )


def frames_per_camera(**changes: Any) -> Any:
    """Declare `--frames-per-camera`."""
    return _clip_option('frames_per_camera', minimum=1, **changes)


def frame_interval(**changes: Any) -> Any:
    """Declare `--frame-interval-ms`."""
    return _clip_option('frame_interval_ms', minimum=5.0, **changes)


def _clip_option(name: str, **changes: Any) -> Any:
    """Declare an option of clips; left out it is what 0 is for the parameter."""
    text = DriveConfig.__dataclass_fields__[name].metadata['option'].help.partition(' 0: ')[0]
    return same_as(DriveConfig, name, **{'help': text, **AS_IN_FILE, **changes})


def duration() -> Any:
    """Declare `--duration`, in seconds."""
    return argument(
        None, 'Stop after this many seconds.', flag='--duration', metavar='S', above=0.0
    )


def retention_ratio(default: float | None, **changes: Any) -> Any:
    """Declare one retention ratio for all cameras."""
    return argument(
        default,
        "Share of every camera's visual tokens that is kept: kept/total.",
        minimum=RETENTION_RATIO.minimum,
        maximum=RETENTION_RATIO.maximum,
        **changes,
    )
