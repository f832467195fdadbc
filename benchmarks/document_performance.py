"""Writes the computed tables of docs/performance.md; `--check` only compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
import sys

from measured_tables import markdown_table, write_tables
from p2d_node.benchmarks.budget import compute_budget, SweepBudget
from p2d_node.benchmarks.machines import GPUS, Machine
from p2d_node.benchmarks.model_shape import DRIVEMM
from p2d_node.benchmarks.model_sizes import sizes_of_shape
from p2d_node.benchmarks.plans import SweepPlan

DOCUMENT = 'docs/performance.md'
PLAN = SweepPlan()
RATIOS = (1.0, 0.1)
DECODED_ON = 'orin-64gb'
WEIGHTS_BITS = (16, 8, 4)
TOKENS_PER_PASS = (1.0, 2.0, 3.0)
STAGES = ('encoder', 'prefill', 'decoding', 'sweep')


def machine_table() -> str:
    """Return the machines and the assumed shares of what their data sheets say."""
    rows = [
        [f'`{name}`', f'{gpu.bandwidth_gb_s:,.0f}', f'{gpu.tflops:,.1f}']
        for name, gpu in GPUS.items()
    ]
    assumed = (
        f'Assumed: {PLAN.bandwidth_efficiency:.0%} of the bandwidth and '
        f'{PLAN.compute_efficiency:.0%} of the throughput are reached.\n\n'
    )
    return assumed + markdown_table(['machine', 'GB/s', 'dense float16 TFLOPS'], 'lrr', rows)


def sweep_table() -> str:
    """Return a sweep of DriveMM on every machine."""
    rows = [
        [f'`{name}`', f'{ratio:.0%}', *_cells(_budget(gpu, replace(PLAN, retention_ratio=ratio)))]
        for name, gpu in GPUS.items()
        for ratio in RATIOS
    ]
    header = ['machine', 'kept', *(f'{stage} (computed)' for stage in STAGES)]
    return _head(PLAN) + markdown_table([*header, 'answers/s (computed)'], 'lrrrrrr', rows)


def decoding_table() -> str:
    """Return what fewer bits and accepted drafts make of a sweep on one machine."""
    rows = []
    for bits in WEIGHTS_BITS:
        for tokens in TOKENS_PER_PASS:
            plan = replace(PLAN, weights_bits=bits, tokens_per_pass=tokens)
            cells = _cells(_budget(GPUS[DECODED_ON], plan))
            rows.append([f'{bits}', f'{tokens:g}', *cells])
    header = ['bits per weight', 'tokens per pass', *(f'{stage} (computed)' for stage in STAGES)]
    head = f'`{DECODED_ON}`, {PLAN.retention_ratio:.0%} kept. {_head(PLAN)}'
    return head + markdown_table([*header, 'answers/s (computed)'], 'rrrrrrr', rows)


def _budget(machine: Machine, plan: SweepPlan) -> SweepBudget:
    return compute_budget(sizes_of_shape(DRIVEMM), machine, plan)


def _cells(budget: SweepBudget) -> list[str]:
    times_ms = (budget.encoder_ms, budget.prefill_ms, budget.decode_ms, budget.sweep_ms)
    return [*(f'{time_ms:,.0f}' for time_ms in times_ms), f'{budget.answers_per_s:.2f}']


def _head(plan: SweepPlan) -> str:
    return (
        f'Milliseconds, computed and not measured. DriveMM (8B), {plan.num_views} x '
        f'{DRIVEMM.num_tokens} visual tokens, {plan.num_questions} question, '
        f'{plan.answer_tokens} tokens per answer.\n\n'
    )


TABLES: dict[str, Callable[[], str]] = {
    'performance/machines': machine_table,
    'performance/sweep': sweep_table,
    'performance/decoding': decoding_table,
}


def make_table(name: str) -> str:
    """Return the table called `name`."""
    return TABLES[name]()


if __name__ == '__main__':
    sys.exit(write_tables(DOCUMENT, make_table))
