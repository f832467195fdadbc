"""What a reader of DriveLM's scores must know: what counts, and why a score is absent."""

from __future__ import annotations

from collections.abc import Sequence

from p2d_node.evaluation.drivelm_questions import DriveLmQuestion, Tag
from p2d_node.evaluation.drivelm_scores import DriveLmScores

NO_JUDGE = '{} absent: no judge was given; see --judge-command and --judge-url'

TAG_WORDS = {Tag.ACCURACY: 'accuracy', Tag.LANGUAGE: 'language', Tag.MATCH: 'match_f1'}


def drivelm_notes(
    questions: Sequence[DriveLmQuestion], scores: DriveLmScores, *, has_judge: bool
) -> list[str]:
    """Return one line per reason why these scores may differ from others, or are absent.

    Args:
        questions: All questions.
        scores: Their scores.
        has_judge: Whether a judge was given.
    """
    notes = []
    num_untagged = sum(not question.has_tags for question in questions)
    if num_untagged:
        notes.append(
            f'{num_untagged} of {len(questions)} questions have no tag, as in the flat file: they '
            'count for language, and for accuracy too if their reference is one letter; with '
            'the file that has tags the same answers get other scores'
        )
    if scores.num_scored < scores.num_questions:
        notes.append(
            f'{scores.num_scored} of {scores.num_questions} questions count: after the first '
            'question of a keyframe only those about points that its answer found, by the '
            'official rule'
        )
    for tag, name in TAG_WORDS.items():
        if getattr(scores, name) is None:
            notes.append(f'{name} is absent: no question that counts has its tag ({int(tag)})')
    if has_judge and scores.judge is None:
        notes.append(f'judge is absent: no question that counts has its tag ({int(Tag.JUDGE)})')
    if not has_judge:
        notes.append(NO_JUDGE.format('judge, match and final are'))
    return notes
