"""Makes a rosbag2 of six cameras from DriveLM, nuScenes, another bag, or the simulator."""

from __future__ import annotations

from collections.abc import Iterator
import json

from p2d_node.bags.camera_images import read_bag_images
from p2d_node.bags.drivelm import read_drivelm_images
from p2d_node.bags.nuscenes import NuscenesSelection, read_nuscenes_images
from p2d_node.bags.records import BagImage
from p2d_node.bags.writing import write_bag
from p2d_node.cli.screen import InertConsole, say
from p2d_node.cli.synthetic import draw_images
from p2d_node.cli.verbs.bags import MakeBagOptions
from p2d_node.errors import ConfigError
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


def run(options: MakeBagOptions) -> int:
    """Write the bag and report its contents; returns the exit code."""
    columns = (SpinnerColumn(), TextColumn('{task.completed} images'), TimeElapsedColumn())
    console = InertConsole(stderr=True)
    silent = options.json or not console.is_terminal
    with Progress(*columns, transient=True, console=console, disable=silent) as progress:
        task = progress.add_task('write', total=None)

        def counted() -> Iterator[BagImage]:
            for image in _images(options):
                yield image
                progress.advance(task)

        count = write_bag(
            counted(),
            options.bag,
            storage=options.storage,
            encoding=options.encoding,
            compression=options.compression,
            source=options.from_mcap,
        )
    result = {'bag': str(options.bag), 'images': count, 'storage': options.storage}
    if options.json:
        print(json.dumps(result))
    else:
        say(f'{options.bag}: {count} images ({options.storage})')
    return 0


def _images(options: MakeBagOptions) -> Iterator[BagImage]:
    if options.scenario is not None:
        return draw_images(options.scenario, options.sweeps, seed=options.seed)
    if options.from_mcap is not None:
        return read_bag_images(options.from_mcap, parameter='from_mcap')
    if options.nuscenes is not None:
        selection = NuscenesSelection(
            version=options.version, scene=options.scene, keyframes_only=options.keyframes_only
        )
        return read_nuscenes_images(options.nuscenes, selection)
    if options.drivelm is None or options.images is None:
        raise ConfigError('drivelm, images: needed both')
    return read_drivelm_images(options.drivelm, options.images)
