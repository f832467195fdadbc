"""`p2d import-checkpoint`: the papers' checkpoints as folders that the node loads."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
import json
from pathlib import Path
from typing import Any, TYPE_CHECKING

from p2d_node.errors import ConfigError

if TYPE_CHECKING:
    from p2d_node.checkpoints.importing.plan import ImportPlan

EXAMPLE = """examples:
  p2d import-checkpoint --from drivemm downloads/DriveMM --out models/drivemm
  p2d import-checkpoint --from drivelmm-o1 downloads/DriveLMMo1 --out models/drivelmm-o1
  p2d import-checkpoint --from drivelmm-o1 adapter --base downloads/InternVL2_5-8B --out models/o1
"""
KINDS = ('drivemm', 'drivelmm-o1')


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the verb."""
    text = "translate a published driving model's checkpoint into one that the node loads"
    parser = subparsers.add_parser(
        'import-checkpoint',
        help=text,
        description=f'{text[0].upper()}{text[1:]}.',
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('folder', type=Path, help='the published checkpoint, in safetensors')
    parser.add_argument('--from', dest='kind', required=True, choices=KINDS, help='what it is')
    parser.add_argument(
        '--base', type=Path, help='drivelmm-o1: the model, where the checkpoint is a LoRA adapter'
    )
    parser.add_argument('--out', type=Path, required=True, help='the folder to make')
    parser.add_argument('--json', action='store_true', help='print the result as JSON')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Import and report."""
    from p2d_node.checkpoints.importing.importer import import_checkpoint

    if args.out.exists():
        raise ConfigError(f'--out: {args.out} exists; name another folder, or remove it first')
    plan = _plan(args)
    with _progress_bar(args.kind) as progress:
        imported = import_checkpoint(plan, args.out, on_progress=progress)
    if args.json:
        print(json.dumps({**asdict(imported), 'folder': str(imported.folder)}, indent=2))
        return 0
    print(
        f'imported: {imported.folder} ({imported.model_type}, {imported.num_weights} weights, '
        f'{imported.num_bytes / 1e9:.2f} GB, 0 missing, 0 unexpected)'
    )
    for note in imported.notes:
        print(f'  {note}')
    return 0


def _plan(args: argparse.Namespace) -> ImportPlan:
    from p2d_node.checkpoints.importing import drivelmm_o1, drivemm

    if args.kind == 'drivelmm-o1':
        return drivelmm_o1.plan_import(args.folder, args.base)
    if args.base is not None:
        raise ConfigError(f'--base: got {str(args.base)!r}, allowed only with --from drivelmm-o1')
    return drivemm.plan_import(args.folder)


@contextmanager
def _progress_bar(kind: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that shows the bytes written so far on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn('{task.description}'),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(f'importing {kind}')
        yield lambda done, total: bar.update(task, completed=done, total=total)
