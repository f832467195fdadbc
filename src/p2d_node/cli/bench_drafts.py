"""`p2d bench drafts`: passes and time per answer, with drafts and without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import itertools
import json
from typing import Any

from p2d_node.bags.records import to_frame_set
from p2d_node.benchmarks.drafts import DRIVE_QUESTIONS, run_drives, run_random_model
from p2d_node.benchmarks.measuring import describe_machine
from p2d_node.benchmarks.plans import DraftBenchmark
from p2d_node.checkpoints.devices import choose_device
from p2d_node.cli.bench_table import print_figures
from p2d_node.cli.screen import InertConsole
from p2d_node.cli.synthetic import draw_images
from p2d_node.cli.verbs.bench import DraftsOptions
from p2d_node.config import DriveConfig
from p2d_node.pipeline import DrivingPipeline
from p2d_node.records import FrameSet, NUSCENES_CAMERAS
from rich.progress import Progress
import torch

SCENARIOS = ('cruise', 'lead-brakes', 'pedestrian-crosses', 'light-turns-red', 'cut-in')
SEED = 7

CAPTION = (
    'passes: of the decoder per answer, with the prefill of the question; later: without it; '
    'ms: from the prefilled views to the end of the answer; differ: answers that plain decoding '
    'does not give'
)


def run(options: DraftsOptions) -> int:
    """Measure and print; returns the exit code."""
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    plan = DraftBenchmark(
        answer_lengths=options.answer_lengths,
        agreements=options.agreements,
        rates_hz=options.rates_hz,
        num_sweeps=options.num_sweeps,
        max_draft_tokens=options.max_draft_tokens,
        device=str(choose_device(options.device)),
        dtype=options.dtype,
        warm_up=options.warm_up,
        repeats=options.repeats,
    )
    with Progress(console=InertConsole(stderr=True)) as progress:
        progress.add_task('measuring', total=None)
        report = {
            'benchmark': 'decoding with drafts, beside plain decoding in the same run, in turns',
            **describe_machine(plan.device),
            'dtype': plan.dtype,
            'max_draft_tokens': plan.max_draft_tokens,
            'warm_up': plan.warm_up,
            'repeats': plan.repeats,
            'questions': len(DRIVE_QUESTIONS),
            'scenarios': len(SCENARIOS),
            'sweeps_per_drive': plan.num_sweeps,
            'random_model': {
                'shape': plan.shape.name,
                'rows': list(run_random_model(plan)),
            },
            'drives': {'model': options.model, 'rows': list(_drives(plan, options.model))},
        }
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)
    return 0


def _drives(plan: DraftBenchmark, model: str) -> Iterator[dict[str, Any]]:
    pipeline = DrivingPipeline.from_config(
        DriveConfig(model=model, device=plan.device, dtype=plan.dtype, max_new_tokens=32)
    )
    for rate_hz in plan.rates_hz:
        drives = {name: _sweeps(name, rate_hz, plan.num_sweeps) for name in SCENARIOS}
        for row in run_drives(pipeline, drives, plan.max_draft_tokens):
            yield {'rate_hz': rate_hz, **row}
    pipeline.close()


def _sweeps(scenario: str, rate_hz: float, num_sweeps: int) -> Iterator[FrameSet]:
    images = draw_images(scenario, num_sweeps, period_ms=1000.0 / rate_hz, seed=SEED)
    for _ in range(num_sweeps):
        yield to_frame_set(itertools.islice(images, len(NUSCENES_CAMERAS)))


def _print(report: Mapping[str, Any]) -> None:
    model = report['random_model']
    print_figures(
        ('answer\ntokens', 'agree', 'drafts', *HEADINGS, 'than\nbaseline'),
        [
            (
                str(row['answer_tokens']),
                f'{row["agreement"]:.0%}',
                row['drafts'],
                *_cells(row),
                _times(row['speedup_over_baseline']),
            )
            for row in model['rows']
        ],
        title=f'Drafts, model {model["shape"]}, {report["dtype"]}, on {report["device"]}',
        caption=f'{CAPTION}; baseline: plain decoding in float32 without packed weights',
    )
    drives = report['drives']
    print_figures(
        ('Hz', 'drafts', *HEADINGS),
        [(f'{row["rate_hz"]:g}', row['drafts'], *_cells(row)) for row in drives['rows']],
        title=f'Drafts, drives of p2d_sim, model {drives["model"]}',
        caption=CAPTION,
    )


HEADINGS = (
    'tokens',
    'passes',
    'fewer',
    'later\npasses',
    'fewer',
    'accepted',
    'ms',
    'faster',
    'answers',
    'differ',
)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    accepted = row['accepted_share']
    return (
        f'{row["tokens_per_answer"]:.1f}',
        f'{row["passes_per_answer"]:.2f}',
        f'{row["fewer_passes"]:.2f}x',
        f'{row["later_passes_per_answer"]:.2f}',
        _times(row['fewer_later_passes']),
        '-' if accepted is None else f'{accepted:.0%}',
        f'{row["answer_ms"]:.1f}',
        f'{row["speedup"]:.2f}x',
        str(row['num_answers']),
        str(row['other_answers']),
    )


def _times(ratio: float | None) -> str:
    return '-' if ratio is None else f'{ratio:.2f}x'
