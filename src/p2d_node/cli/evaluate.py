"""`p2d evaluate`: answers the questions of a benchmark and scores them, or scores a file."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
import json
import os
from pathlib import Path
from typing import Any, TYPE_CHECKING

from p2d_node.errors import BackendUnavailableError, ConfigError

if TYPE_CHECKING:
    from p2d_node.config import DriveConfig
    from p2d_node.evaluation.answering import AnswerJob, Keyframe
    from p2d_node.evaluation.data_formats import DataFormat
    from p2d_node.evaluation.judge import Judge
    from p2d_node.evaluation.record_file import RecordFile

EXAMPLE = """examples:
  p2d evaluate --data v1_1_val_nus_q_only_with_tag.json --images nuscenes --model models/drivemm
  p2d evaluate --data DriveLMMo1_TEST.json --images nuscenes --model models/drivelmm-o1 --workers 4
  p2d evaluate --data v1_1_val_with_answers.json --predictions submission.json --json
"""

API_KEY_VARIABLE = 'P2D_JUDGE_API_KEY'

AUTO_FORMAT = 'auto'
FORMAT_NAMES = ('drivelm', 'drivelmm-o1')


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the verb `evaluate`."""
    parser = subparsers.add_parser(
        'evaluate',
        help='answer and score the questions of DriveLM and DriveLMM-o1',
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_data(parser)
    _add_answering(parser)
    _add_scoring(parser)
    parser.set_defaults(run=run)


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--data', type=Path, required=True, help='JSON of DriveLM or of DriveLMM-o1'
    )
    parser.add_argument(
        '--format',
        choices=(AUTO_FORMAT, *FORMAT_NAMES),
        default=AUTO_FORMAT,
        help='format of --data; auto: recognise it by its fields',
    )
    parser.add_argument('--limit', type=int, help='only the first N keyframes')
    parser.add_argument('--predictions', type=Path, help='score these answers; runs no model')


