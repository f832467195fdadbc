"""The supported benchmarks: how each is recognised, read, scored and submitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from p2d_node.durable_files import read_data
from p2d_node.errors import ConfigError
from p2d_node.evaluation.drivelm_notes import drivelm_notes, NO_JUDGE
from p2d_node.evaluation.drivelm_questions import DriveLmQuestion, read_questions
from p2d_node.evaluation.drivelm_scores import score_predictions
from p2d_node.evaluation.drivelmm_o1_questions import DriveLmmO1Question, read_o1_questions
from p2d_node.evaluation.drivelmm_o1_scores import score_o1_predictions
from p2d_node.evaluation.judge import CachedJudge


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFormat:
    """One benchmark.

    Attributes:
        read_questions: Reads a file of questions.
        score: From questions, predictions, judge and tokenizer to scores as JSON data.
        submission: Field names of a submitted prediction to those of a record.
        max_new_tokens: Default for the longest answer, as in the benchmark's own inference.
    """

    read_questions: Callable[[Path], Sequence[Any]]
    score: Callable[[Sequence[Any], Mapping[str, str], CachedJudge | None, str], dict[str, Any]]
    submission: Mapping[str, str]
    max_new_tokens: int


def _score_drivelm(
    questions: Sequence[DriveLmQuestion],
    predictions: Mapping[str, str],
    judge: CachedJudge | None,
    tokenizer: str,
) -> dict[str, Any]:
    scores = score_predictions(questions, predictions, judge=judge, tokenizer=tokenizer)
    content = asdict(scores)
    if scores.language is not None:
        content['language']['score'] = scores.language.score
    return {**content, 'notes': drivelm_notes(questions, scores, has_judge=judge is not None)}


def _score_drivelmm_o1(
    questions: Sequence[DriveLmmO1Question],
    predictions: Mapping[str, str],
    judge: CachedJudge | None,
    tokenizer: str,
) -> dict[str, Any]:
    del tokenizer  # no score depends on it
    scores = asdict(score_o1_predictions(questions, predictions, judge=judge))
    return {**scores, 'notes': [] if judge is not None else [NO_JUDGE.format('the reasoning is')]}


FORMATS = {
    'drivelm': DataFormat(
        read_questions=read_questions,
        score=_score_drivelm,
        submission={'id': 'id', 'question': 'question', 'answer': 'answer'},
        # As in the published inference: cut at the node's 64, right answers lose their score.
        max_new_tokens=1024,
    ),
    'drivelmm-o1': DataFormat(
        read_questions=read_o1_questions,
        score=_score_drivelmm_o1,
        submission={'idx': 'id', 'question': 'question', 'llm-response': 'answer'},
        # As in the authors' inference script: answers contain reasoning.
        max_new_tokens=2000,
    ),
}


def recognize_format(path: Path) -> str:
    """Return the name in `FORMATS` of a file's format, by the fields of its first item.

    Raises:
        ConfigError: The file is missing or empty, or has another format.
    """
    data = read_data(path, parameter='data', next_step='name the file of questions')
    items = list(data.values()) if isinstance(data, dict) else data
    if items in ([], {}):
        raise ConfigError(f'{path}: holds no question')
    first = items[0] if isinstance(items, list) else None
    fields = first if isinstance(first, dict) else {}
    if 'idx' in fields:
        return 'drivelmm-o1'
    if 'key_frames' in fields or 'conversations' in fields:
        return 'drivelm'
    raise ConfigError(
        f'{path}: neither DriveLM (scenes with key_frames, or a list with conversations) nor '
        'DriveLMM-o1 (items with idx)'
    )
