"""The demo: a bag, the node in its own process, replay over DDS, a live table, a report."""

from __future__ import annotations

from pathlib import Path
import signal
import tempfile
from typing import Any, TYPE_CHECKING

from p2d_node.bags.drivelm import read_drivelm_images
from p2d_node.bags.records import BagImage
from p2d_node.bags.writing import write_bag
from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.checkpoints.model_folder import model_folder
from p2d_node.cli.demo_report import (
    write_answers,
    write_latency_plot,
    write_picture,
    write_story,
)
from p2d_node.cli.synthetic import draw_images
from p2d_node.cli.verbs.node import DemoOptions
from p2d_node.config import DriveConfig
from p2d_node.durable_files import write_faults
from p2d_node.errors import ConfigError, P2dError
from p2d_node.language_model.families.registry import find_family
from p2d_node.records import NUSCENES_CAMERAS

if TYPE_CHECKING:
    from p2d_node.ros.answer_watcher import AnswerWatcher

SAMPLE_FILE = 'drivelm_sample.json'
ANSWER_FILE = 'answers.jsonl'
LOG_FILE = 'node.log'
STORY_FILE = 'story.png'
OUTPUT_FILES = (ANSWER_FILE, STORY_FILE, 'kept_tokens.png', 'latency.png', LOG_FILE)

SCENARIO = 'lead-brakes'
NUM_SWEEPS = 10
PERIOD_MS = 1000.0
"""Ten seconds of driving; the vehicle ahead brakes after six."""


def run(options: DemoOptions) -> int:
    """Run the demo; returns 0 if every sweep that was played got its answers."""
    # SIGTERM must stop the node as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    untrained = _check(options)
    _prepare_output(options.out)
    from p2d_node.cli.node_process import drive_node, isolate, play_and_watch  # needs ROS

    isolate()
    with tempfile.TemporaryDirectory(prefix='p2d-demo-') as folder:
        bag = Path(folder) / 'bag'
        images = _demo_images(options)
        num_sweeps = write_bag(images, bag) // len(DriveConfig().cameras)
        with drive_node(_parameters(options), Path(folder), options.out / LOG_FILE) as node:
            watcher, played = play_and_watch(bag, node, options.rate, pictures=True)
    front = {i.stamp_ns: i.jpeg for i in images if i.camera == NUSCENES_CAMERAS[0]}
    write_story(front, watcher.answers, options.out / STORY_FILE)
    _report(options.out, watcher, num_sweeps)
    if untrained:
        print('The model is untrained (random weights): its answers are random words.')
    return 0 if played else 1


def _check(options: DemoOptions) -> bool:
    """Check what the node would refuse; returns whether the model's weights are random."""
    if options.sample is not None and not (options.sample / SAMPLE_FILE).is_file():
        raise ConfigError(f'sample: {options.sample} has no {SAMPLE_FILE}')
    with model_folder(options.model) as folder:
        checkpoint = open_checkpoint(folder)
        find_family(checkpoint)
        return checkpoint.untrained


def _prepare_output(out: Path) -> None:
    """Remove an earlier demo's files; anything else is not ours to touch.

    Raises:
        ConfigError: No files can be written there.
    """
    with write_faults(f'out: {out}', 'name another folder'):
        out.mkdir(parents=True, exist_ok=True)
        for name in OUTPUT_FILES:
            (out / name).unlink(missing_ok=True)
        (out / LOG_FILE).touch()


def _demo_images(options: DemoOptions) -> list[BagImage]:
    if options.sample is not None:
        print('cameras: real nuScenes keyframes (CC BY-NC-SA 4.0, Motional)')
        return list(read_drivelm_images(options.sample / SAMPLE_FILE, options.sample))
    print(f'cameras: drawn, scenario {SCENARIO}')
    return list(draw_images(SCENARIO, NUM_SWEEPS, period_ms=PERIOD_MS, seed=options.seed))


def _parameters(options: DemoOptions) -> dict[str, Any]:
    parameters = {'model': options.model, 'max_new_tokens': options.max_new_tokens}
    if options.retention_ratio is not None:
        ratios = dict.fromkeys(DriveConfig().cameras, options.retention_ratio)
        parameters['retention_ratio'] = ratios
    return parameters


def _report(out: Path, watcher: AnswerWatcher, num_sweeps: int) -> None:
    answers, timings = watcher.answers, watcher.timings
    if not answers:
        log = (out / LOG_FILE).read_text(encoding='utf-8', errors='replace').strip()
        raise P2dError(f'the node gave no answer; its log ends with: {log[-600:] or "nothing"}')
    write_answers(answers, out / ANSWER_FILE)
    write_latency_plot(
        timings, f'{answers[-1].model} on {answers[-1].encoder}', out / 'latency.png'
    )
    if watcher.picture is not None:
        write_picture(watcher.picture, out / 'kept_tokens.png')
    print(f'{len(answers)} answers about {len(timings)} of {num_sweeps} sweeps: {out}/')