def _add_answering(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--images', type=Path, help='folder that holds samples/<CAMERA>/*.jpg')
    parser.add_argument('--model', help='checkpoint folder')
    parser.add_argument('--params-file', type=Path, help='settings of the pipeline')
    parser.add_argument('--retention-ratio', type=float, help='kept/total, for all cameras')
    parser.add_argument(
        '--max-new-tokens',
        type=int,
        help='longest answer; default: the value in --params-file, else 64, or 2000 for '
        'DriveLMM-o1, whose answers contain reasoning',
    )
    parser.add_argument(
        '--instruction',
        default='',
        help='text put before each question',
    )
    parser.add_argument(
        '--workers',
        type=int,
        default=1,
        help='number of processes that answer keyframes in parallel. Each loads the model, so N '
        'of them need N times its memory, also on a GPU. CPU threads are divided among them, '
        'and the times in the report are measured while they compete',
    )
    parser.add_argument(
        '--scheduler',
        metavar='ADDRESS',
        help='answer on the workers of a running Dask cluster, as tcp://host:8786 or '
        'tls://host:8786, instead of --workers; only for networks that you trust',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('evaluation'),
        help='output folder for answers.jsonl, submission.json and judgements.jsonl; an '
        'interrupted run continues there',
    )


def _add_scoring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--judge-command',
        help='command that scores free answers: it reads JSON lines, and writes a number per '
        'line, or for DriveLMM-o1 an object of ratings per line',
    )
    parser.add_argument(
        '--judge-url', help=f'OpenAI-compatible service; its key in {API_KEY_VARIABLE}'
    )
    parser.add_argument('--judge-model', default='gpt-4o-mini', help='model of --judge-url')
    parser.add_argument(
        '--judge-parallel', type=int, default=4, help='number of parallel requests to --judge-url'
    )
    parser.add_argument('--tokenizer', default='auto', help='ptb (Java), treebank or auto')
    parser.add_argument('--json', action='store_true', help='print figures as JSON')


def run(args: argparse.Namespace) -> int:
    """Answer, score, print; returns the exit code."""
    from p2d_node.evaluation.data_formats import FORMATS, recognize_format
    from p2d_node.evaluation.language_metrics import choose_tokenizer
    from p2d_node.evaluation.predictions import read_predictions

    choose_tokenizer(args.tokenizer)
    judge = _make_judge(args)
    name = recognize_format(args.data) if args.format == AUTO_FORMAT else args.format
    data_format = FORMATS[name]
    all_questions = data_format.read_questions(args.data)
    questions = _limited(all_questions, args.limit)
    costs: dict[str, Any] = {}
    if args.predictions is not None:
        predictions = read_predictions(args.predictions)
    else:
        predictions, costs = _answer(args, data_format, questions, all_questions)
    if any(question.reference is None for question in questions) and args.predictions is None:
        _print(args, {'num_questions': len(questions), 'scores': None, **costs})
        return 0
    _print(args, {**_score(args, data_format, questions, predictions, judge), **costs})
    return 0


def _score(
    args: argparse.Namespace,
    data_format: DataFormat,
    questions: Sequence[Any],
    predictions: Mapping[str, str],
    judge: Judge | None,
) -> dict[str, Any]:
    from p2d_node.evaluation.judge import CachedJudge, KEPT_FIELDS
    from p2d_node.evaluation.record_file import RecordFile
    from rich.console import Console
    from rich.progress import Progress

    if judge is None:
        scores = data_format.score(questions, predictions, None, args.tokenizer)
        return {**scores, 'judgements': None}
    with (
        RecordFile(args.out / 'judgements.jsonl', {'holds': 'judgements'}, KEPT_FIELDS) as kept,
        Progress(console=Console(stderr=True)) as bars,
    ):
        task = bars.add_task('judgements', total=None)

        def show(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)

        cached = CachedJudge(judge, kept, show)
        scores = data_format.score(questions, predictions, cached, args.tokenizer)
    counts = {'from_earlier_runs': cached.num_kept, 'none': cached.num_unjudged}
    return {**scores, 'judgements': counts}


def _limited(questions: Sequence[Any], limit: int | None) -> Sequence[Any]:
    from p2d_node.evaluation.answering import group_keyframes

    if limit is None:
        return questions
    if limit < 1:
        raise ConfigError(f'--limit: got {limit}, allowed: 1 or more')
    return [q for keyframe in group_keyframes(questions)[:limit] for q in keyframe.questions]


def _make_judge(args: argparse.Namespace) -> Judge | None:
    from p2d_node.evaluation.chat_judge import ChatJudge
    from p2d_node.evaluation.command_judge import CommandJudge

    if args.judge_command is not None and args.judge_url is not None:
        raise ConfigError('--judge-command, --judge-url: got both, allowed: one')
    if args.judge_command is not None:
        return CommandJudge(args.judge_command)
    if args.judge_url is not None:
        return ChatJudge(args.judge_url, args.judge_model, _api_key(), args.judge_parallel)
    return None


def _api_key() -> str:
    """Return the key from the environment; one read from a file ends with its line."""
    key = os.environ.get(API_KEY_VARIABLE, '').strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f'{API_KEY_VARIABLE}: got a character that no key has, allowed: printable ASCII; copy '
            'the key again'
        )
    return key


def _answer(
    args: argparse.Namespace,
    data_format: DataFormat,
    questions: Sequence[Any],
    all_questions: Sequence[Any],
) -> tuple[dict[str, str], dict[str, Any]]:
    """Answer the unanswered ones of `questions`; return the predictions and their costs."""
    from p2d_node.evaluation.answering import (
        check_images,
        group_keyframes,
        RECORD_FIELDS,
        unanswered,
    )
    from p2d_node.evaluation.record_file import RecordFile

    job = _make_job(args, data_format)
    keyframes = group_keyframes(questions)
    check_images(keyframes, job.image_root, job.cameras)
    provenance = _provenance(job, all_questions)
    with RecordFile(args.out / 'answers.jsonl', provenance, RECORD_FIELDS) as answers:
        left = unanswered(keyframes, answers)
        if left:
            _answer_the_rest(job, left, answers, len(questions))
        done = answers.done
    records = [done[question.id] for question in questions]
    _write_submission(args.out / 'submission.json', data_format, records)
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
    from rich.console import Console
    from rich.progress import Progress

    num_left = sum(len(keyframe.questions) for keyframe in left)
    answer = _choose_answer(job)
    with Progress(console=Console(stderr=True)) as bars:
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


def _make_job(args: argparse.Namespace, data_format: DataFormat) -> AnswerJob:
    from p2d_node.evaluation.answering import AnswerJob

    if args.images is None:
        raise ConfigError(
            '--images is missing; needed: the folder that holds samples/, or give '
            '--predictions to score answers made elsewhere'
        )
    if args.workers < 1:
        raise ConfigError(f'--workers: got {args.workers}, allowed: 1 or more')
    if args.scheduler is not None and args.workers != 1:
        raise ConfigError('--workers, --scheduler: got both, allowed: one')
    return AnswerJob(
        config=_config(args, data_format),
        image_root=args.images,
        instruction=args.instruction,
        workers=args.workers,
        scheduler=args.scheduler,
    )


def _config(args: argparse.Namespace, data_format: DataFormat) -> DriveConfig:
    from p2d_node.cli.parameter_file import read_drive_config

    longest = data_format.max_new_tokens
    defaults = {} if longest is None else {'max_new_tokens': longest}
    config = read_drive_config(args.params_file, model=args.model, defaults=defaults)
    if args.retention_ratio is not None:
        ratios = dict.fromkeys(config.cameras, args.retention_ratio)
        config = replace(config, retention_ratio=ratios)
    if args.max_new_tokens is not None:
        config = replace(config, max_new_tokens=args.max_new_tokens)
    return config


def _provenance(job: AnswerJob, all_questions: Sequence[Any]) -> dict[str, Any]:
    """Return what two runs must have in common for one to continue the other."""
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

    kept = sum(record['tokens_kept'] for record in records)
    return {
        'model': job.config.model,
        'num_cut_by_length': sum(record['cut'] == Cut.LENGTH.value for record in records),
        'tokens_kept_share': kept / sum(record['tokens_total'] for record in records),
        'num_answers_by_workers': Counter(str(record['workers']) for record in records),
        'latency_per_sweep': _percentiles(firsts, ('encode_ms', 'select_ms')),
        'latency_per_question': _percentiles(records, ('prefill_ms', 'generate_ms')),
    }


def _percentiles(
    records: Sequence[dict[str, Any]], stages: Sequence[str]
) -> dict[str, dict[str, float]]:
    from p2d_node.evaluation.selection_benchmark import percentile

    return {
        stage: {
            name: percentile([record[stage] for record in records], share)
            for name, share in (('p50', 0.5), ('p95', 0.95))
        }
        for stage in stages
    }


def _print(args: argparse.Namespace, report: dict[str, Any]) -> None:
    if args.json:
        print(json.dumps(report, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=str(args.data))
    for heading in ('', 'score'):
        table.add_column(heading)
    for name, value in _flatten(report):
        table.add_row(name, 'absent' if value is None else _text(value))
    Console().print(table)


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
