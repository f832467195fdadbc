"""Measures how fast p2d_sim draws sweeps, for training and at full size.

    PYTHONPATH=ros2_ws/src/p2d_sim python benchmarks/sim_rendering.py [--json]

The figures are CPU time of one thread per sweep of six views, with scene generation and id maps.
Every sweep is another scene. A warm-up fills the caches of meshes and textures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
import json
import platform
import statistics
import time

import cv2
from p2d_sim.cameras import CAMERAS
from p2d_sim.drawing import render_sweep
from p2d_sim.scenes import make_scene
from p2d_sim.sweeps import METRES_PER_PX
from p2d_sim.traffic import snapshot_at
from p2d_sim.training.samples import make_sample

WARM_UP = 20
CASES: dict[str, Callable[[int], object]] = {
    '168 x 168': lambda seed: _render(seed, 168, 168, 0.15),
    'training sample, 336 px shrunk to 168, augmented, labelled': lambda seed: make_sample(
        seed, 168, 14
    ),
    '1600 x 900': lambda seed: _render(seed, 900, 1600, METRES_PER_PX),
}


def _render(seed: int, height: int, width: int, metres_per_px: float) -> object:
    snapshot = snapshot_at(make_scene(seed), 0.0)
    return render_sweep(
        snapshot, list(CAMERAS.values()), height, width, metres_per_px=metres_per_px
    )


def measure(num_sweeps: int) -> dict[str, object]:
    """Return milliseconds of CPU time per sweep for every case."""
    cv2.setNumThreads(1)
    rows = []
    for name, draw in CASES.items():
        times_ms = []
        for seed in range(-WARM_UP, num_sweeps):
            start_s = time.thread_time()
            draw(seed + WARM_UP)
            if seed >= 0:
                times_ms.append(1000.0 * (time.thread_time() - start_s))
        median = statistics.median(times_ms)
        row = {'case': name, 'median_ms': round(median, 2), 'per_second': round(1000 / median, 1)}
        rows.append({**row, 'p95_ms': round(statistics.quantiles(times_ms, n=20)[-1], 2)})
    machine = f'{platform.machine()}, one core, Python {platform.python_version()}'
    return {'machine': machine, 'sweeps': num_sweeps, 'warm_up': WARM_UP, 'rows': rows}


def main() -> None:
    """Print the measurements as a table or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--sweeps', type=int, default=60, help='sweeps to draw per case (default: %(default)s)'
    )
    parser.add_argument('--json', action='store_true', help='print the result as JSON')
    args = parser.parse_args()
    result = measure(args.sweeps)
    if args.json:
        print(json.dumps(result, indent=2))
        return
    for row in result['rows']:
        print('{case:60}{median_ms:9.2f} ms, p95 {p95_ms:.2f}, {per_second:.1f}/s'.format(**row))


if __name__ == '__main__':
    main()
