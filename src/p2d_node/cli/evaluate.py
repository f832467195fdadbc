"""Answers the questions of a benchmark and scores the answers, or scores a file of answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
import json
import os
from pathlib import Path
from typing import Any, TYPE_CHECKING

from p2d_node.cli.verbs.evaluate import API_KEY_VARIABLE, AUTO_FORMAT, EvaluateOptions
from p2d_node.durable_files import no_leftovers
from p2d_node.errors import BackendUnavailableError, ConfigError

if TYPE_CHECKING:
    from p2d_node.config import DriveConfig
    from p2d_node.evaluation.answering import AnswerJob, Keyframe
    from p2d_node.evaluation.data_formats import DataFormat
    from p2d_node.evaluation.judge import Judge
    from p2d_node.evaluation.record_file import RecordFile


def run(options: EvaluateOptions) -> int:
    """Answer, score, print; returns the exit code."""
    with no_leftovers(options.out):
        return _run(options)


def _run(options: EvaluateOptions) -> int:
    from p2d_node.assembly import clip_settings
    from p2d_node.evaluation.bag_keyframes import keyframes_of_bag
    from p2d_node.evaluation.data_formats import FORMATS, recognize_format
    from p2d_node.evaluation.language_metrics import choose_tokenizer

    choose_tokenizer(options.tokenizer)
    judge = _make_judge(options)
    name = recognize_format(options.data) if options.format == AUTO_FORMAT else options.format
    data_format = FORMATS[name]
    all_questions = data_format.read_questions(options.data)
    if options.bag is None:
        return _evaluate(options, data_format, judge, all_questions, all_questions)
    clip = clip_settings(_config(options, data_format))
    with keyframes_of_bag(options.bag, all_questions, clip) as (images, questions):
        there = replace(options, bag=None, images=images)
        return _evaluate(there, data_format, judge, questions, all_questions)


def _evaluate(
    options: EvaluateOptions,
    data_format: DataFormat,
    judge: Judge | None,
    questions: Sequence[Any],
    all_questions: Sequence[Any],
) -> int:
    """Answer and score those of all questions that can be answered, up to the limit."""
    from p2d_node.evaluation.predictions import read_predictions

    notes_of_bag = _bag_note(len(questions), len(all_questions))
    questions = _limited(questions, options.limit)
    costs: dict[str, Any] = {}
    if options.predictions is not None:
        predictions = read_predictions(options.predictions)
    else:
        predictions, costs = _answer(options, data_format, questions, all_questions)
    if any(question.reference is None for question in questions) and options.predictions is None:
        notes = ['the data has no reference answers: nothing is scored']
        notes += [*notes_of_bag, *_notes_of_answers(costs, len(questions))]
        report = {'num_questions': len(questions), 'scores': None, **costs, 'notes': notes}
        _finish(options, data_format, questions, predictions, report)
        return 0
    scores = _score(options, data_format, questions, predictions, judge)
    notes = [*scores.pop('notes'), *notes_of_bag, *_notes_of_answers(costs, len(questions))]
    report = {**scores, **costs, 'notes': notes}
    _finish(options, data_format, questions, predictions, report)
    return 0


def _finish(
    options: EvaluateOptions,
    data_format: DataFormat,
    questions: Sequence[Any],
    predictions: Mapping[str, str],
    report: dict[str, Any],
) -> None:
    """Print the scores; after a run of the model, write its report too."""
    if options.predictions is None and options.images is not None:
        from p2d_node.cli.evaluate_page import evaluation_page
        from p2d_node.reports.page import REPORT_FILE, write_page

        config = _config(options, data_format)
        page = evaluation_page(
            report,
            _flatten(report),
            questions,
            predictions,
            data=options.data.name,
            images=options.images,
            ratios={name: config.retention_ratio_of(name) for name in config.cameras},
            max_pixels=config.max_image_pixels,
        )
        write_page(page, options.out / REPORT_FILE)
    _print(options, report)


def _bag_note(num_there: int, num_questions: int) -> list[str]:
    if num_there == num_questions:
        return []
    return [f'the bag has the images of {num_there} of the {num_questions} questions of the data']


def _notes_of_answers(costs: Mapping[str, Any], num_answers: int) -> list[str]:
    return [*_clip_note(costs), *_cut_note(costs, num_answers)]


def _clip_note(costs: Mapping[str, Any]) -> list[str]:
    lengths = costs.get('num_frames', {})
    full = str(costs.get('frames_per_camera', 1))
    num_short = sum(count for length, count in lengths.items() if length != full)
    if not num_short:
        return []
    return [
        f'{num_short} of {sum(lengths.values())} keyframes have not all {full} frames per camera: '
        'there are no images at the interval before them, or none that can be used'
    ]


def _cut_note(costs: Mapping[str, Any], num_answers: int) -> list[str]:
    num_cut = costs.get('num_cut_by_length', 0)
    if not num_cut:
        return []
    return [
        f'{num_cut} of {num_answers} answers were cut at {costs["max_new_tokens"]} tokens, and '
        'lose score: raise --max-new-tokens'
    ]


def _score(
    options: EvaluateOptions,
    data_format: DataFormat,
    questions: Sequence[Any],
    predictions: Mapping[str, str],
    judge: Judge | None,
) -> dict[str, Any]:
    from p2d_node.cli.screen import InertConsole
    from p2d_node.evaluation.judge import CachedJudge, KEPT_FIELDS
    from p2d_node.evaluation.record_file import RecordFile
    from rich.progress import Progress

    if judge is None:
        scores = data_format.score(questions, predictions, None, options.tokenizer)
        return {**scores, 'judgements': None}
    with (
        RecordFile(options.out / 'judgements.jsonl', {'holds': 'judgements'}, KEPT_FIELDS) as kept,
        Progress(console=InertConsole(stderr=True)) as bars,
    ):
        task = bars.add_task('judgements', total=None)

        def show(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)

        cached = CachedJudge(judge, kept, show)
        scores = data_format.score(questions, predictions, cached, options.tokenizer)
    counts = {'from_earlier_runs': cached.num_kept, 'none': cached.num_unjudged}
    return {**scores, 'judgements': counts}


def _limited(questions: Sequence[Any], limit: int | None) -> Sequence[Any]:
    from p2d_node.evaluation.answering import group_keyframes

    if limit is None:
        return questions
    return [q for keyframe in group_keyframes(questions)[:limit] for q in keyframe.questions]


def _make_judge(options: EvaluateOptions) -> Judge | None:
    from p2d_node.cli.screen import say
    from p2d_node.evaluation.chat_judge import ChatJudge
    from p2d_node.evaluation.command_judge import CommandJudge

    # No other program that this one starts gets the key.
    key = os.environ.pop(API_KEY_VARIABLE, '')
    if options.judge_command is not None:
        return CommandJudge(options.judge_command)
    if options.judge_url is None:
        return None
    judge = ChatJudge(
        options.judge_url, options.judge_model, _checked_key(key), options.judge_parallel
    )
    if judge.exposes_secret:
        say(
            f'p2d evaluate: --judge-url: {judge.url} gets its key or password unencrypted over '
            'the network; use https://',
            error=True,
        )
    return judge


def _checked_key(key: str) -> str:
    """Return a key without a line end that came from a file."""
    key = key.strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f'{API_KEY_VARIABLE}: got a character that no key has, allowed: printable ASCII; copy '
            'the key again'
        )
    return key


def _answer(
    options: EvaluateOptions,
    data_format: DataFormat,
    questions: Sequence[Any],
    all_questions: Sequence[Any],
) -> tuple[dict[str, str], dict[str, Any]]:
    """Answer the questions that have no answer yet; returns predictions and their costs."""
    from p2d_node.evaluation.answering import (
        check_images,
        check_pictures,
        group_keyframes,
        RECORD_FIELDS,
        unanswered,
    )
    from p2d_node.evaluation.record_file import RecordFile

    job = _make_job(options, data_format)
    keyframes = group_keyframes(questions)
    check_images(keyframes, job.image_root, job.cameras)
    provenance = _provenance(job, all_questions)
    with RecordFile(options.out / 'answers.jsonl', provenance, RECORD_FIELDS) as answers:
        check_pictures(job, keyframes, answers)
        left = unanswered(keyframes, answers)
        if left:
            _answer_the_rest(job, left, answers, len(questions))
        done = answers.done
    records = [done[question.id] for question in questions]
    _write_submission(options.out / 'submission.json', data_format, records)
    costs = _costs(job, records, [done[keyframe.questions[0].id] for keyframe in keyframes])
    return {r['id']: r['answer'] for r in records}, costs


def _write_submission(
    path: Path, data_format: DataFormat, records: Sequence[Mapping[str, Any]]
) -> None:
    from p2d_node.durable_files import write_faults, write_json

    fields = data_format.submission
    remedy = 'remove it, or free some space: the answers are kept, and the same command continues'
    with write_faults(f'{path}:', remedy):
        write_json(path, [{theirs: r[ours] for theirs, ours in fields.items()} for r in records])


def _answer_the_rest(
    job: AnswerJob, left: Sequence[Keyframe], answers: RecordFile, num_questions: int
) -> None:
    from p2d_node.cli.screen import InertConsole
    from rich.progress import Progress

    num_left = sum(len(keyframe.questions) for keyframe in left)
    answer = _choose_answer(job)
    with Progress(console=InertConsole(stderr=True), transient=True) as bars:
        task = bars.add_task('questions', total=num_questions, completed=num_questions - num_left)
        for count in answer(job, left, answers):
            bars.advance(task, count)


def _choose_answer(job: AnswerJob) -> Callable[..., Iterator[int]]:
    """Return the function that answers: only several workers need Dask."""
    if job.workers == 1 and job.scheduler is None:
        from p2d_node.evaluation.answering import answer_all

        return answer_all
    if find_spec('distributed') is None:
        raise BackendUnavailableError(
            'distributed is not installed, and --workers and --scheduler need it; '
            'pip install -r requirements/evaluation.txt'
        )
    from p2d_node.evaluation.answer_workers import answer_with_workers

    return answer_with_workers


def _make_job(options: EvaluateOptions, data_format: DataFormat) -> AnswerJob:
    from p2d_node.evaluation.answering import AnswerJob

    if options.images is None:
        raise ConfigError(
            '--images is missing; needed: the folder that holds samples/; or give --bag, or '
            '--predictions to score answers made elsewhere'
        )
    return AnswerJob(
        config=_config(options, data_format),
        image_root=options.images,
        instruction=options.instruction,
        workers=options.workers,
        scheduler=options.scheduler,
    )


def _config(options: EvaluateOptions, data_format: DataFormat) -> DriveConfig:
    from p2d_node.cli.clip_options import with_clip_options
    from p2d_node.cli.parameter_file import read_drive_config

    defaults = {'max_new_tokens': data_format.max_new_tokens}
    config = read_drive_config(options.params_file, model=options.model, defaults=defaults)
    if options.retention_ratio is not None:
        ratios = dict.fromkeys(config.cameras, options.retention_ratio)
        config = replace(config, retention_ratio=ratios)
    if options.max_new_tokens is not None:
        config = replace(config, max_new_tokens=options.max_new_tokens)
    return with_clip_options(
        config,
        frames_per_camera=options.frames_per_camera,
        frame_interval_ms=options.frame_interval_ms,
    )


def _provenance(job: AnswerJob, all_questions: Sequence[Any]) -> dict[str, Any]:
    """Return the settings that must be equal for a run to continue with stored answers."""
    from p2d_node.checkpoints.checkpoint import open_checkpoint
    from p2d_node.checkpoints.model_folder import model_folder
    from p2d_node.evaluation.answer_settings import answer_settings
    from p2d_node.evaluation.fingerprints import digest_model, digest_questions

    with model_folder(job.config.model) as folder:
        model = digest_model(open_checkpoint(folder).folder)
    return {
        **answer_settings(job.config),
        'data': f'sha256 {digest_questions(all_questions)[:16]}',
        'model': f'sha256 {model[:16]}',
        'instruction': job.instruction,
        'retention_ratio': {name: job.config.retention_ratio_of(name) for name in job.cameras},
    }


def _costs(
    job: AnswerJob, records: Sequence[dict[str, Any]], firsts: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Return times and token counts of the answers; `firsts` has one record of each sweep."""
    from p2d_node.records import Cut

    kept, total = (sum(r[f'tokens_{of}'] for r in records) for of in ('kept', 'total'))
    return {
        'model': job.config.model,
        'max_new_tokens': job.config.max_new_tokens,
        'frames_per_camera': job.config.frames_per_camera,
        'num_cut_by_length': sum(record['cut'] == Cut.LENGTH.value for record in records),
        'num_frames': _count_lengths(firsts),
        'tokens_kept_share': kept / max(1, total),
        'num_answers_by_workers': Counter(str(record['workers']) for record in records),
        'latency_per_sweep': _percentiles(firsts, ('encode_ms', 'select_ms')),
        'latency_per_question': _percentiles(records, ('prefill_ms', 'generate_ms')),
    }


