"""Scenarios come in; a folder in the nuScenes format, with DriveLM's questions, goes out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from p2d_node.bags.writing import NO_ROOM_REMEDY
from p2d_node.durable_files import write_faults
from p2d_node.errors import ConfigError

from p2d_sim.cameras import FULL_HEIGHT_PX, FULL_WIDTH_PX
from p2d_sim.drivelm_json import write_drivelm
from p2d_sim.limits import check_seed, check_size
from p2d_sim.nuscenes_scene import KEYFRAME_PERIOD_S, NamedScene, SceneWriter
from p2d_sim.nuscenes_tables import add_shared_rows, NuscenesTables
from p2d_sim.scenarios import DURATION_S, make_scenario
from p2d_sim.scenes import make_scene

VERSION = 'v1.0-mini'


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderOptions:
    """What to write into the folder.

    Attributes:
        scenarios: Names of scenarios, one scene each.
        random_scenes: Number of scenes after them, as p2d-mini is trained on.
        seed: Of the first scene; the next scenes have the next seeds. Training never uses seeds
            of `HELD_OUT_SEED` or more.
        duration_s: Length of each scene.
        height: Of the images, pixels.
        width: Of the images, pixels.
    """

    scenarios: tuple[str, ...] = ()
    random_scenes: int = 0
    seed: int = 0
    duration_s: float = DURATION_S
    height: int = FULL_HEIGHT_PX
    width: int = FULL_WIDTH_PX

    def __post_init__(self) -> None:
        """Check the values."""
        if self.random_scenes < 0:
            raise ConfigError(f'random_scenes: got {self.random_scenes}, allowed: 0 or more')
        if not self.scenarios and not self.random_scenes:
            raise ConfigError('scenarios: got none, allowed: one or more, or random_scenes')
        if not KEYFRAME_PERIOD_S <= self.duration_s <= DURATION_S:
            raise ConfigError(
                f'duration_s: got {self.duration_s:g}, allowed: {KEYFRAME_PERIOD_S:g} to '
                f'{DURATION_S:g} seconds'
            )
        check_seed(self.seed)
        check_size(self.height, self.width)


def write_nuscenes_folder(root: Path, options: FolderOptions) -> Iterator[int]:
    """Write tables, images and `drivelm.json`; yields the number of images so far.

    Args:
        root: Folder to create; an existing one must be empty.
        options: What to write.

    Raises:
        ConfigError: The folder is not empty, or cannot be written.
    """
    with write_faults(f'root: {root}', NO_ROOM_REMEDY):
        if root.exists() and any(root.iterdir()):
            raise ConfigError(f'root: {root} exists already; remove it or name another folder')
        yield from _write_folder(root, options)


def _write_folder(root: Path, options: FolderOptions) -> Iterator[int]:
    size = {'height': options.height, 'width': options.width}
    tables, drivelm = NuscenesTables(), {}
    sensors = add_shared_rows(tables, **size)
    count = 0
    for named in _make_scenes(options):
        writer = SceneWriter(root, tables, sensors, named, **size)
        for written in writer.write(options.duration_s):
            count += written
            yield count
        drivelm[writer.scene_token] = writer.drivelm
    tables.write(root / VERSION)
    write_drivelm(root / 'drivelm.json', drivelm)


def _make_scenes(options: FolderOptions) -> Iterator[NamedScene]:
    """Yield the named scenarios, then the random scenes; each has the next seed."""
    kinds = [*options.scenarios, *['random'] * options.random_scenes]
    for number, kind in enumerate(kinds):
        seed = options.seed + number
        random = number >= len(options.scenarios)
        scene = make_scene(seed) if random else make_scenario(kind, seed)
        yield NamedScene(number=number, kind=kind, scene=scene)
