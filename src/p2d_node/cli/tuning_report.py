"""Reports of a search: comment lines for the parameter file, JSON, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
import shlex
from typing import Any

from p2d_node.cli.screen import InertConsole
from p2d_node.retention_presets import find_preset
from p2d_node.tuning.comparison import Comparison, UNDECIDED
from p2d_node.tuning.results import MethodResult, TrialResult
from p2d_node.tuning.retention_file import utc_now
from p2d_node.tuning.session import TuningSession
from rich.table import Table


@dataclass(frozen=True, slots=True)
class SearchOutcome:
    """A search and its results.

    Attributes:
        session: This worker, with the model and the questions.
        results: Per method.
        best: The best trial of all.
        comparison: With an even split, on held-out questions; None without them.
    """

    session: TuningSession
    results: Sequence[MethodResult]
    best: TrialResult
    comparison: Comparison | None


def header_lines(found: SearchOutcome, data: Path, held_out: Path | None) -> list[str]:
    """Return the origin of the ratios as lines for the parameter file.

    Args:
        found: The outcome.
        data: The file with the questions.
        held_out: The file with the held-out questions.
    """
    session, best, comparison = found.session, found.best, found.comparison
    questions, objective = session.question_set, session.options.objective
    trials = ', '.join(_trials_text(result) for result in found.results)
    total = sum(session.space.num_tokens.values())
    lines = [
        f'Retention ratios for {session.pipeline.model_name}, found by p2d tune-ratios.',
        f'date:   {utc_now()}',
        f'data:   {data.name}, {len(questions.keyframes)} keyframes, '
        f'{len(questions.questions)} questions, sha256 {questions.digest[:16]}',
        f'model:  sha256 {session.model_digest[:16]}',
        f'trials: {trials}',
        f'score:  {best.score:.4f} ({best.method}, trial {best.number}) = '
        f'{objective.language_weight:g} x language {_text(best.language)} + '
        f'{objective.accuracy_weight:g} x accuracy {_text(best.accuracy)} - '
        f'{objective.ratio_penalty:g} x sum of ratios {sum(best.ratios.values()):.4f}',
        f'tokens: {best.tokens_kept} of {total} per sweep',
    ]
    if comparison is not None and held_out is not None:
        lines.append(f'held out ({held_out.name}): {verdict_text(comparison)}')
    return [*lines, 'Start with: ros2 launch p2d_node drive.launch.py params_file:=THIS_FILE']


def _trials_text(result: MethodResult) -> str:
    failed = f', {result.num_failed} more failed' if result.num_failed else ''
    return f'{result.method} {result.num_trials} ({result.num_pruned} pruned{failed})'


def verdict_text(comparison: Comparison) -> str:
    """Return the outcome of a comparison in one sentence."""
    score = comparison.figures['score']
    return (
        f'{comparison.verdict} against the same number of tokens split evenly: score '
        f'{score.searched:.4f} against {score.uniform:.4f}, difference {score.difference:+.4f}, '
        f'95 % interval {score.low:+.4f} to {score.high:+.4f} over {comparison.resampled}, '
        f'{comparison.num_questions} questions'
    )


def report_json(found: SearchOutcome, files: Mapping[str, Path]) -> dict[str, Any]:
    """Return the report as JSON data; `files` are the output files."""
    session, comparison = found.session, found.comparison
    report: dict[str, Any] = {
        'study': session.options.name,
        'model': session.pipeline.model_name,
        'num_keyframes': len(session.question_set.keyframes),
        'num_questions': len(session.question_set.questions),
        'tokens_total': sum(session.space.num_tokens.values()),
        'methods': {r.method: _method_json(r) for r in found.results},
        'best': asdict(found.best),
        'held_out': None,
        'files': {name: str(path) for name, path in files.items()},
        'is_default': _is_default(found, files),
    }
    if comparison is not None:
        report['held_out'] = {
            **asdict(comparison),
            'verdict': comparison.verdict,
            'figures': {
                name: {**asdict(d), 'difference': d.difference, 'verdict': d.verdict}
                for name, d in comparison.figures.items()
            },
        }
    return report


def _method_json(result: MethodResult) -> dict[str, Any]:
    return {
        'num_trials': result.num_trials,
        'num_pruned': result.num_pruned,
        'num_failed': result.num_failed,
        'seconds': round(result.seconds, 1),
        'best': None if result.best is None else asdict(result.best),
        'history': result.history,
    }


def _is_default(found: SearchOutcome, files: Mapping[str, Path]) -> bool:
    """Return whether the node reads the parameter file by default."""
    preset = find_preset(found.session.options.config.model)
    written = (files['params'], files.get('installed', files['params']))
    return preset is not None and any(preset.samefile(path) for path in written)


def print_report(found: SearchOutcome, files: Mapping[str, Path]) -> None:
    """Print tables of each method's best trial and of the comparison."""
    console = InertConsole()
    console.print(*_method_tables(found))
    if found.comparison is not None:
        console.print(_comparison_table(found.comparison))
        console.print(f'Held-out questions, searched split: {verdict_text(found.comparison)}.')
    if found.best.num_cut:
        longest = found.session.options.config.max_new_tokens
        console.print(
            f'{found.best.num_cut} answers of the best trial were cut at {longest} tokens, and '
            'lose score: raise max_new_tokens in --params-file.'
        )
    for path in files.values():
        console.print(str(path), soft_wrap=True)
    if not _is_default(found, files):
        console.print(
            f'The node needs params_file:={shlex.quote(str(files["params"]))}; --install makes '
            "them the model's defaults.",
            soft_wrap=True,
        )


def _method_tables(found: SearchOutcome) -> tuple[Table, Table]:
    scores = Table(title=f"{found.session.options.name}: each method's best trial")
    for heading in (
        'method',
        'trials',
        'pruned',
        'failed',
        'score',
        'language',
        'accuracy',
        'tokens',
    ):
        scores.add_column(heading, justify='left' if heading == 'method' else 'right')
    ratios = Table(title='its retention ratios')
    ratios.add_column('method')
    for camera in found.best.ratios:
        ratios.add_column(camera.removeprefix('CAM_').replace('_', ' ').lower(), justify='right')
    for result in found.results:
        best = result.best
        counts = (result.num_trials, result.num_pruned, result.num_failed)
        cells = [result.method, *map(str, counts)]
        if best is not None:
            parts = (best.score, best.language, best.accuracy)
            cells += [*map(_text, parts), str(best.tokens_kept)]
            ratios.add_row(result.method, *(f'{ratio:.3f}' for ratio in best.ratios.values()))
        scores.add_row(*cells)
    return scores, ratios


def _comparison_table(comparison: Comparison) -> Table:
    kept = comparison.tokens_kept
    table = Table(
        title=f'{comparison.num_questions} held-out questions about {comparison.num_keyframes} '
        f'keyframes; {kept[0]} and {kept[1]} tokens per sweep'
    )
    for heading in ('', 'searched', 'uniform', 'difference', '95 % interval', ''):
        table.add_column(heading, justify='right')
    for name, figure in comparison.figures.items():
        table.add_row(
            name,
            f'{figure.searched:.4f}',
            f'{figure.uniform:.4f}',
            f'{figure.difference:+.4f}',
            f'{figure.low:+.4f} to {figure.high:+.4f}',
            '' if figure.verdict == UNDECIDED else figure.verdict,
        )
    return table


def _text(value: float | None) -> str:
    return 'absent' if value is None else f'{value:.4f}'
