"""How well the tokens that each method keeps stand for the dropped ones, on p2d-mini's features.

Drawn sweeps of every scenario, and with --sample the real keyframes of a DriveLM file too:

    python benchmarks/coverage.py --sample ../shared/nuscenes_sample --plot docs/images/kept_by_method.png
"""  # noqa: E501

from __future__ import annotations

import argparse
from collections.abc import Iterator
import json
from pathlib import Path
import statistics

import cv2
import numpy as np
from p2d_node.benchmarks.selection import ADAPTIVE
from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.checkpoints.model_folder import shipped_model_folder
from p2d_node.config import SHIPPED_MODEL
from p2d_node.evaluation.answering import group_keyframes, load_sweep
from p2d_node.evaluation.drivelm_questions import read_questions
from p2d_node.image_decoding import decode_frame
from p2d_node.language_model.families.registry import load_vision_module
from p2d_node.preprocessing import ImageProcessing, normalize, resize_frame
from p2d_node.records import DecodedFrame, NUSCENES_CAMERAS
from p2d_node.token_selection import num_keep_from_retention
from p2d_node.token_selection.factory import SELECTORS
from p2d_sim.scenarios import SCENARIOS
from p2d_sim.sweeps import World
from token_coverage import compare_coverage, plot_kept_tokens
import torch

ROOT = Path(__file__).resolve().parents[1]
RETENTION_RATIO = 0.1
TIME_S = 7.0
"""Seconds from the start: one second after the event of every scenario."""

Views = list[DecodedFrame]


def draw_sweeps() -> Iterator[Views]:
    """Yield one sweep of every scenario."""
    for seed, scenario in enumerate(SCENARIOS):
        world = World(scenario, seed)
        views = ((name, world.view(name, TIME_S).pixels) for name in NUSCENES_CAMERAS)
        yield [
            DecodedFrame(name, 0, np.ascontiguousarray(pixels), 'bgr') for name, pixels in views
        ]


def read_sweeps(sample: Path) -> Iterator[Views]:
    """Yield the keyframes of a DriveLM file."""
    for keyframe in group_keyframes(read_questions(sample / 'drivelm_sample.json')):
        frames = load_sweep(keyframe, sample, NUSCENES_CAMERAS).frames
        yield [decode_frame(frame) for frame in frames.values()]


def main() -> None:
    """Measure, write the figures, draw the first sweep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--sample', type=Path)
    parser.add_argument('--plot', type=Path)
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks/results/coverage.json')
    args = parser.parse_args()
    folder = shipped_model_folder()
    processing = ImageProcessing.from_folder(folder)
    encoder = load_vision_module(open_checkpoint(folder))
    sources = {'drawn sweeps': draw_sweeps()}
    if args.sample is not None:
        sources['nuScenes keyframes'] = read_sweeps(args.sample)
    report = {'model': SHIPPED_MODEL, 'retention_ratio': RETENTION_RATIO}
    for source, sweeps in sources.items():
        figures: dict[str, list[tuple[float, float]]] = {}
        for views in sweeps:
            seen = [resize_frame(view, processing) for view in views]
            with torch.inference_mode():
                tokens = encoder(normalize(seen, processing, torch.device('cpu')))
            num_keep = [num_keep_from_retention(tokens.shape[1], RETENTION_RATIO)] * len(tokens)
            compared = compare_coverage(tokens, num_keep, (*SELECTORS, ADAPTIVE))
            for method, (coverage, _) in compared.items():
                pair = (coverage.mean_distance, coverage.worst_distance)
                figures.setdefault(method, []).append(pair)
            if args.plot is not None:
                kept = {method: indices for method, (_, indices) in compared.items()}
                draw(args.plot, kept, tokens.shape[1], views)
                args.plot = None
        report[source] = {
            'sweeps': len(next(iter(figures.values()))),
            'methods': {
                method: {
                    'mean': statistics.fmean(mean for mean, _ in pairs),
                    'worst': statistics.fmean(worst for _, worst in pairs),
                }
                for method, pairs in figures.items()
            },
        }
    args.out.write_text(json.dumps(report, indent=2) + '\n')
    print(json.dumps(report, indent=2))


def draw(path: Path, kept: dict[str, list[torch.Tensor]], num_tokens: int, views: Views) -> None:
    """Draw what each method keeps of one sweep."""
    images = [cv2.cvtColor(view.pixels, cv2.COLOR_BGR2RGB) for view in views]
    plot_kept_tokens(path, kept, num_tokens, view_names=NUSCENES_CAMERAS, images=images)


if __name__ == '__main__':
    main()
