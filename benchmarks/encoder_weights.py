"""Compares number formats of the vision encoder in torch on a CPU: time, kept tokens, answers.

Each format encodes the sweeps of drawn drives, in turns. One language model in float32 answers
about the visual tokens of all formats, so that only the encoder differs.

    tools/run.sh .venv "" python benchmarks/encoder_weights.py --threads 1
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
import itertools
import json
import statistics
import sys
from typing import Any

from p2d_node.bags.records import to_frame_set
from p2d_node.benchmarks.drafts import DRIVE_QUESTIONS
from p2d_node.benchmarks.measuring import describe_machine
from p2d_node.cli.bench_drafts import SCENARIOS, SEED
from p2d_node.cli.synthetic import draw_images
from p2d_node.config import DriveConfig, EncoderConfig
from p2d_node.library_settings import prepare_libraries
from p2d_node.pipeline import DrivingPipeline
from p2d_node.records import DrivingAnswer, FrameSet, NUSCENES_CAMERAS
import torch

PERIOD_MS = 1000.0
BASELINE = 'float32'
FORMATS = {BASELINE: ('float32', 'as_is'), 'bfloat16': ('bfloat16', 'as_is')} | {
    'int8': ('float32', 'int8')
}
"""Name to `dtype` and `encoder.weights`."""


def make_pipeline(model: str, dtype: str, encoder_weights: str) -> DrivingPipeline:
    """Return a pipeline on the CPU without drafts."""
    encoder = EncoderConfig(backend='torch', weights=encoder_weights)
    return DrivingPipeline.from_config(
        DriveConfig(model=model, device='cpu', dtype=dtype, encoder=encoder, drafts='none')
    )


def draw_sweeps(num_sweeps: int) -> Iterator[FrameSet]:
    """Yield the sweeps of all scenarios, one a second."""
    for scenario in SCENARIOS:
        images = draw_images(scenario, num_sweeps, period_ms=PERIOD_MS, seed=SEED)
        for _ in range(num_sweeps):
            yield to_frame_set(itertools.islice(images, len(NUSCENES_CAMERAS)))


def count_kept_alike(answer: DrivingAnswer, baseline: DrivingAnswer) -> int:
    """Return how many of the tokens that the baseline keeps are kept."""
    return sum(
        len(set(kept.tolist()) & set(baseline.keep_indices[camera].tolist()))
        for camera, kept in answer.keep_indices.items()
    )


class Samples:
    """What one format measured."""

    def __init__(self) -> None:
        self.encode_ms: list[float] = []
        self.kept_alike = self.kept = self.answers = self.answers_differ = 0

    def add(self, answers: list[DrivingAnswer], baseline: list[DrivingAnswer]) -> None:
        """Compare the answers about one sweep with those of the baseline."""
        self.kept += sum(map(len, answers[0].keep_indices.values()))
        self.kept_alike += count_kept_alike(answers[0], baseline[0])
        self.answers += len(answers)
        self.answers_differ += sum(
            a.answer != b.answer for a, b in zip(answers, baseline, strict=True)
        )

    def to_row(self) -> dict[str, Any]:
        """Return the row as JSON data."""
        return {
            'encode_ms': statistics.median(self.encode_ms),
            'kept_alike': self.kept_alike / self.kept,
            'answers': self.answers,
            'answers_differ': self.answers_differ,
        }


def main() -> int:
    """Measure all formats; print the report as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--model', default='p2d-mini')
    parser.add_argument('--sweeps', type=int, default=8, help='of each drive')
    parser.add_argument('--threads', type=int, default=1)
    options = parser.parse_args()
    pipelines = {name: make_pipeline(options.model, *f) for name, f in FORMATS.items()}
    torch.set_num_threads(options.threads)
    samples = {name: Samples() for name in FORMATS}
    for sweep in draw_sweeps(options.sweeps):
        baseline: list[DrivingAnswer] = []
        for name, pipeline in pipelines.items():
            (timed,) = pipeline.answer(sweep, DRIVE_QUESTIONS[:1])
            samples[name].encode_ms.append(timed.times.encode_ms)
            tokens = pipeline.encode(sweep).float()
            answers = pipelines[BASELINE].answer_tokens(sweep, tokens, DRIVE_QUESTIONS)
            baseline = baseline or answers
            samples[name].add(answers, baseline)
    rows = {name: sample.to_row() for name, sample in samples.items()}
    for row in rows.values():
        row['faster'] = rows[BASELINE]['encode_ms'] / row['encode_ms']
    report = {
        'benchmark': 'number formats of the vision encoder, wall time of the stage, milliseconds',
        **describe_machine('cpu'),
        'model': options.model,
        'sweeps': options.sweeps * len(SCENARIOS),
        'formats': rows,
    }
    print(json.dumps(report, indent=2))
    return 0


if __name__ == '__main__':
    prepare_libraries()
    sys.exit(main())
