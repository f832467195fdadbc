"""The engines that were compared with torch on this machine.

The records lie in a folder of the user, not beside the engines: what is copied in with an engine
proves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
import os
from pathlib import Path
import stat
from typing import Any

from p2d_node.durable_files import write_faults, write_json
from p2d_node.errors import EngineMismatchError
from p2d_node.vision_encoder.machine import Machine
from p2d_node.vision_encoder.manifest import EngineManifest, read_engine_json
from p2d_node.vision_encoder.safe_place import check_folders, check_owner


def record_path(manifest: EngineManifest) -> Path:
    """Return the file of the verification of an engine, of this user."""
    state = os.environ.get('XDG_STATE_HOME', '')
    parent = Path(state if os.path.isabs(state) else os.path.expanduser('~/.local/state'))
    return parent / 'p2d_node' / 'verifications' / f'{manifest.sha256}.json'


def write_record(manifest: EngineManifest, machine: Machine, result: Mapping[str, Any]) -> None:
    """Record the result of a comparison with torch on this machine.

    Raises:
        ConfigError: The file cannot be written.
    """
    path = record_path(manifest)
    content = {
        **result,
        'engine': manifest.key,
        'manifest_sha256': manifest.sha256,
        'machine': machine.fingerprint,
        'gpu_name': machine.gpu_name,
        'driver': machine.driver,
        'runtime_version': manifest.runtime_version,
    }
    with write_faults(str(path), 'set XDG_STATE_HOME to a folder that this user can write'):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(path, content)


def verification_gap(manifest: EngineManifest, machine: Machine) -> str:
    """Return why an engine is not verified on this machine; empty: it is verified."""
    path = record_path(manifest)
    try:
        if not path.exists():
            return 'this user never compared it with torch on this machine'
        check_folders(path.resolve().parent)
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            return f'{path} is a link or a special file'
        check_owner(path, status)
        record = read_engine_json(path)
    except (EngineMismatchError, OSError) as err:
        return str(err)
    driver, here = record.get('driver'), machine.driver or 'none'
    gaps = {
        'its verification is of another build': record.get('manifest_sha256') == manifest.sha256,
        'it was verified on another machine': record.get('machine') == machine.fingerprint,
        f'it was verified with driver {driver!r}, here it is {here}': driver == machine.driver,
        f'it failed its verification: {record.get("summary")}': record.get('passed') is True,
    }
    return next((reason for reason, fits in gaps.items() if not fits), '')
