"""Measures the whole node over ROS: from the first frame of a sweep to its answers."""

from __future__ import annotations

from contextlib import redirect_stdout
from dataclasses import fields
import json
from pathlib import Path
import sys
import tempfile
from typing import Any

from p2d_node.bags.writing import write_bag
from p2d_node.benchmarks.measuring import describe_machine, percentile
from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.checkpoints.devices import choose_device, default_num_threads
from p2d_node.checkpoints.model_folder import model_folder
from p2d_node.cli.bench_table import print_figures
from p2d_node.cli.synthetic import draw_images
from p2d_node.cli.verbs.bench import NodeOptions
from p2d_node.config import DEFAULT_QUESTIONS, DriveConfig, EncoderConfig
from p2d_node.errors import ConfigError, P2dError
from p2d_node.language_model.families.registry import find_family
from p2d_node.records import StageTimes

SHARES = (0.5, 0.9, 0.95, 1.0)


def run(options: NodeOptions) -> int:
    """Measure and print; returns the exit code."""
    if options.bag is not None and not options.bag.exists():
        raise ConfigError(f'bag: got {str(options.bag)!r}, which does not exist')
    config = _config(options)
    with model_folder(options.model) as folder:
        find_family(open_checkpoint(folder))
    from p2d_node.cli.node_process import drive_node, isolate, play_and_watch  # needs ROS

    # The live table goes to stderr: stdout is for the figures.
    with tempfile.TemporaryDirectory(prefix='p2d-bench-') as name, redirect_stdout(sys.stderr):
        isolate()
        folder = Path(name)
        bag = options.bag or _write_bag(options, folder / 'bag')
        log = folder / 'node.log'
        with drive_node(_parameters(config), folder, log) as process:
            watcher, _ = play_and_watch(bag, process, 1.0, pictures=False)
        timings, answers = watcher.timings[options.warm_up :], watcher.answers
        if not timings:
            said = log.read_text(encoding='utf-8', errors='replace').strip()[-600:]
            raise P2dError(
                f'no sweep was answered after {options.warm_up} to warm up; the log of the node '
                f'ends with: {said}'
            )
    report = _to_report(options, config, timings, answers)
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)
    return 0


def _write_bag(options: NodeOptions, bag: Path) -> Path:
    write_bag(draw_images('cruise', options.sweeps, period_ms=1000.0 / options.hz), bag)
    return bag


def _config(options: NodeOptions) -> DriveConfig:
    """Return the settings of the node; device and threads are explicit, for the report."""
    questions = [DEFAULT_QUESTIONS[i % len(DEFAULT_QUESTIONS)] for i in range(options.questions)]
    return DriveConfig(
        model=options.model,
        device=str(choose_device(options.device)),
        num_threads=default_num_threads() if options.num_threads is None else options.num_threads,
        retention_ratio=dict.fromkeys(DriveConfig().cameras, options.retention_ratio),
        max_new_tokens=options.max_new_tokens,
        questions=tuple(questions),
        encoder=EncoderConfig(backend=options.encoder_backend),
    )


def _parameters(config: DriveConfig) -> dict[str, Any]:
    return {
        'model': config.model,
        'device': config.device,
        'num_threads': config.num_threads,
        'retention_ratio': {name: config.retention_ratio_of(name) for name in config.cameras},
        'max_new_tokens': config.max_new_tokens,
        'questions': list(config.questions),
        'encoder': {'backend': config.encoder.backend},
    }


def _to_report(
    options: NodeOptions, config: DriveConfig, timings: list[Any], answers: list[Any]
) -> dict[str, Any]:
    stages = {
        stage.name: {
            f'p{round(100 * share)}': percentile([getattr(t, stage.name) for t in timings], share)
            for share in SHARES
        }
        for stage in fields(StageTimes)
    }
    return {
        'benchmark': 'latency of the node, milliseconds per sweep, over DDS on one machine',
        **describe_machine(config.device),
        'torch_threads': config.num_threads,
        'model': answers[-1].model,
        'encoder': answers[-1].encoder,
        'tokens_kept': sum(answers[-1].tokens_kept),
        'tokens_total': sum(answers[-1].tokens_total),
        'questions': options.questions,
        'max_new_tokens': options.max_new_tokens,
        'sweeps_answered': len(timings),
        'warm_up': options.warm_up,
        'stages': stages,
    }


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
        f'{report["warm_up"]}; {report["device"]}, {report["torch_threads"]} CPU threads',
    )
