"""Writes the measured tables of docs/token_selection.md from JSON; `--check` only compares."""

from __future__ import annotations

import sys
from typing import Any

from measured_tables import MACHINE, markdown_table, read_report, write_tables

SHOWN_HIDDEN = (1152, 4096)
METHODS = {
    'tfps': 'T-FPS',
    'tfps adaptive': 'T-FPS, one budget for all cameras',
    'divprune': 'DivPrune',
    'dart': 'DART',
    'random': 'random',
    'grid': 'uniform grid',
}


def timing_table(report: dict[str, Any]) -> str:
    """Return the cases of `p2d bench select`."""
    machine = (
        f'{MACHINE}, torch {report["torch"].split("+")[0]}, threads: {report["torch_threads"]}, '
        f'{report["dtype"]}, {report["input"]}; {report["repeats"]} sweeps after '
        f'{report["warm_up"]} to warm up.\n\n'
    )
    rows = [
        [
            f'{case["num_views"]} x {case["num_tokens"]} x {case["hidden"]}',
            f'{case["num_keep"]} ({case["retention_ratio"]:.0%})',
            f'{case["tfps_median_ms"]:.1f}',
            f'{case["tfps_p95_ms"]:.1f}',
            f'{case["baseline_median_ms"]:.1f}',
            f'{case["baseline_p95_ms"]:.1f}',
            f'{case["speedup"]:.1f}x{"" if case["steady"] else " *"}',
        ]
        for case in report['cases']
        if case['hidden'] in SHOWN_HIDDEN
    ]
    header = ['views x tokens x hidden', 'kept per view', 'T-FPS', 'p95', 'loop', 'p95', 'ratio']
    disturbed = any(row[-1].endswith('*') for row in rows)
    note = '\n\\* disturbed at every attempt\n' if disturbed else ''
    return machine + markdown_table(header, 'lrrrrrr', rows) + note


def coverage_table(report: dict[str, Any]) -> str:
    """Return the figures of benchmarks/coverage.py."""
    drawn, real = report['drawn sweeps'], report['nuScenes keyframes']
    head = (
        f'{report["model"]}, {report["retention_ratio"]:.0%} kept, {drawn["sweeps"]} drawn sweeps '
        f'and {real["sweeps"]} nuScenes keyframes.\n\n'
    )
    rows = [
        [
            label,
            *(f'{part["methods"][method]["worst"]:.3f}' for part in (drawn, real)),
            *(f'{part["methods"][method]["mean"]:.4f}' for part in (drawn, real)),
        ]
        for method, label in METHODS.items()
    ]
    header = ['selector', 'worst, drawn', 'worst, nuScenes', 'mean, drawn', 'mean, nuScenes']
    return head + markdown_table(header, 'lrrrr', rows)


CLIP_METHODS = {
    'tfps clip': 'T-FPS over the clip (default)',
    'tfps frame': 'T-FPS in each frame (`selection_scope: frame`)',
    'tfps_motion clip': '`tfps_motion`',
    'dart clip': 'DART over the clip',
    'random clip': 'random over the clip',
    'grid clip': 'uniform grid over the clip',
}


def clip_table(report: dict[str, Any]) -> str:
    """Return the figures of benchmarks/clip_coverage.py."""
    parts = [report[motion]['methods'] for motion in ('driving', 'standing')]
    kept = parts[0]['tfps clip']['kept']
    head = (
        f'{report["model"]}, {report["driving"]["clips"]} drawn clips of {report["num_frames"]} '
        f'frames, {report["period_ms"]:.0f} ms apart, {kept:.0f} tokens kept '
        f'({report["retention_ratio"]:.0%}). A kept token repeats another one of its camera if '
        f'their distance is below {report["near"]:g}.\n\n'
    )
    rows = [
        [label]
        + [f'{part[method]["worst"]:.3f}' for part in parts]
        + [f'{part[method]["repeated"]:.1%}' for part in parts]
        + [f'{part[method]["of_newest_frame"]:.0%}' for part in parts]
        for method, label in CLIP_METHODS.items()
    ]
    header = ['selector', 'worst, driving', 'worst, standing']
    header += ['repeats, driving', 'repeats, standing', 'newest frame, driving', 'standing']
    return head + markdown_table(header, 'lrrrrrr', rows)


def make_table(name: str) -> str:
    """Return the table of the report in the JSON file `name`."""
    report = read_report(name)
    if report.get('benchmark') == 'coverage of clips':
        return clip_table(report)
    return timing_table(report) if 'cases' in report else coverage_table(report)


if __name__ == '__main__':
    sys.exit(write_tables('docs/token_selection.md', make_table))
