"""Writes the measured table of docs/token_selection.md from its JSON; `--check` only compares."""

from __future__ import annotations

import sys
from typing import Any

from measured_tables import MACHINE, write_tables

SHOWN_HIDDEN = (1152, 4096)


def table_of(report: dict[str, Any]) -> str:
    """Return the report's cases as a Markdown table."""
    lines = [
        f'{MACHINE}, torch {report["torch"].split("+")[0]}, {report["torch_threads"]} threads, '
        f'{report["dtype"]}, {report["input"]}; {report["repeats"]} sweeps after '
        f'{report["warm_up"]} to warm up.\n',
        '| views x tokens x hidden | kept per view | T-FPS | p95 | loop | p95 | ratio |',
        '|---|---:|---:|---:|---:|---:|---:|',
    ]
    for case in report['cases']:
        if case['hidden'] not in SHOWN_HIDDEN:
            continue
        lines.append(
            f'| {case["num_views"]} x {case["num_tokens"]} x {case["hidden"]} '
            f'| {case["num_keep"]} ({case["retention_ratio"]:.0%}) '
            f'| {case["tfps_median_ms"]:.1f} | {case["tfps_p95_ms"]:.1f} '
            f'| {case["baseline_median_ms"]:.1f} | {case["baseline_p95_ms"]:.1f} '
            f'| {case["speedup"]:.1f}x{"" if case["steady"] else " *"} |'
        )
    if any(' * |' in line for line in lines):
        lines.append('\n\\* disturbed at every attempt')
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    sys.exit(write_tables('token_selection.md', table_of))
