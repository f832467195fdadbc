"""Searches the retention ratio of each camera, and writes the ratios for the node."""

from __future__ import annotations

from importlib.util import find_spec
import json
from pathlib import Path
import time
from typing import TYPE_CHECKING

from p2d_node.cli.verbs.tune_ratios import TuneOptions
from p2d_node.durable_files import no_leftovers, refuse_link
from p2d_node.errors import BackendUnavailableError, ConfigError

if TYPE_CHECKING:
    from p2d_node.cli.tuning_report import SearchOutcome
    from p2d_node.config import DriveConfig
    from p2d_node.tuning.comparison import Comparison
    from p2d_node.tuning.results import TrialResult
    from p2d_node.tuning.session import QuestionSet, TuningOptions, TuningSession
    from rich.progress import Progress

SHOW_PERIOD_S = 2.0
MEAN_TO_LEAST = 0.25
"""Default of `min_retention`, as a share of `mean_retention`."""


def run(options: TuneOptions) -> int:
    """Search, report, write; returns the exit code."""
    with no_leftovers(options.out):
        return _run(options)


def _run(options: TuneOptions) -> int:
    study = _study(options)
    from p2d_node.cli.tuning_report import SearchOutcome
    from p2d_node.tuning.comparison import check_unseen
    from p2d_node.tuning.local_workers import divide_threads, extra_workers
    from p2d_node.tuning.results import best_of
    from p2d_node.tuning.session import read_tuning_set, TuningSession

    study = divide_threads(study, options.workers)
    question_set, held_out = read_tuning_set(study), _read_held_out(options, study)
    if held_out is not None:
        check_unseen(held_out, question_set)
    files = _prepare_files(options, study.config.model)
    session = TuningSession(study, question_set)
    try:
        with _progress() as bars:
            with extra_workers(study, options.workers - 1):
                _prepare(bars, session, session.question_set, 'keyframes encoded')
                _search(bars, session)
            results = session.results()
            best = best_of(results)
            comparison = _compare(bars, session, held_out, best)
        _write(options, SearchOutcome(session, results, best, comparison), files)
    finally:
        session.close()
    return 0


def _prepare_files(options: TuneOptions, model: str) -> dict[str, Path]:
    """Return the files of the result, and check before the search that they can be written."""
    from p2d_node.durable_files import require_writable, write_faults
    from p2d_node.retention_presets import preset_name
    from p2d_node.tuning.installation import find_target
    from p2d_node.tuning.retention_file import STUDY_KEPT

    params = options.params_out or options.out / f'{preset_name(model)}.yaml'
    files = {'params': params.absolute(), 'picture': options.out / 'study.png'}
    for flag, path in zip(('--params-out', '--out'), files.values(), strict=True):
        with write_faults(f'{flag}: {path}', STUDY_KEPT):
            require_writable(path)
    if options.install:
        files['installed'] = find_target(model)
    return files


def _require_libraries() -> None:
    for library, requirements in (('optuna', 'tuning'), ('pycocoevalcap', 'evaluation')):
        if find_spec(library) is None:
            raise BackendUnavailableError(
                f'{library} is not installed; pip install -r requirements/{requirements}.txt'
            )


def _study(options: TuneOptions) -> TuningOptions:
    """Return the settings of the study."""
    _require_libraries()
    from p2d_node.retention_presets import preset_name
    from p2d_node.tuning.methods import check_methods
    from p2d_node.tuning.objective import Objective, PUBLISHED_RATIO_PENALTY
    from p2d_node.tuning.search_space import PUBLISHED_BOUNDS, SearchSpace
    from p2d_node.tuning.session import TuningOptions

    config = _config(options)
    mean, least, penalty = options.mean_retention, options.min_retention, options.ratio_penalty
    if least is None:
        least = PUBLISHED_BOUNDS[0] if mean is None else mean * MEAN_TO_LEAST
    if penalty is None:
        penalty = PUBLISHED_RATIO_PENALTY if mean is None else 0.0
    # Before anything is opened: bounds that do not fit together.
    SearchSpace(
        num_tokens={},
        min_retention=least,
        max_retention=options.max_retention,
        mean_retention=mean,
    )
    return TuningOptions(
        data=options.data,
        images=options.images,
        config=config,
        objective=Objective(
            language_weight=options.language_weight,
            accuracy_weight=options.accuracy_weight,
            ratio_penalty=penalty,
            tokenizer=_tokenizer(options.tokenizer),
        ),
        min_retention=least,
        max_retention=options.max_retention,
        mean_retention=mean,
        methods=check_methods(options.methods),
        num_trials=options.trials,
        seed=options.seed,
        pruning=not options.no_pruning,
        storage=options.storage or str(options.out / 'study.db'),
        name=options.name or preset_name(config.model),
        cache=options.cache or _default_cache(options.out),
        lease_s=options.lease,
        limit=options.limit,
    )


