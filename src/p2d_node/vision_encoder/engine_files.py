"""Reads the files of an engine: what was hashed is what is loaded.

A file that is checked by its name and opened again for loading can be swapped in between. So each
file is opened once, and the runtime gets the bytes that were hashed.
"""

from __future__ import annotations

from collections.abc import Mapping
import hashlib
from io import FileIO
import os
from pathlib import Path
import re
import stat

from p2d_node.errors import EngineMismatchError, quote
from p2d_node.sparse_files import BLOCK_BYTES, is_sparse
from p2d_node.vision_encoder.manifest import (
    Artefact,
    EngineManifest,
    MANIFEST_FILE,
    ONNX_DATA_FILE,
    ONNX_FILE,
    PLAN_FILE,
)
from p2d_node.vision_encoder.safe_place import check_owner
from p2d_node.whole_folders import MARKER_FILE

CHUNK_BYTES = 1 << 22
MAX_ARTEFACTS = 8
"""Files of one engine; an engine has at most four."""

FILE_NAME = re.compile(r'\w[\w.-]*', re.ASCII)

LOADED_FILES: Mapping[str, tuple[str, ...]] = {
    'tensorrt': (PLAN_FILE,),
    'tensorrt_rtx': (PLAN_FILE,),
    'onnxruntime': (ONNX_FILE, ONNX_DATA_FILE),
}
"""Backend to the files that its runtime gets."""

EngineFiles = Mapping[str, bytes]
"""Name to content of the files that a runtime gets."""


def read_engine_files(folder: Path, manifest: EngineManifest, backend: str) -> EngineFiles:
    """Check every file of an engine, and return the content of those that `backend` loads.

    Raises:
        EngineMismatchError: A file is missing, changed, of another user, or not in the manifest.
    """
    wanted = LOADED_FILES[backend]
    missing = [name for name in wanted if name not in manifest.artefacts]
    if missing:
        raise EngineMismatchError(f'{missing[0]} is missing in its manifest')
    check_artefacts(folder, manifest, besides=wanted)
    return {name: _read(folder / name, manifest.artefacts[name]) for name in wanted}


def check_artefacts(folder: Path, manifest: EngineManifest, besides: tuple[str, ...] = ()) -> None:
    """Compare every file of an engine with its size and hash in the manifest.

    Args:
        folder: The engine.
        manifest: Its manifest.
        besides: Files that are not read here.

    Raises:
        EngineMismatchError: There are too many files, or one is missing, changed, sparse, of
            another user, or not in the manifest.
    """
    if len(manifest.artefacts) > MAX_ARTEFACTS:
        raise EngineMismatchError(
            f'its manifest names {len(manifest.artefacts)} files, allowed: up to {MAX_ARTEFACTS}'
        )
    for name, artefact in manifest.artefacts.items():
        if not FILE_NAME.fullmatch(name):
            raise EngineMismatchError(
                f'its manifest names the file {quote(name)}, allowed: letters, digits, _, - and .'
            )
        if name in besides:
            continue
        path = folder / name
        with os.fdopen(_open(path, artefact), 'rb', buffering=0) as file:
            sha256 = _hash(file)
        _require_hash(path, artefact, sha256)
    known = {*manifest.artefacts, MANIFEST_FILE, MARKER_FILE}
    extra = sorted(path.name for path in folder.iterdir() if path.name not in known)
    if extra:
        raise EngineMismatchError(f'{extra[0]} is not part of the engine')


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open('rb', buffering=0) as file:
        return _hash(file)


def _hash(file: FileIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def _read(path: Path, artefact: Artefact) -> bytes:
    try:
        with os.fdopen(_open(path, artefact), 'rb', buffering=0) as file:
            content = file.read()
    except MemoryError as err:
        raise EngineMismatchError(
            f'{path.name} has {artefact.num_bytes} bytes, which do not fit into memory'
        ) from err
    _require_hash(path, artefact, hashlib.sha256(content).hexdigest())
    return content


def _open(path: Path, artefact: Artefact) -> int:
    """Return the descriptor of a file with the owner and the size that are allowed."""
    try:
        # Without O_NONBLOCK, opening a pipe would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as err:
        raise EngineMismatchError(f'{path.name} is missing') from err
    except OSError as err:
        raise EngineMismatchError(
            f'{path.name} is a link or cannot be read: {err.strerror}'
        ) from err
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise EngineMismatchError(f'{path.name} is a special file, allowed: a plain file')
        check_owner(path, status)
        if status.st_size != artefact.num_bytes:
            raise EngineMismatchError(
                f'{path.name} has {status.st_size} bytes, the manifest says {artefact.num_bytes}'
            )
        if is_sparse(descriptor, status):
            raise EngineMismatchError(
                f'{path.name} has {status.st_size} bytes, of which '
                f'{BLOCK_BYTES * status.st_blocks} are on the disk; copy it again'
            )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _require_hash(path: Path, artefact: Artefact, sha256: str) -> None:
    if sha256 != artefact.sha256:
        raise EngineMismatchError(f'{path.name} was changed after the build (other SHA-256)')
