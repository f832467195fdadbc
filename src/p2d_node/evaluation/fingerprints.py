"""What answers are made of comes in; a fingerprint of its content goes out, whatever its name."""

from __future__ import annotations

from collections.abc import Iterable
import hashlib
import json
from pathlib import Path

from p2d_node.errors import ConfigError
from p2d_node.evaluation.answering import SweepQuestion

CHUNK_BYTES = 1 << 22


def digest_model(folder: Path) -> str:
    """Return a fingerprint of a checkpoint: its weights, its settings and its tokenizer.

    It reads all of them, which takes about a second per gigabyte.

    Raises:
        ConfigError: A file that cannot be read.
    """
    digest = hashlib.sha256()
    names = ('*.safetensors', '*.json', '*.jinja')
    for path in sorted(path for name in names for path in folder.glob(name)):
        try:
            digest.update(f'{path.name} {path.stat().st_size} '.encode())
            with path.open('rb') as file:
                while chunk := file.read(CHUNK_BYTES):
                    digest.update(chunk)
        except OSError as err:
            raise ConfigError(f'model: {path}: cannot be read: {err.strerror}') from err
    return digest.hexdigest()


def digest_questions(questions: Iterable[SweepQuestion]) -> str:
    """Return a fingerprint of what a model is asked: ids, questions and names of pictures."""
    content = [[q.id, q.question, sorted(q.images.items())] for q in questions]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