def _default_cache(out: Path) -> Path:
    cache = out / 'cache'
    refuse_link(cache, 'cache')
    return cache


def _tokenizer(name: str) -> str:
    from p2d_node.evaluation.language_metrics import choose_tokenizer

    if name == 'auto':
        raise ConfigError('tokenizer: got auto, allowed: treebank, ptb; all workers need one')
    return choose_tokenizer(name)


def _config(options: TuneOptions) -> DriveConfig:
    from p2d_node.cli.clip_options import with_clip_options
    from p2d_node.cli.parameter_file import read_drive_config
    from p2d_node.evaluation.data_formats import FORMATS

    defaults = {'max_new_tokens': FORMATS['drivelm'].max_new_tokens}
    config = read_drive_config(options.params_file, model=options.model, defaults=defaults)
    return with_clip_options(
        config,
        frames_per_camera=options.frames_per_camera,
        frame_interval_ms=options.frame_interval_ms,
    )


def _read_held_out(options: TuneOptions, study: TuningOptions) -> QuestionSet | None:
    from p2d_node.tuning.session import read_question_set

    if options.held_out is None:
        return None
    return read_question_set(
        options.held_out,
        options.held_out_images or options.images,
        objective=study.objective,
        config=study.config,
    )


def _progress() -> Progress:
    from p2d_node.cli.screen import InertConsole
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=InertConsole(stderr=True))


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


def _install(
    options: TuneOptions, found: SearchOutcome, files: dict[str, Path]
) -> ConfigError | None:
    """Install the ratios, and add the file that keeps those before; returns why it was refused."""
    from p2d_node.tuning.comparison import LOSS
    from p2d_node.tuning.installation import install_ratios

    is_worse = found.comparison is not None and found.comparison.verdict == LOSS
    target = files['installed']
    try:
        kept = install_ratios(files['params'], target, is_worse=is_worse, force=options.force)
    except ConfigError as err:
        del files['installed']
        return err
    if kept is not None:
        files['before'] = kept
    return None


def _write(options: TuneOptions, found: SearchOutcome, files: dict[str, Path]) -> None:
    """Write parameter file and picture, install the ratios, print the report.

    Raises:
        ConfigError: A file cannot be written, or the installation was refused.
    """
    from p2d_node.cli.tuning_page import tuning_page
    from p2d_node.cli.tuning_report import header_lines, print_report, report_json, verdict_text
    from p2d_node.durable_files import write_faults
    from p2d_node.reports.page import REPORT_FILE, write_page
    from p2d_node.tuning.picture import plot_study
    from p2d_node.tuning.retention_file import STUDY_KEPT, write_retention_file

    study, session = found.session.options, found.session
    write_retention_file(
        files['params'],
        found.best.ratios,
        space=session.space,
        config=session.pipeline.config,
        header=header_lines(found, data=options.data, held_out=options.held_out),
    )
    with write_faults(f'out: {files["picture"]}', STUDY_KEPT):
        plot_study(files['picture'], found.results, f'{study.name}: {options.data.name}')
    refusal = _install(options, found, files) if options.install else None
    files['report'] = options.out / REPORT_FILE
    report = report_json(found, files)
    verdict = verdict_text(found.comparison) if found.comparison is not None else ''
    write_page(tuning_page(report, files['picture'], verdict), files['report'])
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        print_report(found, files)
    if refusal is not None:
        raise refusal
