"""`p2d tune-ratios`: searches the retention ratio of each camera, and writes them for the node."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from importlib.util import find_spec
import json
from pathlib import Path
import time
from typing import Any, TYPE_CHECKING

from p2d_node.errors import BackendUnavailableError, ConfigError

if TYPE_CHECKING:
    from p2d_node.cli.tuning_report import SearchOutcome
    from p2d_node.config import DriveConfig
    from p2d_node.tuning.comparison import Comparison
    from p2d_node.tuning.results import TrialResult
    from p2d_node.tuning.session import QuestionSet, TuningOptions, TuningSession
    from rich.progress import Progress

EXAMPLE = """examples:
  p2d tune-ratios --data train.json --images nuscenes --model models/drivemm
  p2d tune-ratios --data train.json --images nuscenes --mean-retention 0.1 --workers 4 \\
      --methods tpe,uniform,random --held-out val.json
  p2d tune-ratios --data train.json --images nuscenes \\
      --storage postgresql://user:password@host/optuna          # the same on each machine

The same command continues an interrupted study.
"""

DEFAULT_TRIALS = 100
DEFAULT_LEASE_S = 120.0
LEAST_LEASE_S, MOST_LEASE_S = 4.0, 1e6
SHOW_PERIOD_S = 2.0
MEAN_TO_LEAST = 0.25
"""Default of --min-retention as a part of --mean-retention."""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the verb `tune-ratios`."""
    parser = subparsers.add_parser(
        'tune-ratios',
        help='search the retention ratio of each camera',
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_data(parser)
    _add_objective(parser)
    _add_search(parser)
    parser.add_argument(
        '--out', type=Path, default=Path('tuning'), help='folder of study.png, study.db and cache'
    )
    parser.add_argument(
        '--params-out',
        type=Path,
        help='parameter file to write; default: config/retention/<model>.yaml of this package, '
        'where the node looks for it, or of the current folder where the package may not be '
        'written',
    )
    parser.add_argument('--json', action='store_true', help='print figures as JSON')
    parser.set_defaults(run=run)


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('data and model')
    group.add_argument('--data', type=Path, required=True, help='DriveLM JSON with answers')
    group.add_argument(
        '--images', type=Path, required=True, help='folder that holds samples/<CAMERA>/*.jpg'
    )
    group.add_argument('--limit', type=int, help='only the first N keyframes')
    group.add_argument(
        '--held-out', type=Path, help='DriveLM JSON to compare on; the search does not use it'
    )
    group.add_argument(
        '--held-out-images', type=Path, help='images of --held-out; default: --images'
    )
    group.add_argument('--model', help='checkpoint folder')
    group.add_argument('--params-file', type=Path, help='settings of the pipeline')


def _add_objective(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('objective')
    group.add_argument('--language-weight', type=float, default=0.5)
    group.add_argument('--accuracy-weight', type=float, default=0.5)
    group.add_argument(
        '--ratio-penalty',
        type=float,
        help='weight of the sum of the ratios, which is subtracted; default: 0.03, or 0 with '
        '--mean-retention',
    )
    group.add_argument(
        '--mean-retention',
        type=float,
        help='keep as many tokens as this ratio would, and search only how cameras share them',
    )
    group.add_argument(
        '--min-retention', type=float, help='default: 0.1, or a quarter of --mean-retention'
    )
    group.add_argument('--max-retention', type=float, default=1.0)
    group.add_argument(
        '--tokenizer', default='treebank', help='treebank, or ptb (Java on every machine)'
    )


def _add_search(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('search')
    group.add_argument(
        '--methods',
        default='tpe,uniform',
        help='comma-separated: tpe, uniform, random, grid, evolutionary; default: tpe,uniform',
    )
    group.add_argument(
        '--trials',
        type=int,
        default=DEFAULT_TRIALS,
        help='trials of each method, over all workers',
    )
    group.add_argument(
        '--no-pruning', action='store_true', help='finish trials below the median too'
    )
    group.add_argument('--seed', type=int, default=0)
    group.add_argument(
        '--storage',
        help='database URL, as postgresql://..., or an SQLite file; default: OUT/study.db',
    )
    group.add_argument('--name', help='name of the study; default: the model')
    group.add_argument('--workers', type=int, default=1, help='processes on this machine')
    group.add_argument(
        '--cache', type=Path, help='folder of encoded keyframes; default: OUT/cache'
    )
    group.add_argument(
        '--lease',
        type=float,
        default=DEFAULT_LEASE_S,
        help='seconds without a heartbeat after which a worker counts as dead',
    )


def run(args: argparse.Namespace) -> int:
    """Search, report, write; returns the exit code."""
    options = _options(args)
    from p2d_node.cli.tuning_report import SearchOutcome
    from p2d_node.tuning.comparison import check_unseen
    from p2d_node.tuning.local_workers import divide_threads, extra_workers
    from p2d_node.tuning.results import best_of, collect_results
    from p2d_node.tuning.session import read_tuning_set, TuningSession

    options = divide_threads(options, args.workers)
    question_set, held_out = read_tuning_set(options), _read_held_out(args, options)
    if held_out is not None:
        check_unseen(held_out, question_set)
    files = _prepare_files(args, options.config.model)
    session = TuningSession(options, question_set)
    try:
        with _progress() as bars:
            with extra_workers(options, args.workers - 1):
                _prepare(bars, session, session.question_set, 'keyframes encoded')
                _search(bars, session)
            results = collect_results(session.studies)
            best = best_of(results)
            comparison = _compare(bars, session, held_out, best)
        _write(args, SearchOutcome(session, results, best, comparison), files)
    finally:
        session.close()
    return 0


def _prepare_files(args: argparse.Namespace, model: str) -> dict[str, Path]:
    """Return the output files; check that they can be written before the first trial."""
    from p2d_node.durable_files import require_writable, write_faults
    from p2d_node.retention_presets import preset_name, writable_preset
    from p2d_node.tuning.retention_file import STUDY_KEPT

    params = args.params_out or writable_preset(model)
    if params is None:
        params = Path('config') / 'retention' / f'{preset_name(model)}.yaml'
    files = {'params': params.absolute(), 'picture': args.out / 'study.png'}
    for option, path in zip(('--params-out', '--out'), files.values(), strict=True):
        with write_faults(f'{option}: {path}', STUDY_KEPT):
            require_writable(path)
    return files


def _require_libraries() -> None:
    for library, requirements in (('optuna', 'tuning'), ('pycocoevalcap', 'evaluation')):
        if find_spec(library) is None:
            raise BackendUnavailableError(
                f'{library} is not installed; pip install -r requirements/{requirements}.txt'
            )


def _options(args: argparse.Namespace) -> TuningOptions:
    _check_counts(args)
    _require_libraries()
    from p2d_node.retention_presets import preset_name
    from p2d_node.tuning.methods import check_methods
    from p2d_node.tuning.objective import Objective, PUBLISHED_RATIO_PENALTY
    from p2d_node.tuning.search_space import PUBLISHED_BOUNDS
    from p2d_node.tuning.session import TuningOptions

    config = _config(args)
    mean, least, penalty = args.mean_retention, args.min_retention, args.ratio_penalty
    if least is None:
        least = PUBLISHED_BOUNDS[0] if mean is None else mean * MEAN_TO_LEAST
    if penalty is None:
        penalty = PUBLISHED_RATIO_PENALTY if mean is None else 0.0
    return TuningOptions(
        data=args.data,
        images=args.images,
        config=config,
        objective=Objective(
            language_weight=args.language_weight,
            accuracy_weight=args.accuracy_weight,
            ratio_penalty=penalty,
            tokenizer=_tokenizer(args.tokenizer),
        ),
        min_retention=least,
        max_retention=args.max_retention,
        mean_retention=mean,
        methods=check_methods(args.methods),
        num_trials=args.trials,
        seed=args.seed,
        pruning=not args.no_pruning,
        storage=args.storage or str(args.out / 'study.db'),
        name=args.name or preset_name(config.model),
        cache=args.cache or args.out / 'cache',
        lease_s=args.lease,
        limit=args.limit,
    )


def _check_counts(args: argparse.Namespace) -> None:
    for name in ('trials', 'workers', 'limit'):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f'--{name}: got {value}, allowed: 1 or more')
    if not LEAST_LEASE_S <= args.lease <= MOST_LEASE_S:
        raise ConfigError(
            f'--lease: got {args.lease:g}, allowed: {LEAST_LEASE_S:g} to {MOST_LEASE_S:g}'
        )
    if args.seed < 0:
        raise ConfigError(f'--seed: got {args.seed}, allowed: 0 or more')


def _tokenizer(name: str) -> str:
    from p2d_node.evaluation.language_metrics import choose_tokenizer

    if name == 'auto':
        raise ConfigError('--tokenizer: got auto, allowed: treebank, ptb; all workers need one')
    return choose_tokenizer(name)


def _config(args: argparse.Namespace) -> DriveConfig:
    from p2d_node.cli.parameter_file import read_drive_config

    return read_drive_config(args.params_file, model=args.model)


def _read_held_out(args: argparse.Namespace, options: TuningOptions) -> QuestionSet | None:
    from p2d_node.tuning.session import read_question_set

    if args.held_out is None:
        return None
    return read_question_set(
        args.held_out,
        args.held_out_images or args.images,
        objective=options.objective,
        cameras=tuple(options.config.cameras),
    )


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True))


