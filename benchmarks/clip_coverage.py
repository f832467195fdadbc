"""How well the kept tokens of clips stand for the dropped ones: over the clip, and frame by frame.

Clips of drawn drives at 10 Hz while the vehicle drives, and of the same moments while the world
stands still, on p2d-mini's features; every method keeps the same number of tokens:

    python benchmarks/clip_coverage.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
import statistics

import numpy as np
from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.checkpoints.model_folder import shipped_model_folder
from p2d_node.config import DriveConfig, SHIPPED_MODEL
from p2d_node.language_model.families.registry import load_vision_module
from p2d_node.preprocessing import ImageProcessing, normalize, resize_frame
from p2d_node.records import DecodedFrame, NUSCENES_CAMERAS
from p2d_node.token_selection import SweepSelector
from p2d_node.views import SeparateViews
from p2d_sim.scenarios import SCENARIOS
from p2d_sim.sweeps import World
from token_coverage import coverage_of
import torch
from torch import nn, Tensor

ROOT = Path(__file__).resolve().parents[1]
RETENTION_RATIO = 0.1
NUM_FRAMES = 4
PERIOD_S = 0.1
TIME_S = 7.0
"""Of the newest frame: one second after the event of every scenario."""

NEAR = 0.02
"""Two kept tokens of one camera with a smaller distance, 1 - cosine, repeat each other."""

METHODS = (
    ('tfps', 'clip'),
    ('tfps', 'frame'),
    ('tfps_motion', 'clip'),
    ('dart', 'clip'),
    ('random', 'clip'),
    ('grid', 'clip'),
)


class ClipDrawer:
    """Draws clips and encodes them."""

    def __init__(self) -> None:
        """Load the encoder of p2d-mini."""
        folder = shipped_model_folder()
        self._processing = ImageProcessing.from_folder(folder)
        self._encoder: nn.Module = load_vision_module(open_checkpoint(folder))

    @torch.inference_mode()
    def draw(self, world: World, times_s: list[float]) -> Tensor:
        """Return the tokens of a clip, camera by camera: float [cameras x frames, tokens, D]."""
        sweeps = [self._encode(world, time_s) for time_s in times_s]
        return torch.stack(sweeps, dim=1).flatten(0, 1)

    def _encode(self, world: World, time_s: float) -> Tensor:
        views = [np.ascontiguousarray(world.view(n, time_s).pixels) for n in NUSCENES_CAMERAS]
        frames = [
            DecodedFrame(n, 0, v, 'bgr') for n, v in zip(NUSCENES_CAMERAS, views, strict=True)
        ]
        resized = [resize_frame(frame, self._processing) for frame in frames]
        tokens: Tensor = self._encoder(normalize(resized, self._processing, torch.device('cpu')))
        return tokens


def measure(tokens: Tensor, method: str, scope: str) -> dict[str, float]:
    """Return the figures of one method on one clip."""
    side = round(tokens.shape[1] ** 0.5)
    cameras = tuple(name for name in NUSCENES_CAMERAS for _ in range(NUM_FRAMES))
    config = DriveConfig(
        retention_ratio=dict.fromkeys(NUSCENES_CAMERAS, RETENTION_RATIO),
        selector=method,
        selection_scope=scope,
    )
    kept = SweepSelector(SeparateViews((side, side), padded=False)).select(tokens, cameras, config)
    clips = tokens.reshape(len(NUSCENES_CAMERAS), -1, tokens.shape[2])
    coverage = coverage_of(clips, kept)
    newest = torch.cat([indices >= clips.shape[1] * 3 // 4 for indices in kept])
    return {
        'kept': sum(coverage.num_kept),
        'worst': coverage.worst_distance,
        'mean': coverage.mean_distance,
        'repeated': repeated_share(clips, kept),
        'of_newest_frame': float(newest.float().mean()),
    }


def repeated_share(clips: Tensor, kept: list[Tensor]) -> float:
    """Return the share of kept tokens that an earlier kept one of their camera repeats."""
    num_repeated = 0
    for tokens, indices in zip(clips, kept, strict=True):
        unit = nn.functional.normalize(tokens[indices].double(), dim=-1)
        near = (1.0 - unit @ unit.T < NEAR).tril(diagonal=-1)
        num_repeated += int(near.any(dim=1).sum())
    return num_repeated / sum(map(len, kept))


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks/results/clip_coverage.json')
    args = parser.parse_args()
    drawer = ClipDrawer()
    driving = [TIME_S - PERIOD_S * back for back in range(NUM_FRAMES - 1, -1, -1)]
    report = {
        'benchmark': 'coverage of clips',
        'model': SHIPPED_MODEL,
        'retention_ratio': RETENTION_RATIO,
        'num_frames': NUM_FRAMES,
        'period_ms': 1000 * PERIOD_S,
        'near': NEAR,
    }
    for motion, times_s in (('driving', driving), ('standing', [TIME_S] * NUM_FRAMES)):
        worlds = (World(scenario, seed) for seed, scenario in enumerate(SCENARIOS))
        clips = [drawer.draw(world, times_s) for world in worlds]
        report[motion] = {
            'clips': len(clips),
            'methods': {
                f'{method} {scope}': mean_of([measure(clip, method, scope) for clip in clips])
                for method, scope in METHODS
            },
        }
    args.out.write_text(json.dumps(report, indent=2) + '\n')
    print(json.dumps(report, indent=2))


def mean_of(figures: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each figure."""
    return {name: statistics.fmean(item[name] for item in figures) for name in figures[0]}


if __name__ == '__main__':
    main()
