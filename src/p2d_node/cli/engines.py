"""Builds, verifies, inspects and removes engines, and reports what was done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
import json
from pathlib import Path
import re
from typing import Any

from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.checkpoints.devices import choose_device
from p2d_node.checkpoints.model_folder import model_folder
from p2d_node.cli.parameter_file import read_drive_config
from p2d_node.cli.screen import InertConsole, say
from p2d_node.cli.verbs.engines import (
    BuildOptions,
    CleanOptions,
    DEFAULT_CAMERA_SIZE,
    ExportOptions,
    InspectOptions,
    ModelOptions,
    VerifyOptions,
)
from p2d_node.config import SHIPPED_MODEL
from p2d_node.engine_build.build import build_engine
from p2d_node.engine_build.build_plan import BuildPlan, choose_backend, DEFAULT_PRECISION
from p2d_node.engine_build.cleaning import clean_engines
from p2d_node.engine_build.export_folder import BuiltEngine, export_model
from p2d_node.engine_build.export_plan import ExportPlan
from p2d_node.engine_build.inspection import inspect_engine, Inspection, unverified_engines
from p2d_node.engine_build.verify import verify_engine
from p2d_node.errors import ConfigError
from p2d_node.language_model.families.registry import hash_vision_part
from p2d_node.preprocessing import ImageProcessing
from p2d_node.vision_encoder.base import EncoderInput, FRAMES
from p2d_node.vision_encoder.engine_store import (
    DEFAULT_NUM_VIEWS,
    EngineRequest,
    list_all_engines,
    resolve_engine_dir,
    verify_command,
)
from p2d_node.vision_encoder.manifest import MANIFEST_FILE
from p2d_node.vision_encoder.tensorrt_api import BuildOptions as TensorrtOptions
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
import torch

LISTS_ENGINES = 'p2d inspect-engine lists those that there are'
EXIT_DOES_NOT_FIT = 1
"""An engine does not fit, or differs from torch; bad input has exit code 2, as everywhere."""


def run_export(options: ExportOptions) -> int:
    """Export and report."""
    views = DEFAULT_NUM_VIEWS if options.num_views is None else options.num_views
    planned = _export_plan(options, options.model, options.precision, views)
    with planned as plan, _progress_bar() as progress:
        built = export_model(plan, resolve_engine_dir(options.engine_dir), progress)
    _report_built(options, built, 'exported')
    return 0


def run_build(options: BuildOptions) -> int:
    """Build and report."""
    config = read_drive_config(options.params_file)
    device = choose_device(config.device)
    wanted = options.backend or config.encoder.backend
    backend = choose_backend(device) if wanted == 'auto' else wanted
    precision = options.precision or DEFAULT_PRECISION.get(backend, 'fp32')
    engine_dir = resolve_engine_dir(options.engine_dir or config.encoder.engine_dir)
    build_options = TensorrtOptions(
        compute_capabilities=tuple(filter(None, options.compute_capability.split(','))),
        optimization_level=options.optimization_level,
        workspace_bytes=options.workspace_mib << 20,
    )
    views = len(config.cameras) if options.num_views is None else options.num_views
    with _export_plan(options, options.model or config.model, precision, views) as export:
        plan = BuildPlan(export=export, backend=backend, options=build_options)
        with _progress_bar() as progress:
            built = build_engine(plan, engine_dir, device, progress)
    _report_built(options, built, 'built')
    return 0


def run_verify(options: VerifyOptions) -> int:
    """Verify and report; returns exit code 1 where an engine differs from torch."""
    device, engine_dir = choose_device(options.device), resolve_engine_dir(options.engine_dir)
    folders = [folder.resolve() for folder in options.folders]
    _check_folders(folders)
    if not folders and not engine_dir.is_dir():
        raise ConfigError(f'engine_dir: got {engine_dir}, allowed: a folder with engines')
    with model_folder(options.model or SHIPPED_MODEL) as model:
        checkpoint = open_checkpoint(model)
        name = checkpoint.folder.name
        folders = folders or unverified_engines(engine_dir, name, device)
        if not folders:
            return _report_unverifiable(engine_dir, name, device, as_json=options.json)
        results = {}
        for folder in folders:
            verification = verify_engine(engine_dir, folder, checkpoint, device)
            results[str(folder)] = verification
            if not options.json:
                verdict = 'passed' if verification.passed else 'FAILED'
                say(f'{verdict}: {folder}')
                say(f'  {verification.summary}')
    if options.json:
        print(json.dumps({name: asdict(result) for name, result in results.items()}, indent=2))
    return 0 if all(result.passed for result in results.values()) else EXIT_DOES_NOT_FIT


def _check_folders(folders: Sequence[Path]) -> None:
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f'folders: {folder} is not a folder; {LISTS_ENGINES}')
        if not (folder / MANIFEST_FILE).exists():
            raise ConfigError(
                f'folders: {folder} is not an engine: it has no {MANIFEST_FILE}; {LISTS_ENGINES}'
            )


def _report_unverifiable(
    engine_dir: Path, model_name: str, device: torch.device, *, as_json: bool
) -> int:
    """Say what to do about the engines that cannot be verified here; returns the exit code."""
    inspections = [inspect_engine(engine_dir, f, device) for f in list_all_engines(engine_dir)]
    unfit = [inspection for inspection in inspections if not inspection.fits]
    if as_json:
        print(json.dumps({}))
    elif not unfit:
        say(f'{engine_dir}: no engine of {model_name} to verify')
    for inspection in unfit if not as_json else ():
        say(f'not verified: {inspection.folder}')
        say(f'  {_next_step(inspection)}')
    return EXIT_DOES_NOT_FIT if any(not i.fix_machine for i in unfit) else 0


def _next_step(inspection: Inspection) -> str:
    if inspection.fix_machine:
        return (
            f'on the machine with {inspection.fix_machine}, with the engine folder copied there: '
            f'{inspection.fix_command}'
        )
    return f'fix: {inspection.fix_command}'


def run_inspect(options: InspectOptions) -> int:
    """Compare and report; returns exit code 1 where an engine would not be loaded."""
    device, engine_dir = choose_device(options.device), resolve_engine_dir(options.engine_dir)
    folders = [folder.resolve() for folder in options.folders] or list_all_engines(engine_dir)
    if not folders:
        raise ConfigError(f'{engine_dir}: holds no engine; build one with p2d build-engine')
    _check_folders(folders)
    request = _request(options.model) if options.model else None
    inspections = [inspect_engine(engine_dir, f, device, request) for f in folders]
    if options.json:
        print(json.dumps([_inspection_json(i) for i in inspections], indent=2))
    else:
        for inspection in inspections:
            _print_inspection(inspection)
    return 0 if all(inspection.fits for inspection in inspections) else EXIT_DOES_NOT_FIT


def run_clean(options: CleanOptions) -> int:
    """Remove and report."""
    engine_dir = resolve_engine_dir(options.engine_dir)
    removed = clean_engines(engine_dir, options.keep, dry_run=options.dry_run)
    if options.json:
        print(json.dumps([str(folder) for folder in removed], indent=2))
        return 0
    for folder in removed:
        say(f'{"would remove" if options.dry_run else "removed"}: {folder}')
    if not removed:
        say(f'{engine_dir}: nothing to remove')
    return 0


@contextmanager
def _export_plan(
    options: ModelOptions, model: str | None, precision: str, num_views: int
) -> Iterator[ExportPlan]:
    input_spec = EncoderInput()
    if options.input == FRAMES:
        input_spec = EncoderInput(FRAMES, *_parse_size(options.camera_size or DEFAULT_CAMERA_SIZE))
    with model_folder(model or SHIPPED_MODEL) as folder:
        checkpoint = open_checkpoint(folder)
        yield ExportPlan(
            checkpoint=checkpoint,
            processing=ImageProcessing.from_folder(checkpoint.folder),
            input_spec=input_spec,
            precision=precision,
            num_views=checkpoint.count_pictures(num_views),
        )


def _parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r'(\d{1,6})x(\d{1,6})', text)
    if match is None:
        raise ConfigError(f'camera_size: got {text!r}, allowed: HEIGHTxWIDTH, e.g. 900x1600')
    return int(match[1]), int(match[2])


def _request(model: str) -> Any:
    with model_folder(model) as folder:
        checkpoint = open_checkpoint(folder)
        fingerprint = hash_vision_part(checkpoint)
        return EngineRequest(
            model_name=checkpoint.folder.name,
            model_folder=model,
            vision_sha256=lambda: fingerprint,
            processing=ImageProcessing.from_folder(checkpoint.folder).to_json(),
            num_views=checkpoint.count_pictures(DEFAULT_NUM_VIEWS),
        )


@contextmanager
def _progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback that shows a bar per phase on stderr; in a log, a line per phase."""
    console = InertConsole(stderr=True)
    columns = (SpinnerColumn(), TextColumn('{task.description}'), BarColumn(), TimeElapsedColumn())
    silent = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=silent) as bars:
        tasks: dict[str, Any] = {}

        def progress(phase: str, done: int, total: int) -> None:
            # Without a total the bar pulses: a phase of one step has no figures until its end.
            steps = total if total > 1 else None
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=steps)
                if not console.is_terminal:
                    console.print(phase)
            bars.update(tasks[phase], completed=done, total=steps, visible=done < total)

        yield progress