def _prepare(
    bars: Progress, session: TuningSession, question_set: QuestionSet, title: str
) -> None:
    task = bars.add_task(title, total=len(question_set.keyframes))
    cache = session.keyframe_cache(question_set)
    for count in cache.prepare(question_set.keyframes, question_set.digests):
        bars.update(task, completed=count)


def _search(bars: Progress, session: TuningSession) -> None:
    from p2d_node.tuning.stop_request import StopRequest

    tasks = {
        method: bars.add_task(f'{method} trials', total=study.num_trials)
        for method, study in session.studies.items()
    }
    next_s = 0.0

    def show(*, always: bool = False) -> None:
        nonlocal next_s
        if always or time.monotonic() >= next_s:  # counting asks the storage
            for method, study in session.studies.items():
                bars.update(tasks[method], completed=min(study.num_ended, study.num_trials))
            next_s = time.monotonic() + SHOW_PERIOD_S

    with StopRequest() as stop:

        def on_progress() -> None:
            stop.check()
            show()

        session.work(on_progress, stop.is_noted)
    show(always=True)


def _compare(
    bars: Progress, session: TuningSession, held_out: QuestionSet | None, best: TrialResult
) -> Comparison | None:
    from p2d_node.tuning.comparison import compare_with_uniform

    if held_out is None:
        return None
    _prepare(bars, session, held_out, 'held-out keyframes encoded')
    task = bars.add_task('held-out answers', total=2 * len(held_out.keyframes))
    return compare_with_uniform(session, held_out, best.ratios, lambda: bars.advance(task))


def _write(args: argparse.Namespace, found: SearchOutcome, files: Mapping[str, Path]) -> None:
    """Write parameter file and picture, print the report."""
    from p2d_node.cli.tuning_report import header_lines, print_report, report_json
    from p2d_node.durable_files import write_faults
    from p2d_node.tuning.picture import plot_study
    from p2d_node.tuning.retention_file import STUDY_KEPT, write_retention_file

    options, session = found.session.options, found.session
    write_retention_file(
        files['params'],
        found.best.ratios,
        space=session.space,
        config=session.pipeline.config,
        header=header_lines(found, data=args.data, held_out=args.held_out),
    )
    with write_faults(f'--out: {files["picture"]}', STUDY_KEPT):
        plot_study(files['picture'], found.results, f'{options.name}: {args.data.name}')
    if args.json:
        print(json.dumps(report_json(found, files), indent=2))
    else:
        print_report(found, files)
