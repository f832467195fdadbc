"""Writes the measured table of docs/token_selection.md from its JSON; `--check` only compares."""

from __future__ import annotations

import json
from pathlib import Path
import re
import sys
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / 'docs' / 'token_selection.md'
TABLE = re.compile(r'(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)', re.DOTALL)
SHOWN_HIDDEN = (1152, 4096)
MACHINE = '2-core x86-64 CPU (cloud VM)'


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


def main() -> int:
    """Write the table, or with `--check` return 1 where it is not the measured one."""
    text = DOCUMENT.read_text()
    fresh = TABLE.sub(
        lambda match: match[1] + table_of(json.loads((ROOT / match[2]).read_text())) + match[3],
        text,
    )
    if '--check' in sys.argv[1:]:
        return int(fresh != text)
    DOCUMENT.write_text(fresh)
    return 0


if __name__ == '__main__':
    sys.exit(main())
