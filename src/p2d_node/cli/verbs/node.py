"""`p2d demo` and `p2d watch`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from p2d_node.cli.options import argument, Options, same_as
from p2d_node.cli.verb import Verb
from p2d_node.cli.verbs.shared import duration, frames_per_camera, json_output, retention_ratio
from p2d_node.config import DriveConfig
from p2d_node.errors import ConfigError, quote

RECORDING_SUFFIX = '.rrd'
RECORDING_HELP = 'Record views, kept tokens, answers and times for rerun.'


def check_recording(path: Path | None) -> None:
    """Raise `ConfigError` for a file that rerun would not know."""
    if path is not None and path.suffix != RECORDING_SUFFIX:
        raise ConfigError(f'rerun: got {quote(str(path))}, allowed: a file *{RECORDING_SUFFIX}')


DEMO_EXAMPLES = """example:
  p2d demo
  p2d demo --model checkpoints/llava-onevision-0.5b --retention 0.25 --out demo_output
  p2d demo --data v1_1_val_nus.json --images nuscenes --model models/drivemm
  p2d demo --rerun demo.rrd
"""

WATCH_EXAMPLES = """examples:
  p2d watch --node /p2d
  p2d watch --rerun drive.rrd
  p2d watch --foxglove
"""


@dataclass(frozen=True, kw_only=True)
class DemoOptions(Options):
    """Play six cameras to the drive node and show its answers.

    The cameras are those of a drawn drive, in which the vehicle ahead brakes, or of real
    keyframes (--sample, or --data with --images), whose own questions are asked.
    """

    sample: Path | None = argument(
        None,
        'Folder of drivelm_sample.json and samples/, whose keyframes are played.',
        metavar='DIR',
        default_text='a drawn drive',
    )
    data: Path | None = argument(
        None,
        'JSON file of DriveLM; the keyframes of its first scene are played.',
        metavar='JSON',
        unless='sample',
    )
    images: Path | None = argument(
        None, 'With --data: folder that holds samples/.', metavar='ROOT', needs='data'
    )
    seed: int = argument(0, 'Random seed of the drawn drive.', minimum=0, unless='sample')
    model: str = same_as(DriveConfig, 'model')
    retention_ratio: float | None = retention_ratio(
        None, flag='--retention', default_text='as tuned for the model, else 0.1'
    )
    max_new_tokens: int = same_as(DriveConfig, 'max_new_tokens', default=16)
    frames_per_camera: int | None = frames_per_camera(default_text='as the model says')
    rate: float = argument(
        1.0, 'Speed of the replay, as a multiple of real time.', above=0.0, maximum=100.0
    )
    rerun: Path | None = argument(None, RECORDING_HELP, metavar='FILE.rrd')
    out: Path = argument(
        Path('demo_output'), 'Folder of the results: report.html, answers, pictures and the log.'
    )

    def __post_init__(self) -> None:
        """Check the values and how they fit together."""
        super().__post_init__()
        check_recording(self.rerun)
        if self.data is not None and self.images is None:
            raise ConfigError('--images is missing: with --data name the folder of samples/')


DEMO = Verb(
    name='demo',
    help='see the node answer from six cameras',
    examples=DEMO_EXAMPLES,
    options=DemoOptions,
    run='p2d_node.cli.demo:run',
)


@dataclass(frozen=True, kw_only=True)
class WatchOptions(Options):
    """Show answers, stage times and diagnostics of a running drive node."""

    node: str = argument('/p2d', 'Name of the node.')
    duration_s: float | None = duration()
    json: bool = json_output('Print answers as JSON lines.')
    rerun: Path | None = argument(None, RECORDING_HELP, metavar='FILE.rrd')
    foxglove: bool = argument(
        False, 'Serve views, kept tokens, answers and times to Foxglove over a WebSocket.'
    )
    foxglove_port: int = argument(
        8765, 'TCP port of the server.', minimum=1, maximum=65535, needs='foxglove'
    )
    foxglove_host: str = argument(
        '127.0.0.1',
        'Address that is served. Everyone who reaches it sees the cameras; 0.0.0.0: the network.',
        metavar='ADDRESS',
        needs='foxglove',
    )

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_recording(self.rerun)


WATCH = Verb(
    name='watch',
    help='show answers and times of a running node',
    examples=WATCH_EXAMPLES,
    options=WatchOptions,
    run='p2d_node.cli.watch:run',
    ends_with_ros=True,
)
