"""Runs the drive node on drawn cameras with random faults, and reports how it took them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
import json
from pathlib import Path
import random
import tempfile
import threading
import time

from p2d_node.bags.records import image_topic
from p2d_node.benchmarks.measuring import describe_machine
from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.checkpoints.model_folder import model_folder
from p2d_node.cli.node_process import drive_node, isolate, open_log
from p2d_node.cli.screen import InertConsole, say
from p2d_node.cli.synthetic import draw_images
from p2d_node.cli.verbs.soak import SoakOptions
from p2d_node.config import DriveConfig, NUSCENES_EXPOSURE_OFFSETS_MS
from p2d_node.durable_files import write_faults, write_json
from p2d_node.errors import P2dError
from p2d_node.records import NUSCENES_CAMERAS
from p2d_node.ros.quiet_node import ToolNode
from p2d_node.ros.spinning import spinning_node
from p2d_node.soak.callers import Callers
from p2d_node.soak.faults import Stage
from p2d_node.soak.faulty_cameras import FaultyCameras
from p2d_node.soak.observer import Observer
from p2d_node.soak.report import SoakResult, write_timeline
from p2d_node.soak.schedule import FaultResult, Schedule
import rclpy
from rclpy.node import Node
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

NUM_SWEEPS = 24
"""Drawn once and sent again and again: drawing at the rate of the cameras would take all cores."""

START_TIMEOUT_S = 300.0
LOG_FILE, PICTURE_FILE, REPORT_FILE = 'node.log', 'soak.png', 'soak.json'


def run(options: SoakOptions) -> int:
    """Run; returns 0 if all criteria hold, else 1."""
    with model_folder(options.model) as folder:
        open_checkpoint(folder)
    sweeps = _draw(options)
    with _out_faults(options):
        options.out.mkdir(parents=True, exist_ok=True)
        open_log(options.out / LOG_FILE).close()
    isolate()
    defaults = DriveConfig()
    parameters = {
        'model': options.model,
        'use_sim_time': False,
        'sync': {'deadline_ms': defaults.sync.deadline_ms},
        'max_sweep_s': defaults.max_sweep_s,
        'max_answer_age_ms': defaults.max_answer_age_ms,
    }
    with (
        tempfile.TemporaryDirectory(prefix='p2d-soak-') as folder_name,
        drive_node(parameters, Path(folder_name), options.out / LOG_FILE) as process,
        spinning_node('p2d_soak') as node,
        _stranger() as stranger,
    ):
        topics = {name: image_topic(name, 'jpeg') for name in NUSCENES_CAMERAS}
        cameras = FaultyCameras(
            node, topics, NUSCENES_EXPOSURE_OFFSETS_MS, sweeps, options.rate_hz
        )
        stage = Stage(
            cameras=cameras,
            callers=Callers(node),
            process=process,
            node=node,
            stranger=stranger,
            random=random.Random(options.seed),
        )
        start_s, result = _soak(options, stage, Observer(node, cameras))
    content = {**describe_machine('cpu'), **result.to_json()}
    with _out_faults(options):
        write_timeline(result, start_s, options.out / PICTURE_FILE)
        write_json(options.out / REPORT_FILE, content)
    if options.json:
        print(json.dumps(content, indent=2))
    else:
        _print_report(options, result)
    return 0 if all(criterion.holds for criterion in result.criteria) else 1


def _out_faults(options: SoakOptions) -> AbstractContextManager[None]:
    return write_faults(f'out: {options.out}', 'name another folder')


@contextmanager
def _stranger() -> Iterator[Node]:
    """Yield a node that is a DDS participant of its own."""
    context = rclpy.Context()
    rclpy.init(context=context)
    node = ToolNode('p2d_soak_stranger', context=context)
    try:
        yield node
    finally:
        node.destroy_node()
        rclpy.try_shutdown(context=context)


def _draw(options: SoakOptions) -> list[dict[str, bytes]]:
    height, width = options.size
    images = list(
        draw_images('lead-brakes', NUM_SWEEPS, seed=options.seed, height=height, width=width)
    )
    size = len(NUSCENES_CAMERAS)
    return [
        {image.camera: image.jpeg for image in images[start : start + size]}
        for start in range(0, len(images), size)
    ]


def _soak(options: SoakOptions, stage: Stage, observer: Observer) -> tuple[float, SoakResult]:
    schedule, stop = Schedule(stage, observer), threading.Event()
    stage.cameras.start()
    if not schedule.wait_until(lambda: bool(observer.answers), START_TIMEOUT_S):
        raise P2dError(f'the node gave no answer; see {options.out / LOG_FILE}')
    start_s, faults = time.monotonic(), []
    try:
        with _progress() as bars:
            task = bars.add_task('soak', total=None, counts='')
            for fault in schedule.run(start_s + 60.0 * options.minutes, stop.is_set):
                faults.append(fault)
                done = f'{len(faults)} faults, {len(observer.answers)} answers'
                bars.update(task, counts=done, description=_line(fault))
    except KeyboardInterrupt:
        stop.set()
    exit_code = stage.process.poll()
    schedule.wait_until(lambda: False, 6.0)  # the last callers still wait
    stage.cameras.stop()
    lost = stage.callers.count_lost()
    counts = stage.callers.counts
    return start_s, SoakResult(
        seconds=time.monotonic() - start_s,
        seed=options.seed,
        exit_code=exit_code,
        num_sweeps=stage.cameras.num_sweeps,
        answers=observer.answers,
        faults=faults,
        samples=schedule.samples,
        callers={name: counts[name] for name in ('asked', 'answered', 'told')} | {'lost': lost},
        max_answer_age_ms=DriveConfig().max_answer_age_ms,
    )


def _line(fault: FaultResult) -> str:
    shown = 'not shown' if fault.expected else 'no message expected'
    if fault.shown_after_s is not None:
        shown = f'shown after {fault.shown_after_s:.1f} s'
    recovered = 'no recovery'
    if fault.recovered_after_s is not None:
        recovered = f'recovery {fault.recovered_after_s:.1f} s'
    return f'{fault.kind} ({fault.camera}): {shown}, {recovered}'


def _progress() -> Progress:
    texts = ('{task.fields[counts]}', '{task.description}')
    return Progress(
        TimeElapsedColumn(), *map(TextColumn, texts), console=InertConsole(stderr=True)
    )


def _print_report(options: SoakOptions, result: SoakResult) -> None:
    console = InertConsole()
    faults = Table(title='faults', title_justify='left')
    for heading in ('fault', 'times', 'shown (s)', 'recovery (s)', 'gone (s)'):
        faults.add_column(heading, justify='left' if heading == 'fault' else 'right')
    for kind in sorted({fault.kind for fault in result.faults}):
        of_kind = [fault for fault in result.faults if fault.kind == kind]
        faults.add_row(
            kind,
            str(len(of_kind)),
            _worst([f.shown_after_s for f in of_kind]) if of_kind[0].expected else '',
            _worst([f.recovered_after_s for f in of_kind]),
            _worst([f.gone_after_s for f in of_kind]),
        )
    console.print(faults)
    title = f'{result.seconds / 60:.1f} minutes, seed {result.seed}'
    criteria = Table(title=title, title_justify='left')
    for heading in ('', 'value', 'allowed', 'holds'):
        criteria.add_column(heading)
    for criterion in result.criteria:
        criteria.add_row(
            criterion.what, criterion.value, criterion.limit, 'yes' if criterion.holds else 'NO'
        )
    console.print(criteria)
    say(f'{options.out / REPORT_FILE}, {options.out / PICTURE_FILE}, {options.out / LOG_FILE}')


def _worst(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return 'NEVER' if len(known) < len(values) else f'{max(known):.1f}'