def _count_lengths(firsts: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return number of frames per camera to how many keyframes had a clip of this length."""
    return dict(sorted(Counter(str(record['num_frames']) for record in firsts).items()))


def _percentiles(
    records: Sequence[dict[str, Any]], stages: Sequence[str]
) -> dict[str, dict[str, float]]:
    from p2d_node.benchmarks.measuring import percentile

    return {
        stage: {
            name: percentile([record[stage] for record in records], share)
            for name, share in (('p50', 0.5), ('p95', 0.95))
        }
        for stage in stages
    }


def _print(options: EvaluateOptions, report: dict[str, Any]) -> None:
    if options.json:
        print(json.dumps(report, indent=2))
        return
    from p2d_node.cli.screen import InertConsole
    from rich.table import Table

    table = Table(title=str(options.data))
    for heading in ('', 'score'):
        table.add_column(heading)
    notes = report.pop('notes')
    for name, value in _flatten(report):
        table.add_row(name, 'absent' if value is None else _text(value))
    console = InertConsole()
    console.print(table)
    for note in notes:
        console.print(f'- {note}.', highlight=False)


def _flatten(report: dict[str, Any], prefix: str = '') -> list[tuple[str, Any]]:
    rows = []
    for name, value in report.items():
        if isinstance(value, dict):
            rows += _flatten(value, f'{prefix}{name} ')
        elif isinstance(value, (list, tuple)):
            rows += [(f'{prefix}{name}-{i}', item) for i, item in enumerate(value, 1)]
        else:
            rows.append((f'{prefix}{name}', value))
    return rows


def _text(value: Any) -> str:
    return f'{value:.4f}' if isinstance(value, float) else str(value)
