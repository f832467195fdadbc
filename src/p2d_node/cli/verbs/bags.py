"""`p2d make-bag` and `p2d replay`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from p2d_node.cli.options import argument, Options, require_one
from p2d_node.cli.verb import Verb
from p2d_node.cli.verbs.shared import duration, json_output
from p2d_node.errors import ConfigError

MAKE_BAG_EXAMPLES = """example:
  p2d make-bag --drivelm v1_1_train_nus.json --images nuscenes --out keyframes
  p2d make-bag --nuscenes nuscenes --scene scene-0061 --out scene-0061
  p2d make-bag --synthetic lead-brakes --sweeps 120 --out drive
  p2d make-bag --from-mcap NuScenes-v1.0-mini-scene-0061.mcap --out scene-0061 --compression zstd
  ros2 bag play scene-0061 --clock
"""

REPLAY_EXAMPLES = """example:
  p2d replay --bag scene-0061 --rate 0.5 --loop --clock
"""


@dataclass(frozen=True, kw_only=True)
class MakeBagOptions(Options):
    """Make a rosbag2 with images and CameraInfo at their true capture stamps."""

    drivelm: Path | None = argument(
        None, "Source: DriveLM's file of questions; needs --images.", metavar='JSON'
    )
    nuscenes: Path | None = argument(
        None, 'Source: root folder of the nuScenes data.', metavar='ROOT'
    )
    scenario: str | None = argument(
        None,
        'Source: a drive that p2d_sim draws, e.g. lead-brakes; needs the package p2d_sim.',
        flag='--synthetic',
        metavar='SCENARIO',
    )
    from_mcap: Path | None = argument(
        None,
        "Source: the JPEG images of another bag, e.g. a file of Foxglove's nuscenes2mcap.",
        metavar='BAG',
    )
    images: Path | None = argument(
        None, 'With --drivelm: folder that holds samples/.', metavar='ROOT', needs='drivelm'
    )
    version: str = argument(
        '', 'With --nuscenes: version of the tables, e.g. v1.0-mini.', needs='nuscenes'
    )
    scene: str = argument(
        '',
        'With --nuscenes: scene, e.g. scene-0061.',
        default_text='all scenes',
        needs='nuscenes',
    )
    keyframes_only: bool = argument(
        False, 'With --nuscenes: leave out the sweeps between keyframes.', needs='nuscenes'
    )
    sweeps: int = argument(120, 'With --synthetic: number of sweeps.', minimum=1, needs='scenario')
    seed: int = argument(
        0, 'With --synthetic: random seed of the drive.', minimum=0, needs='scenario'
    )
    bag: Path = argument(help='Folder to create.', flag='--out', metavar='BAG')
    storage: str = argument('mcap', 'File format.', choices=('mcap', 'sqlite3'))
    encoding: str = argument(
        'jpeg',
        'jpeg: images as they are in the source; bgr8: raw images.',
        choices=('jpeg', 'bgr8'),
    )
    compression: str = argument(
        'none',
        'Of the chunks of an MCAP file; pays with --encoding bgr8.',
        choices=('none', 'zstd'),
    )
    json: bool = json_output()

    def __post_init__(self) -> None:
        """Check the values and how they fit together."""
        super().__post_init__()
        require_one(self, 'drivelm', 'nuscenes', 'scenario', 'from_mcap')
        if self.drivelm is not None and self.images is None:
            raise ConfigError('--images is missing: with --drivelm name the folder of samples/')


MAKE_BAG = Verb(
    name='make-bag',
    help='make a rosbag2 of six cameras from DriveLM, nuScenes or a bag, or a synthetic one',
    examples=MAKE_BAG_EXAMPLES,
    options=MakeBagOptions,
    run='p2d_node.cli.make_bag:run',
)


@dataclass(frozen=True, kw_only=True)
class ReplayOptions(Options):
    """Play a rosbag2 over DDS, reliable, with the transport profile that ships."""

    bag: Path = argument(help="Folder of the rosbag2, or a file of Foxglove's nuscenes2mcap.")
    rate: float = argument(1.0, 'Speed, as a multiple of real time.', above=0.0, maximum=1000.0)
    loop: bool = argument(False, 'Start again at the end.')
    clock: bool = argument(False, "Publish the bag's time on /clock.")
    wait_s: float = argument(
        10.0,
        'Longest wait in seconds for a subscriber to every image topic.',
        flag='--wait',
        metavar='S',
        minimum=0.0,
        maximum=86400.0,
    )
    duration_s: float | None = duration()
    json: bool = json_output()


REPLAY = Verb(
    name='replay',
    help='play a rosbag2',
    examples=REPLAY_EXAMPLES,
    options=ReplayOptions,
    run='p2d_node.cli.replay:run',
    ends_with_ros=True,
)
