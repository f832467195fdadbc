"""Results of an evaluation come in; the tables of the model card go out, between their marks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from p2d_node.errors import ConfigError

START, END = '<!-- results: written by `evaluate --card` -->', '<!-- end of results -->'


def fill_model_card(path: Path, results: dict[str, Any]) -> None:
    """Replace the text between the marks in the card at `path` by the tables of `results`.

    Raises:
        ConfigError: The card has no marks.
    """
    text = path.read_text(encoding='utf-8')
    before, found, rest = text.partition(START)
    _, closed, after = rest.partition(END)
    if not (found and closed):
        raise ConfigError(f'card: {path} has no place for results; needed: {START} and {END}')
    tables = '\n\n'.join([_scores(results), _kinds(results), _retention(results)])
    path.write_text(f'{before}{START}\n\n{tables}\n\n{END}{after}', encoding='utf-8')


def _percent(share: float) -> str:
    return f'{100.0 * share:.1f}'


def _scores(results: dict[str, Any]) -> str:
    rows = [
        '| pictures | accuracy, % | 95 % interval | free text | multiple choice |',
        '|---|---:|---:|---:|---:|',
    ]
    names = {'pictures': 'the right ones', 'blank': 'grey', 'shuffled': "another sweep's"}
    for key, name in names.items():
        row = results[key]
        span = f'{_percent(row["low"])}-{_percent(row["high"])}'
        cells = (name, _percent(row['accuracy']), span, _percent(row['free']))
        rows.append(f'| {" | ".join(cells)} | {_percent(row["choice"])} |')
    rows.append(
        f'| none: most frequent answer of each kind | {_percent(results["majority"])} | | | |'
    )
    asked = results['pictures']['questions']
    return f'{asked} questions about {results["sweeps"]} held-out sweeps.\n\n' + '\n'.join(rows)


def _kinds(results: dict[str, Any]) -> str:
    rows = [
        '| kind of question | asked | right, % | most frequent answer | grey | shuffled |',
        '|---|---:|---:|---:|---:|---:|',
    ]
    for kind, row in results['kinds'].items():
        parts = [_percent(row[key]) for key in ('accuracy', 'majority', 'blank', 'shuffled')]
        rows.append(f'| {kind} | {row["asked"]} | {" | ".join(parts)} |')
    return '\n'.join(rows)


def _retention(results: dict[str, Any]) -> str:
    rows = results.get('retention', [])
    ratios = sorted({row['retention_ratio'] for row in rows}, reverse=True)
    head = ' | '.join(f'{100 * ratio:.0f} % kept' for ratio in ratios)
    lines = [
        f'| prune_layer | selector | {head} |',
        '|---:|---|' + '---:|' * len(ratios),
    ]
    for layer, method in dict.fromkeys((row['prune_layer'], row['method']) for row in rows):
        cells = [
            f'{_percent(row["accuracy"])} ({_percent(row["low"])}-{_percent(row["high"])})'
            for ratio in ratios
            for row in rows
            if (row['prune_layer'], row['method'], row['retention_ratio'])
            == (layer, method, ratio)
        ]
        lines.append(f'| {layer} | {method} | {" | ".join(cells)} |')
    return '\n'.join(lines) if rows else 'Token pruning was not measured.'
