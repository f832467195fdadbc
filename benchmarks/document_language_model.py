"""Writes the measured tables of docs/language_model.md from JSON; `--check` only compares."""

from __future__ import annotations

import sys
from typing import Any

from measured_tables import MACHINE, markdown_table, read_report, write_tables


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


def drafts_tables(report: dict[str, Any]) -> str:
    """Return the rows of `p2d bench drafts` as two Markdown tables."""
    header = ['drafts', 'tokens', 'passes', 'fewer', 'later passes', 'fewer', 'accepted', 'ms']
    header += ['faster', 'answers']
    model, drives = report['random_model'], report['drives']
    cases = [
        [
            f'{row["answer_tokens"]}, {row["agreement"]:.0%}',
            *draft_cells(row),
            f'{row["speedup_over_baseline"]:.2f}x',
        ]
        for row in model['rows']
    ]
    rates = [[f'{row["rate_hz"]:g}', *draft_cells(row)] for row in drives['rows']]
    return (
        'Per answer, from the prefilled views to its end. Passes include the prefill of the '
        f'question, later passes do not. Random model `{model["shape"]}`, by length of the answer '
        'and share of equal tokens in the answer before. Baseline: plain decoding in float32, '
        f'weights not packed. {machine_of(report)}\n\n'
        + markdown_table(['tokens, agree', *header, 'than baseline'], 'll' + 'r' * 10, cases)
        + f'\n`{drives["model"]}`, {report["scenarios"]} drives of {report["sweeps_per_drive"]} '
        f'sweeps that p2d_sim draws, {report["questions"]} questions; '
        f'{other_answers(drives["rows"])}\n\n'
        + markdown_table(['Hz', *header], 'rl' + 'r' * 9, rates)
    )


def draft_cells(row: dict[str, Any]) -> list[str]:
    """Return the cells of one row of `p2d bench drafts`."""
    accepted, fewer = row['accepted_share'], row['fewer_later_passes']
    return [
        f'`{row["drafts"]}`',
        f'{row["tokens_per_answer"]:.1f}',
        f'{row["passes_per_answer"]:.2f}',
        f'{row["fewer_passes"]:.2f}x',
        f'{row["later_passes_per_answer"]:.2f}',
        '' if fewer is None else f'{fewer:.2f}x',
        '' if accepted is None else f'{accepted:.0%}',
        f'{row["answer_ms"]:.1f}',
        f'{row["speedup"]:.2f}x',
        f'{row["num_answers"]}',
    ]


def other_answers(rows: list[dict[str, Any]]) -> str:
    """Say how many answers with drafts are not those without."""
    number = sum(row['other_answers'] for row in rows)
    drafted = sum(row['num_answers'] for row in rows if row['drafts'] != 'none')
    return f'{number} of {drafted:,} answers with drafts differ from those without.'


def make_table(name: str) -> str:
    """Return the table of the report in the JSON file `name`."""
    report = read_report(name)
    if 'drives' in report:
        return drafts_tables(report)
    return prefill_table(report) if 'rows' in report else questions_table(report)


if __name__ == '__main__':
    sys.exit(write_tables('docs/language_model.md', make_table))
