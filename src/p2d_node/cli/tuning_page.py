"""The report of a search for retention ratios."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from p2d_node.cli.report_parts import machine_section, ratios_chart
from p2d_node.reports.parts import Gallery, Notes, Page, Picture, Section, Table


def tuning_page(report: Mapping[str, Any], picture: Path, verdict: str) -> Page:
    """Return the report of a search.

    Args:
        report: What the verb prints as JSON.
        picture: PNG of the scores over the trials.
        verdict: The comparison on held-out questions in a sentence; empty: there is none.
    """
    best = report['best']
    facts = [
        ('model', report['model']),
        ('best score', f'{best["score"]:.4f}'),
        ('visual tokens kept', f'{best["tokens_kept"]} of {report["tokens_total"]}'),
        ('questions', f'{report["num_questions"]} about {report["num_keyframes"]} keyframes'),
    ]
    shown = Picture(
        data=picture.read_bytes(), mime='image/png', alt='the best score over the trials'
    )
    sections = [
        Section('Search', [Gallery([shown], wide=True), _methods(report['methods'])]),
        Section('Kept tokens', [ratios_chart(best['ratios'])]),
        Section('Held-out questions', _held_out(report['held_out'], verdict)),
        machine_section([('model', report['model']), *report['files'].items()]),
    ]
    return Page(title=f'p2d tune-ratios: {report["study"]}', facts=facts, sections=sections)


def _methods(methods: Mapping[str, Any]) -> Table:
    rows = []
    for name, result in methods.items():
        best = result['best'] or dict.fromkeys(('score', 'language', 'accuracy', 'tokens_kept'))
        scores = (best[key] for key in ('score', 'language', 'accuracy', 'tokens_kept'))
        counts = (result['num_trials'], result['num_pruned'], result['num_failed'])
        rows.append([name, *counts, *('absent' if s is None else s for s in scores)])
    headings = ('method', 'trials', 'pruned', 'failed', 'score', 'language', 'accuracy', 'tokens')
    return Table(headings, rows)


def _held_out(comparison: Mapping[str, Any] | None, verdict: str) -> list[Table | Notes]:
    if comparison is None:
        return [Notes(['None were given: --held-out compares with an even split.'])]
    columns = ('searched', 'uniform', 'difference', 'low', 'high')
    rows = [
        [name, *(figure[column] for column in columns)]
        for name, figure in comparison['figures'].items()
    ]
    return [Table(('', *columns), rows), Notes([f'Searched split: {verdict}.'])]
