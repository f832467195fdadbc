"""Measures the whole node over ROS: from the first frame of a sweep to its answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, fields
import json
import math
from pathlib import Path
import sys
import tempfile
from typing import Any, TYPE_CHECKING

from p2d_node.bags.camera_images import find_camera_topics, learn_exposure_offsets
from p2d_node.bags.reading import BagReader
from p2d_node.bags.writing import write_bag
from p2d_node.benchmarks.measuring import describe_machine, percentile
from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.checkpoints.devices import choose_device, default_num_threads
from p2d_node.checkpoints.model_folder import model_folder
from p2d_node.cli.bench_table import print_figures
from p2d_node.cli.synthetic import draw_images
from p2d_node.cli.verbs.bench import NodeOptions
from p2d_node.config import (
    CameraConfig,
    DEFAULT_QUESTIONS,
    DriveConfig,
    EncoderConfig,
    NUSCENES_EXPOSURE_OFFSETS_MS,
    SyncConfig,
)
from p2d_node.errors import P2dError
from p2d_node.language_model.families.registry import find_family
from p2d_node.records import StageTimes

if TYPE_CHECKING:
    from p2d_node.ros.answer_watcher import AnswerWatcher

SHARES = (0.5, 0.9, 0.95, 1.0)
LOG_FILE = 'node.log'
LINGER_S = 1.5
"""The node counts complete sweeps in its diagnostics, once a second."""

LOG_CHARACTERS = 600
"""Of the end of the log, in the message about a node that gave no answer."""


def run(options: NodeOptions) -> int:
    """Measure and print; returns the exit code."""
    with model_folder(options.model) as folder:
        find_family(open_checkpoint(folder))
    # The live table goes to stderr: stdout is for the figures.
    with tempfile.TemporaryDirectory(prefix='p2d-bench-') as name, redirect_stdout(sys.stderr):
        folder = Path(name)
        bag = options.bag or _write_bag(options, folder / 'bag')
        topics, cameras = _cameras_of(bag)
        config = _config(options, cameras)
        num_complete, watcher = _play(bag, topics, config, folder)
        timings = [timing for timing in watcher.timings if _is_finite(timing)]
        if not (timings[options.warm_up :] and watcher.answers):
            raise P2dError(
                f'no sweep was answered after {options.warm_up} to warm up, and {num_complete} '
                f'were complete; the log of the node ends with: {_end_of(folder / LOG_FILE)}'
            )
    report = _to_report(options, config, timings, watcher.answers[-1], num_complete)
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)
    return 0


def _play(
    bag: Path, topics: Collection[str], config: DriveConfig, folder: Path
) -> tuple[int, AnswerWatcher]:
    """Play the bag to a node; returns its number of complete sweeps, and the watcher."""
    from p2d_node.cli.node_process import drive_node, isolate, play_and_watch  # needs ROS

    isolate()
    with drive_node(_parameters(config), folder, folder / LOG_FILE) as process:
        watcher, _ = play_and_watch(
            bag, process, 1.0, pictures=False, topics=topics, linger_s=LINGER_S
        )
    complete = watcher.status_value('synchroniser', 'complete') or ''
    return int(complete) if complete.isdecimal() else 0, watcher


def _end_of(log: Path) -> str:
    return log.read_text(encoding='utf-8', errors='replace').strip()[-LOG_CHARACTERS:]


def _write_bag(options: NodeOptions, bag: Path) -> Path:
    write_bag(draw_images('cruise', options.sweeps, period_ms=1000.0 / options.hz), bag)
    return bag


def _cameras_of(bag: Path) -> tuple[list[str], dict[str, CameraConfig]]:
    """Return the bag's topics of camera images, and the cameras that subscribe to them."""
    tolerance_ms = SyncConfig().tolerance_ms
    with BagReader(bag) as reader:
        topics = find_camera_topics(reader)
        offsets_ms = learn_exposure_offsets(
            reader, topics, NUSCENES_EXPOSURE_OFFSETS_MS, tolerance_ms
        )
    cameras = {
        name: CameraConfig(
            topic=f'/{topic.name.lstrip("/")}',
            transport=topic.transport,
            exposure_offset_ms=offsets_ms[name],
        )
        for name, topic in topics.items()
    }
    return [topic.name for topic in topics.values()], cameras


