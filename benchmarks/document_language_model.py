"""Writes the measured tables of docs/language_model.md from JSON; `--check` only compares."""

from __future__ import annotations

import sys
from typing import Any

from measured_tables import MACHINE, read_report, write_tables


def machine_of(report: dict[str, Any]) -> str:
    """Return what the figures depend on."""
    return (
        f'{MACHINE}, torch {report["torch"].split("+")[0]}, {report["torch_threads"]} thread, '
        f'{report["dtype"]}; medians of {report["repeats"]} rounds after {report["warm_up"]} to '
        'warm up.'
    )


def prefill_table(report: dict[str, Any]) -> str:
    """Return the rows of `p2d bench prefill` as a Markdown table."""
    text, answer = report['text_tokens'], report['answer_tokens']
    lines = [
        f'Milliseconds. Model `{report["shape"]["name"]}`, {report["num_views"]} x '
        f'{report["tokens_per_view"]} visual tokens, {report["newline_tokens"]} newlines, {text} '
        f'text tokens; a sweep has {answer} answer tokens; the encoder takes '
        f'{report["encode_ms"]:.0f} ms. {machine_of(report)}\n',
        '| kept per view | k | prefill | p95 | CPU | faster | per token | growing | sweep '
        '| with encoder | faster | KV MiB | FLOPs | DriveMM FLOPs |',
        '|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|',
    ]
    for row in report['rows']:
        layer = row['prune_layer'] if row['retention_ratio'] < 1 else '-'
        lines.append(
            f'| {row["num_keep"]} ({row["retention_ratio"]:.0%}) | {layer} '
            f'| {row["prefill_ms"]:.0f} | {row["prefill_p95_ms"]:.0f} '
            f'| {row["prefill_cpu_ms"]:.0f} | {row["prefill_speedup"]:.1f}x '
            f'| {row["decode_ms"]:.1f} | {row["growing_decode_ms"]:.1f} | {row["sweep_ms"]:.0f} '
            f'| {row["sweep_with_encoder_ms"]:.0f} | {row["sweep_speedup"]:.1f}x '
            f'| {row["kv_cache_mib"]:.1f} | {row["flops_percent"]:.1f} % '
            f'| {row["drivemm_flops_percent"]:.1f} % |'
        )
    return '\n'.join(lines) + '\n'


def questions_table(report: dict[str, Any]) -> str:
    """Return the figures of `p2d bench questions` as a Markdown table."""
    same = 'the same answers in all three ways' if report['same_answers'] else 'OTHER ANSWERS'
    lines = [
        f'{report["num_questions"]} questions about one sweep, milliseconds, without the encoder: '
        f'model `{report["shape"]}`, {report["retention_ratio"]:.0%} kept, '
        f'{report["answer_tokens"]} tokens per answer; {same}. {machine_of(report)}\n',
        '| how | wall | CPU | of separately | of separately, CPU |',
        '|---|---:|---:|---:|---:|',
    ]
    wall, cpu = report['median_ms'], report['median_cpu_ms']
    for way in wall:
        lines.append(
            f'| {way.replace("_", " ")} | {wall[way]:.0f} | {cpu[way]:.0f} '
            f'| {wall[way] / wall["separately"]:.0%} | {cpu[way] / cpu["separately"]:.0%} |'
        )
    return '\n'.join(lines) + '\n'


def make_table(name: str) -> str:
    """Return the table of the report in the JSON file `name`."""
    report = read_report(name)
    return prefill_table(report) if 'rows' in report else questions_table(report)


if __name__ == '__main__':
    sys.exit(write_tables('docs/language_model.md', make_table))
