"""Answers compared with their references."""

from __future__ import annotations

from p2d_node.evaluation.drivelm_questions import DriveLmQuestion, LETTER

Answered = tuple[DriveLmQuestion, str]
"""A question and the answer to it."""


def is_multiple_choice(question: DriveLmQuestion) -> bool:
    """Tell whether the reference is one letter."""
    return LETTER.fullmatch(str(question.reference).strip()) is not None


def is_right(question: DriveLmQuestion, answer: str) -> bool:
    """Tell whether an answer is the reference, word for word."""
    return answer.strip() == str(question.reference).strip()
