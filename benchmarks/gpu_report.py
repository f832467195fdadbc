"""Runs the tests marked `gpu` and the GPU benchmarks; writes one JSON with the machine's name."""

from __future__ import annotations

import argparse
from dataclasses import asdict
import importlib.util
import json
from pathlib import Path
import platform
import re
import statistics
import subprocess
import sys
import time
from typing import Any

from p2d_node.library_settings import prepare_libraries

prepare_libraries()

from p2d_node.benchmarks.measuring import describe_machine, percentile
from p2d_node.benchmarks.model_shape import DRIVEMM
from p2d_node.benchmarks.plans import PrefillBenchmark, SelectionBenchmark
from p2d_node.benchmarks.prefill import run_prefill_benchmark
from p2d_node.benchmarks.selection import benchmark_report, run_selection_benchmark
from p2d_node.errors import P2dError
from p2d_node.token_selection.tfps import triton_runs
from p2d_node.token_selection.tfps_batched import CudaGraphs
import torch

ROOT = Path(__file__).resolve().parents[1]
TEST_LIMIT_S = 200
BENCHMARK_LIMIT_S = 100
"""Per number format; a case that has begun is finished."""


def main() -> int:
    """Run, write, and return 0 where the tests passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--output', type=Path, help='default: benchmarks/results/gpu-<name>.json')
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print('gpu.sh: torch sees no NVIDIA GPU; run it on a machine with one', file=sys.stderr)
        return 2
    report = {
        **describe_machine('cuda'),
        'triton': triton_version(),
        'selector': 'Triton' if triton_runs(torch.device('cuda', 0)) else 'CUDA graph',
        'tests': run_gpu_tests(),
        'selection': [run_selection(dtype) for dtype in ('float32', 'bfloat16')],
        'selection_cuda_graph': measure_cuda_graph(),
        'prefill': run_prefill(),
    }
    output = args.output or ROOT / 'benchmarks' / 'results' / f'gpu-{file_name(report)}.json'
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + '\n')
    print(f'{report["tests"]["summary"]}\nwritten: {output}')
    return 0 if report['tests']['exit_code'] == 0 else 1


def triton_version() -> str | None:
    """Return Triton's version, None where it is not installed."""
    if importlib.util.find_spec('triton') is None:
        return None
    import triton

    return str(triton.__version__)


def file_name(report: dict[str, Any]) -> str:
    """Return the device's name as part of a file name."""
    return re.sub(r'[^a-z0-9]+', '-', f'{report["device"]} {platform.machine()}'.lower())


def run_gpu_tests() -> dict[str, Any]:
    """Run the tests marked `gpu` in a process of their own.

    The shared fixtures need OpenCV. Without it only the tests of token selection and decoding
    run, which need no fixtures.
    """
    if importlib.util.find_spec('pytest') is None:
        return {'exit_code': 0, 'summary': 'not run: pytest is not installed'}
    all_tests = importlib.util.find_spec('cv2') is not None
    bare = ['--noconftest', 'tests/token_selection', 'tests/language_model/test_decode_gpu.py']
    what = ['tests'] if all_tests else bare
    command = [sys.executable, '-m', 'pytest', '-m', 'gpu', '-p', 'no:cacheprovider', *what]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=TEST_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return {'exit_code': 124, 'summary': f'not finished within {TEST_LIMIT_S} s'}
    lines = (done.stdout + done.stderr).strip().splitlines()
    return {
        'exit_code': done.returncode,
        'command': command[1:],
        'summary': lines[-1] if lines else '',
        'failures': [line for line in lines if line.startswith(('FAILED', 'ERROR'))],
    }


def run_selection(dtype: str) -> dict[str, Any]:
    """Measure token selection in one number format, as many cases as the limit allows."""
    plan = SelectionBenchmark(device='cuda', dtype=dtype, warm_up=3, repeats=10)
    timings = []
    started = time.monotonic()
    for timing in run_selection_benchmark(plan):
        timings.append(timing)
        print(json.dumps(asdict(timing)), flush=True)
        if time.monotonic() - started > BENCHMARK_LIMIT_S:
            break
    return {**benchmark_report(plan, timings), 'complete': len(timings) == plan.num_cases}


def run_prefill() -> dict[str, Any]:
    """Measure prefill and decoding at DriveMM's shape, random weights in bfloat16."""
    plan = PrefillBenchmark(shape=DRIVEMM, device='cuda', dtype='bfloat16', repeats=5)
    *_, report = run_prefill_benchmark(plan)
    if not isinstance(report, dict):
        raise TypeError(f'the benchmark ended with {report!r} instead of its report')
    return report


def measure_cuda_graph() -> dict[str, Any]:
    """Measure T-FPS as it runs on GPUs without Triton, as a CUDA graph; milliseconds per sweep."""
    tokens = torch.randn(6, 729, 4096, device='cuda')
    graphs, times_ms = CudaGraphs(), []
    for turn in range(13):
        torch.cuda.synchronize()
        started = time.perf_counter_ns()
        graphs.order(tokens, 72)
        torch.cuda.synchronize()
        if turn >= 3:
            times_ms.append((time.perf_counter_ns() - started) / 1e6)
    return {
        'num_views': 6,
        'num_tokens': 729,
        'hidden': 4096,
        'num_keep': 72,
        'median_ms': statistics.median(times_ms),
        'p95_ms': percentile(times_ms, 0.95),
    }


if __name__ == '__main__':
    try:
        sys.exit(main())
    except P2dError as err:
        print(f'gpu.sh: {err}', file=sys.stderr)
        sys.exit(2)
