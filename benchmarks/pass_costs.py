"""Times decoder passes over one to sixteen tokens of a model with random weights, as JSON.

tools/run.sh .venv "" python benchmarks/pass_costs.py --dtype bfloat16
"""

from __future__ import annotations

import argparse
from functools import partial
import json
import statistics
import sys

from p2d_node.benchmarks.drafts import RandomModel
from p2d_node.benchmarks.measuring import describe_machine, DTYPES, time_ms
from p2d_node.benchmarks.plans import DraftBenchmark, DTYPE_NAMES
from p2d_node.library_settings import prepare_libraries
import torch

CPU = torch.device('cpu')
WIDTHS = (1, 2, 3, 4, 6, 8, 9, 12, 16)


def main() -> int:
    """Measure all widths in turns; print processor times."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--dtype', choices=DTYPE_NAMES, default='float32')
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--threads', type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = RandomModel(DraftBenchmark(), DTYPES[options.dtype], packed=True)
    loop = model.begin_decode_loop(max(WIDTHS))
    times: dict[int, list[float]] = {width: [] for width in WIDTHS}
    for turn in range(options.rounds + 1):
        for width, values in times.items():
            _, cpu_ms, _ = time_ms(CPU, partial(loop.advance, [0], [[1] * width]))
            if turn:  # the first round warms up
                values.append(cpu_ms)
    medians = {width: statistics.median(values) for width, values in times.items()}
    report = {
        'benchmark': 'decoder passes, processor time, milliseconds',
        **describe_machine('cpu'),
        'shape': DraftBenchmark().shape.name,
        'dtype': options.dtype,
        'rounds': options.rounds,
        'median_ms': medians,
        'times_of_one_token': {width: value / medians[1] for width, value in medians.items()},
    }
    print(json.dumps(report, indent=2))
    return 0


if __name__ == '__main__':
    prepare_libraries()
    sys.exit(main())
