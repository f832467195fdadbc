"""Plots a study: history, ratios per view, score against tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Any

from p2d_node.errors import one_line
from p2d_node.figures import new_figure, write_figure
from p2d_node.tuning.results import MethodResult, TrialResult

COLOURS = {
    'tpe': 'C0',
    'uniform': 'black',
    'random': 'C1',
    'grid': 'C2',
    'evolutionary': 'C3',
}
CAMERA_PREFIX = 'CAM_'
FRONT = 'FRONT'


def plot_study(path: Path, results: Sequence[MethodResult], title: str) -> None:
    """Draw three panels into a PNG.

    Args:
        path: The PNG file.
        results: One per method.
        title: Title of the figure.

    Raises:
        OSError: The file cannot be written.
    """
    figure = new_figure(15, 4.6)
    history, ratios, tokens = figure.subplots(1, 3)
    _plot_history(history, results)
    _plot_ratios(ratios, results)
    _plot_tokens(tokens, results)
    handles, labels = history.get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=len(labels), frameon=False)
    figure.suptitle(one_line(title), parse_math=False)
    write_figure(path, figure, 110)


def _plot_history(axis: Any, results: Sequence[MethodResult]) -> None:
    """Plot the best score after each trial; shorter histories are extended by a dotted line."""
    longest = max(len(result.history) for result in results)
    for result in results:
        points = [(n, best) for n, best in enumerate(result.history, 1) if best is not None]
        if not points:
            continue
        numbers, bests = zip(*points, strict=True)
        colour = COLOURS[result.method]
        marker = '.' if len(points) == 1 else ''
        axis.step(numbers, bests, where='post', color=colour, label=result.method, marker=marker)
        if numbers[-1] < longest:
            axis.plot([numbers[-1], longest], [bests[-1]] * 2, color=colour, linestyle=':')
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set(xlabel='finished trials', ylabel='best score so far', title='History')


def _plot_ratios(axis: Any, results: Sequence[MethodResult]) -> None:
    """Plot the ratios of each method's best trial, one group of bars per view."""
    bests = [result.best for result in results if result.best is not None]
    width = 0.8 / max(1, len(bests))
    for index, best in enumerate(bests):
        places = [
            view + (index - (len(bests) - 1) / 2) * width for view in range(len(best.ratios))
        ]
        axis.bar(places, list(best.ratios.values()), width, color=COLOURS[best.method])
    cameras = list(bests[0].ratios) if bests else []
    names = [
        one_line(name).removeprefix(CAMERA_PREFIX).replace('_', '\n').lower() for name in cameras
    ]
    axis.set_xticks(range(len(names)), names, parse_math=False)
    axis.set(ylabel='retention ratio', title="Each method's best trial, per view")


def _plot_tokens(axis: Any, results: Sequence[MethodResult]) -> None:
    """Plot every complete trial; each method's best one has a ring."""
    totals = {trial.tokens_kept for result in results for trial in result.complete}
    count, label = _tokens_to_show(totals)
    for result in results:
        colour = COLOURS[result.method]
        x = [count(trial) for trial in result.complete]
        y = [trial.score for trial in result.complete]
        axis.scatter(x, y, s=14, color=colour, alpha=0.6, linewidths=0)
        if result.best is not None:
            best = ([count(result.best)], [result.best.score])
            axis.scatter(*best, s=90, facecolors='none', edgecolors=colour)
    axis.set(xlabel=label, ylabel='score', title='Complete trials')


def _tokens_to_show(totals: Set[int]) -> tuple[Callable[[TrialResult], float], str]:
    """Return what to count: all tokens, or those of the front views if the total is fixed."""
    if len(totals) > 1:
        return lambda trial: trial.tokens_kept, 'visual tokens kept per sweep'

    def front(trial: TrialResult) -> float:
        forward = sum(r for camera, r in trial.ratios.items() if FRONT in camera)
        return 100.0 * forward / sum(trial.ratios.values())

    kept = next(iter(totals), 0)
    return front, f'% of the {kept} kept tokens that lie in front views'