def _config(options: NodeOptions, cameras: Mapping[str, CameraConfig]) -> DriveConfig:
    """Return the settings of the node; device and threads are explicit, for the report."""
    questions = [DEFAULT_QUESTIONS[i % len(DEFAULT_QUESTIONS)] for i in range(options.questions)]
    return DriveConfig(
        model=options.model,
        device=str(choose_device(options.device)),
        num_threads=default_num_threads() if options.num_threads is None else options.num_threads,
        cameras=cameras,
        retention_ratio=dict.fromkeys(cameras, options.retention_ratio),
        max_new_tokens=options.max_new_tokens,
        questions=tuple(questions),
        encoder=EncoderConfig(backend=options.encoder_backend),
    )


def _parameters(config: DriveConfig) -> dict[str, Any]:
    return {
        'model': config.model,
        'device': config.device,
        'num_threads': config.num_threads,
        'cameras': {name: asdict(camera) for name, camera in config.cameras.items()},
        'retention_ratio': {name: config.retention_ratio_of(name) for name in config.cameras},
        'max_new_tokens': config.max_new_tokens,
        'questions': list(config.questions),
        'encoder': {'backend': config.encoder.backend},
    }


def _is_finite(timing: Any) -> bool:
    """Tell whether a message has times: any node of the domain may publish one."""
    return all(math.isfinite(getattr(timing, stage.name)) for stage in fields(StageTimes))


def _to_report(
    options: NodeOptions,
    config: DriveConfig,
    timings: Sequence[Any],
    answer: Any,
    num_complete: int,
) -> dict[str, Any]:
    measured = timings[options.warm_up :]
    stages = {
        stage.name: {
            f'p{round(100 * share)}': percentile([getattr(t, stage.name) for t in measured], share)
            for share in SHARES
        }
        for stage in fields(StageTimes)
    }
    sweeps_per_s = _sweeps_per_s(timings, options.warm_up)
    return {
        'benchmark': 'latency of the node, milliseconds per sweep, over DDS on one machine',
        **describe_machine(config.device),
        'torch_threads': config.num_threads,
        'model': answer.model,
        'encoder': answer.encoder,
        'tokens_kept': sum(answer.tokens_kept),
        'tokens_total': sum(answer.tokens_total),
        'questions': options.questions,
        'max_new_tokens': options.max_new_tokens,
        'sweeps_complete': num_complete,
        'sweeps_answered': len(measured),
        'warm_up': options.warm_up,
        'sweeps_per_s': sweeps_per_s,
        'answers_per_s': sweeps_per_s * options.questions,
        'stages': stages,
    }


def _sweeps_per_s(timings: Sequence[Any], warm_up: int) -> float:
    """Return the rate of answered sweeps, from the last one to warm up to the last one.

    Without one to warm up, from the first frame of the first sweep.

    Raises:
        P2dError: No time passed between them.
    """
    first, last = timings[max(0, warm_up - 1)], timings[-1]
    start_ms = _published_ms(first) - (0.0 if warm_up else first.total_ms)
    duration_ms = _published_ms(last) - start_ms
    if not duration_ms > 0:
        raise P2dError(
            f'the answers came within {duration_ms:g} ms; end other nodes that publish '
            '/p2d/timing in this ROS domain, or choose another ROS_DOMAIN_ID'
        )
    return 1000.0 * (len(timings) - warm_up) / duration_ms


def _published_ms(timing: Any) -> float:
    """Return when the answers were published, on the ROS clock."""
    stamp = timing.header.stamp
    return float(stamp.sec * 1e3 + stamp.nanosec / 1e6 + timing.age_at_publish_ms)


def _print(report: dict[str, Any]) -> None:
    rows = [
        (stage.removesuffix('_ms'), *(f'{value:.1f}' for value in values.values()))
        for stage, values in report['stages'].items()
    ]
    print_figures(
        ('stage', *(f'p{round(100 * share)}' for share in SHARES)),
        rows,
        title=f'{report["model"]} on {report["encoder"]}: ms per sweep',
        caption=f'{report["tokens_kept"]} of {report["tokens_total"]} tokens, '
        f'{report["questions"]} questions; {report["sweeps_answered"]} sweeps after '
        f'{report["warm_up"]}, of {report["sweeps_complete"]} complete ones; '
        f'{report["sweeps_per_s"]:.2f} sweeps/s, {report["answers_per_s"]:.2f} answers/s; '
        f'{report["device"]}, {report["torch_threads"]} CPU threads',
    )
