"""Imports the papers' checkpoints as folders that the node loads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
import json

from p2d_node.checkpoints.importing import alpamayo, drivelmm_o1, drivemm
from p2d_node.checkpoints.importing.importer import import_checkpoint
from p2d_node.checkpoints.importing.plan import ImportPlan
from p2d_node.cli.screen import InertConsole, say
from p2d_node.cli.verbs.import_checkpoint import ALPAMAYO, DRIVELMM_O1, ImportOptions
from p2d_node.errors import ConfigError
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


def run(options: ImportOptions) -> int:
    """Import and report; returns the exit code."""
    if options.out.exists():
        raise ConfigError(f'out: {options.out} exists; name another folder, or remove it first')
    plan = _plan(options)
    with _progress_bar(options.kind) as progress:
        imported = import_checkpoint(plan, options.out, on_progress=progress)
    if options.json:
        print(json.dumps({**asdict(imported), 'folder': str(imported.folder)}, indent=2))
        return 0
    say(
        f'imported: {imported.folder} ({imported.model_type}, {imported.num_weights} weights, '
        f'{imported.num_bytes / 1e9:.2f} GB, 0 missing, 0 unexpected)'
    )
    for note in imported.notes:
        say(f'  {note}')
    return 0


def _plan(options: ImportOptions) -> ImportPlan:
    if options.kind == DRIVELMM_O1:
        return drivelmm_o1.plan_import(options.folder, options.base)
    if options.kind == ALPAMAYO:
        return alpamayo.plan_import(options.folder, options.base)
    return drivemm.plan_import(options.folder)


@contextmanager
def _progress_bar(kind: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that shows the bytes written so far on stderr, where that is a terminal."""
    console = InertConsole(stderr=True)
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
