"""SHA-256 fingerprints of models and questions, by content and not by file name."""

from __future__ import annotations

from collections.abc import Iterable
import hashlib
import json
from pathlib import Path

from p2d_node.errors import ConfigError
from p2d_node.evaluation.answering import SweepQuestion
from p2d_node.vision_encoder.engine_files import hash_file


def digest_model(folder: Path) -> str:
    """Return the fingerprint of a checkpoint: its weights, settings and tokenizer.

    It reads all files, about a second per gigabyte.

    Raises:
        ConfigError: A file cannot be read.
    """
    digest = hashlib.sha256()
    names = ('*.safetensors', '*.json', '*.jinja')
    for path in sorted(path for name in names for path in folder.glob(name)):
        try:
            digest.update(json.dumps([path.name, hash_file(path)]).encode())
        except OSError as err:
            raise ConfigError(f'model: {path}: cannot be read: {err.strerror}') from err
    return digest.hexdigest()


def digest_questions(questions: Iterable[SweepQuestion]) -> str:
    """Return the fingerprint of ids, questions and names of images."""
    digest, images, names = hashlib.sha256(), None, ''
    for q in questions:
        # Thousands of questions may be about one keyframe, and share its images.
        if q.images is not images:
            images = q.images
            names = hashlib.sha256(json.dumps(sorted(images.items())).encode()).hexdigest()
        digest.update(json.dumps([q.id, q.question, names]).encode())
    return digest.hexdigest()
