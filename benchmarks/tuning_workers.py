"""Time of a search with one worker and with two workers on one storage, on p2d-mini.

    python benchmarks/tuning_workers.py --json > benchmarks/results/tuning_workers-2-core-cpu.json

Run it on an idle machine: each worker computes with one thread, so two of them need two cores. All
keyframes are encoded beforehand. Two times are measured: from the begin of the first trial to the
end of the last, and the whole command with its start.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
import subprocess
import sys
import tempfile
import time
from typing import Any

import optuna
from p2d_node.benchmarks.measuring import describe_machine
from p2d_node.tuning.storage import open_storage
from p2d_node.tuning.trials import finished
from p2d_sim.nuscenes_folder import FolderOptions, write_nuscenes_folder

SEED = 1_300_000_000
METHOD = 'random'


def main() -> None:
    """Draw keyframes, search with one and with two workers, print both times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--trials', type=int, default=16)
    parser.add_argument('--keyframes', type=int, default=8)
    parser.add_argument('--json', action='store_true')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix='p2d-') as folder:
        root = Path(folder)
        options = FolderOptions(
            scenarios=(), random_scenes=args.keyframes, seed=SEED, duration_s=0.5
        )
        for _ in write_nuscenes_folder(root / 'data', options):
            pass
        search(root, 'warm-up', num_workers=1, num_trials=1)
        runs = {n: search(root, f'{n}', num_workers=n, num_trials=args.trials) for n in (1, 2)}
    report = {
        'benchmark': 'p2d tune-ratios with one and two workers on one storage, p2d-mini',
        **describe_machine('cpu'),
        'num_trials': args.trials,
        'num_keyframes': args.keyframes,
        'one_worker': runs[1],
        'two_workers': runs[2],
        'share_of_time': {name: runs[2][name] / runs[1][name] for name in runs[1]},
    }
    print(json.dumps(report, indent=2) if args.json else report['share_of_time'])


def search(root: Path, name: str, *, num_workers: int, num_trials: int) -> dict[str, Any]:
    """Run one search to its end; returns its times in seconds."""
    params = root / 'params.yaml'
    params.write_text('/**: {ros__parameters: {num_threads: 1}}\n', encoding='utf-8')
    storage = root / f'{name}.db'
    data = root / 'data'
    start_s = time.monotonic()
    subprocess.run(
        [
            *(sys.executable, '-m', 'p2d_node.cli.main', 'tune-ratios', '--json'),
            *('--data', data / 'drivelm.json', '--images', data, '--params-file', params),
            *('--trials', str(num_trials), '--workers', str(num_workers)),
            *('--methods', METHOD, '--no-pruning', '--storage', storage, '--name', 'study'),
            *('--cache', root / 'cache', '--out', root / name),
            *('--params-out', root / name / 'ratios.yaml'),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    whole_s = time.monotonic() - start_s
    study = optuna.load_study(
        study_name=f'study/{METHOD}', storage=open_storage(str(storage), 60.0)
    )
    done = finished(study.get_trials())
    if not num_trials <= len(done) < num_trials + num_workers:
        raise SystemExit(f'{len(done)} trials finished, {num_trials} were asked for')
    begins = [trial.datetime_start for trial in done if trial.datetime_start]
    ends = [trial.datetime_complete for trial in done if trial.datetime_complete]
    return {'trials_s': (max(ends) - min(begins)).total_seconds(), 'whole_command_s': whole_s}


if __name__ == '__main__':
    main()
