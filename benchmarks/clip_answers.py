"""How p2d-mini, which was trained on one frame, answers about clips: by selector and scope.

It draws keyframes at 2 Hz with questions, and evaluates each setting on them:

    python benchmarks/clip_answers.py
"""

from __future__ import annotations

import argparse
from contextlib import redirect_stdout
import io
import json
from pathlib import Path
import tempfile
from typing import Any

from p2d_node.benchmarks.measuring import describe_machine
from p2d_node.cli.main import main as p2d
from p2d_node.config import SHIPPED_MODEL
from p2d_sim.nuscenes_folder import FolderOptions, write_nuscenes_folder
from p2d_sim.scenarios import SCENARIOS

ROOT = Path(__file__).resolve().parents[1]
RETENTION_RATIO = 0.1
INTERVAL_MS = 500.0
DRIVES = FolderOptions(scenarios=tuple(SCENARIOS), seed=500, duration_s=8.0, height=450, width=800)
SETTINGS = (
    (1, 'tfps', 'clip'),
    (1, 'tfps_motion', 'clip'),
    (2, 'tfps', 'clip'),
    (4, 'tfps', 'clip'),
    (4, 'tfps', 'frame'),
    (4, 'tfps_motion', 'clip'),
)
"""Frames per camera, selector and scope."""


def evaluate(data: Path, folder: Path, num_frames: int, selector: str, scope: str) -> Any:
    """Return the report of `p2d evaluate` with these settings."""
    params = folder / 'params.yaml'
    values = {
        'frames_per_camera': num_frames,
        'frame_interval_ms': INTERVAL_MS,
        'selector': selector,
        'selection_scope': scope,
    }
    params.write_text(json.dumps({'/**': {'ros__parameters': values}}))
    words = ['evaluate', '--data', str(data / 'drivelm.json'), '--images', str(data)]
    words += ['--params-file', str(params), '--retention-ratio', str(RETENTION_RATIO)]
    words += ['--max-new-tokens', '16', '--tokenizer', 'treebank', '--json']
    printed = io.StringIO()
    with redirect_stdout(printed):
        code = p2d([*words, '--out', str(folder / f'{num_frames}-{selector}-{scope}')])
    if code:
        raise SystemExit(code)
    return json.loads(printed.getvalue())


def main() -> None:
    """Draw, evaluate and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks/results/clip_answers.json')
    args = parser.parse_args()
    report: dict[str, Any] = {
        'benchmark': 'answers about clips',
        'model': SHIPPED_MODEL,
        'retention_ratio': RETENTION_RATIO,
        'interval_ms': INTERVAL_MS,
        **describe_machine('cpu'),
        'cases': [],
    }
    with tempfile.TemporaryDirectory(prefix='p2d-clips-') as folder:
        data = Path(folder) / 'data'
        for _ in write_nuscenes_folder(data, DRIVES):
            pass
        for num_frames, selector, scope in SETTINGS:
            result = evaluate(data, Path(folder), num_frames, selector, scope)
            case = {
                'frames_per_camera': num_frames,
                'selector': selector,
                'scope': scope,
                'num_questions': result['num_questions'],
                'clips': result['num_frames'],
                'accuracy': result['accuracy'],
                'language': result['language']['score'],
            }
            report['cases'].append(case)
            print(json.dumps(case))
    args.out.write_text(json.dumps(report, indent=2) + '\n')


if __name__ == '__main__':
    main()
