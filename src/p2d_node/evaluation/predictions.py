"""Reads a file of predictions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from p2d_node.durable_files import read_data
from p2d_node.errors import ConfigError

ID_NAMES = ('id', 'idx')
ANSWER_NAMES = ('answer', 'llm-response')
"""DriveLM submissions and the output of DriveLMM-o1's inference script have the first names, the
input of DriveLMM-o1's evaluation script the second."""


def read_predictions(path: Path) -> dict[str, str]:
    """Read a list of predictions, or a challenge submission that has one as its `results`.

    Returns:
        Question id to predicted answer.

    Raises:
        ConfigError: The file is missing or not in this format, a prediction has no answer, or an
            id occurs twice.
    """
    data = read_data(path, parameter='predictions', next_step='name a file of answers')
    items = data.get('results') if isinstance(data, dict) else data
    if not isinstance(items, list):
        raise ConfigError(
            f'{path}: not predictions; needed: a list of objects with id and answer (or idx and '
            'llm-response), or a submission with such results'
        )
    pairs = [_read_item(path, number, item) for number, item in enumerate(items)]
    if not pairs:
        raise ConfigError(f'{path}: holds no prediction')
    twice = first_duplicate(name for name, _ in pairs)
    if twice is not None:
        raise ConfigError(f'{path}: the id {twice} is answered twice')
    return dict(pairs)


def _read_item(path: Path, number: int, item: Any) -> tuple[str, str]:
    fields = item if isinstance(item, dict) else {}
    name = next((fields[key] for key in ID_NAMES if key in fields), None)
    if not isinstance(name, str):
        raise ConfigError(f'{path}: not predictions: item {number} has no {" or ".join(ID_NAMES)}')
    answer = next((fields[key] for key in ANSWER_NAMES if key in fields), None)
    if not isinstance(answer, str):
        raise ConfigError(
            f'{path}: the prediction for {name} has no answer; needed: a text named '
            f'{" or ".join(ANSWER_NAMES)}'
        )
    return name, answer


def first_duplicate(names: Iterable[str]) -> str | None:
    """Return the first name that occurs a second time."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