def _report_built(options: ModelOptions, built: BuiltEngine, verb: str) -> None:
    verification = built.verification
    if options.json:
        proof = asdict(verification) if verification else None
        content = {**built.manifest.to_json(), 'folder': str(built.folder), 'verification': proof}
        print(json.dumps(content, indent=2))
        return
    say(f'{verb}: {built.folder}')
    if verification is not None:
        say(f'  compared with torch: {verification.summary}')
    elif verb == 'exported':
        say('  not compared with torch, which needs ONNX Runtime, and fp32 or fp16; engines are')
    else:
        say(
            f'  not verified; on the vehicle run: '
            f'{verify_command(built.folder, options.model or SHIPPED_MODEL)}'
        )


def _inspection_json(inspection: Inspection) -> dict[str, Any]:
    return {
        'folder': str(inspection.folder),
        'fits': inspection.fits,
        'checks': [asdict(check) for check in inspection.checks],
        'fix_command': inspection.fix_command,
        'fix_machine': inspection.fix_machine,
    }


def _print_inspection(inspection: Inspection) -> None:
    table = Table(title=str(inspection.folder), title_justify='left')
    for heading in ('', 'engine', 'here', 'fits'):
        table.add_column(heading, overflow='fold')
    for check in inspection.checks:
        table.add_row(check.what, check.in_engine, check.here, 'yes' if check.fits else 'NO')
    InertConsole().print(table)
    if inspection.fix_command:
        say(_next_step(inspection))
        say('')
