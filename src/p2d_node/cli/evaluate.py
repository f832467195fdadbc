"""`p2d evaluate`: answers DriveLM questions with a model and scores them, or scores a file."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
import json
import os
from pathlib import Path
from typing import Any, TYPE_CHECKING

from p2d_node.errors import ConfigError

if TYPE_CHECKING:
    from p2d_node.config import DriveConfig
    from p2d_node.evaluation.drivelm_questions import DriveLmQuestion
    from p2d_node.evaluation.drivelm_scores import DriveLmScores, Judge

EXAMPLE = """examples:
  p2d evaluate --data v1_1_val_nus_q_only_with_tag.json --images nuscenes --model models/drivemm
  p2d evaluate --data v1_1_val_with_answers.json --predictions submission.json --json
"""

API_KEY_VARIABLE = 'P2D_JUDGE_API_KEY'


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the verb `evaluate`."""
    parser = subparsers.add_parser(
        'evaluate',
        help='answer and score DriveLM questions',
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--data', type=Path, required=True, help='DriveLM JSON')
    parser.add_argument('--predictions', type=Path, help='score these answers; runs no model')
    parser.add_argument('--images', type=Path, help='folder that holds samples/<CAMERA>/*.jpg')
    parser.add_argument('--model', help='checkpoint folder')
    parser.add_argument('--params-file', type=Path, help='settings of the pipeline')
    parser.add_argument('--retention-ratio', type=float, help='kept/total, for all cameras')
    parser.add_argument('--limit', type=int, help='only the first N keyframes')
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('evaluation'),
        help='folder of answers.jsonl and submission.json; a run that was cut goes on there',
    )
    parser.add_argument('--judge-command', help='scores free answers: JSON lines in, numbers out')
    parser.add_argument(
        '--judge-url', help=f'OpenAI-compatible service; its key in {API_KEY_VARIABLE}'
    )
    parser.add_argument('--judge-model', default='gpt-4o-mini', help='model of --judge-url')
    parser.add_argument('--tokenizer', default='auto', help='ptb (Java), treebank or auto')
    parser.add_argument('--json', action='store_true', help='print figures as JSON')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answer, score, print; returns the exit code."""
    from p2d_node.evaluation.drivelm_questions import read_predictions, read_questions
    from p2d_node.evaluation.drivelm_scores import score_predictions

    judge = _make_judge(args)
    questions = _limited(read_questions(args.data), args.limit)
    costs: dict[str, Any] = {}
    if args.predictions is not None:
        predictions = read_predictions(args.predictions)
    else:
        predictions, costs = _answer(args, questions)
    if any(question.reference is None for question in questions) and args.predictions is None:
        _print(args, {'num_questions': len(questions), 'scores': None, **costs})
        return 0
    scores = score_predictions(questions, predictions, judge=judge, tokenizer=args.tokenizer)
    _print(args, {**_scores_json(scores), **costs})
    return 0


def _limited(questions: list[DriveLmQuestion], limit: int | None) -> list[DriveLmQuestion]:
    from p2d_node.evaluation.answering import group_keyframes

    if limit is None:
        return questions
    if limit < 1:
        raise ConfigError(f'--limit: got {limit}, allowed: 1 or more')
    return [q for keyframe in group_keyframes(questions)[:limit] for q in keyframe.questions]


def _make_judge(args: argparse.Namespace) -> Judge | None:
    from p2d_node.evaluation.judge import ChatJudge, CommandJudge

    if args.judge_command and args.judge_url:
        raise ConfigError('--judge-command, --judge-url: got both, allowed: one')
    if args.judge_command:
        return CommandJudge(args.judge_command)
    if args.judge_url:
        api_key = os.environ.get(API_KEY_VARIABLE, '')
        return ChatJudge(args.judge_url, args.judge_model, api_key)
    return None


def _answer(
    args: argparse.Namespace, questions: list[DriveLmQuestion]
) -> tuple[dict[str, str], dict[str, Any]]:
    """Answer what is still open; returns the predictions, and what they cost."""
    from p2d_node.durable_files import write_json
    from p2d_node.evaluation.answering import (
        answer_all,
        AnswerFile,
        check_images,
        group_keyframes,
    )
    from p2d_node.pipeline import DrivingPipeline
    from rich.console import Console
    from rich.progress import Progress

    if args.images is None:
        raise ConfigError(
            '--images is missing; needed: the folder that holds samples/, or give '
            '--predictions to score answers made elsewhere'
        )
    config = _config(args)
    keyframes = group_keyframes(questions)
    check_images(keyframes, args.images, tuple(config.cameras))
    answers = AnswerFile(args.out / 'answers.jsonl', _made_by(args, config))
    pipeline = DrivingPipeline.from_config(config)
    try:
        with Progress(console=Console(stderr=True)) as bars:
            task = bars.add_task('questions', total=len(questions))
            for count in answer_all(pipeline, keyframes, args.images, answers):
                bars.advance(task, count)
    finally:
        pipeline.close()
    records = [answers.done[question.id] for question in questions]
    fields = ('id', 'question', 'answer')
    submission = [{name: record[name] for name in fields} for record in records]
    write_json(args.out / 'submission.json', submission)
    return {r['id']: r['answer'] for r in records}, _costs(records, pipeline.model_name)


def _config(args: argparse.Namespace) -> DriveConfig:
    from p2d_node.cli.parameter_file import read_drive_config

    config = read_drive_config(args.params_file)
    if args.model is not None:
        config = replace(config, model=args.model)
    if args.retention_ratio is not None:
        ratios = dict.fromkeys(config.cameras, args.retention_ratio)
        config = replace(config, retention_ratio=ratios)
    return config


def _made_by(args: argparse.Namespace, config: DriveConfig) -> dict[str, Any]:
    """Return what two runs must share for one to go on with the other's answers."""
    ratios = {camera: config.retention_ratio_of(camera) for camera in config.cameras}
    return {
        'data': args.data.name,
        'model': config.model,
        'retention_ratio': ratios,
        'selector': config.selector,
        'prune_layer': config.prune_layer,
        'max_new_tokens': config.max_new_tokens,
    }


def _costs(records: list[dict[str, Any]], model_name: str) -> dict[str, Any]:
    from p2d_node.evaluation.selection_benchmark import percentile

    stages = ('encode_ms', 'select_ms', 'prefill_ms', 'generate_ms')
    kept = sum(record['tokens_kept'] for record in records)
    return {
        'model': model_name,
        'tokens_kept_share': kept / sum(record['tokens_total'] for record in records),
        'latency_per_question': {
            name: {f'p{share:.0%}'[:-1]: percentile(values, share) for share in (0.5, 0.95)}
            for name, values in ((name, [r[name] for r in records]) for name in stages)
        },
    }


def _scores_json(scores: DriveLmScores) -> dict[str, Any]:
    content = asdict(scores)
    if scores.language is not None:
        content['language']['score'] = scores.language.score
    return content


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
