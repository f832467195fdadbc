"""Files that a power cut leaves whole: with their old content, or with the new."""

from __future__ import annotations

import json
import os
from pathlib import Path
import secrets
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one step: a reader sees the old content or the new."""
    write_bytes(path, (json.dumps(content, indent=2) + '\n').encode())


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file in one step."""
    unfinished = path.with_name(f'.{path.name}-{secrets.token_hex(4)}')
    try:
        with unfinished.open('wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_files(folder: Path) -> None:
    """Make every file in a folder survive a power cut, readable by all, writable by its owner."""
    for path in folder.iterdir():
        path.chmod(0o644)
        with path.open('rb') as file:
            os.fsync(file.fileno())
    sync_folder(folder)
