"""`p2d export`, `build-engine`, `verify-engine`, `inspect-engine`, `clean-engines`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
import json
from pathlib import Path
import re
from typing import Any, TYPE_CHECKING

from p2d_node.errors import ConfigError

if TYPE_CHECKING:
    from p2d_node.engine_build.export import ExportPlan
    from p2d_node.engine_build.export_folder import BuiltEngine
    from p2d_node.engine_build.inspection import Inspection

DOES_NOT_FIT = 1
"""Exit code where an engine was found wanting; bad input is 2, as with every verb."""

EXPORT_EXAMPLE = """example:
  p2d export --model models/drivemm --camera-size 900x1600 --precision fp16
"""
BUILD_EXAMPLE = """examples:
  p2d build-engine --model models/drivemm --backend tensorrt
  p2d build-engine --model models/drivemm --backend tensorrt_rtx --compute-capability 8.6,8.9
  p2d build-engine --model models/drivemm --backend onnxruntime --input pixel_values
"""
VERIFY_EXAMPLE = """examples:
  p2d verify-engine                  every engine that was not verified on this machine
  p2d verify-engine engines/drivemm/tensorrt-fp16-frames-900x1600-20260801T120000.000000Z-0a1b2c
"""
INSPECT_EXAMPLE = """examples:
  p2d inspect-engine
  p2d inspect-engine --model models/drivemm --json
"""
CLEAN_EXAMPLE = """example:
  p2d clean-engines --keep 2 --dry-run
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the five verbs."""
    _add_export(subparsers)
    _add_build(subparsers)
    _add_verify(subparsers)
    _add_inspect(subparsers)
    _add_clean(subparsers)


def _add_verb(
    subparsers: argparse._SubParsersAction[Any],
    name: str,
    *,
    text: str,
    example: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=text,
        description=f'{text[0].upper()}{text[1:]}.',
        epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--engine-dir', default='', help='engine folder (default: engines/)')
    parser.add_argument('--json', action='store_true', help='print the result as JSON')
    parser.set_defaults(run=run)
    return parser


def _add_export(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = _add_verb(
        subparsers,
        'export',
        text='write the vision encoder as ONNX, checked against torch',
        example=EXPORT_EXAMPLE,
        run=run_export,
    )
    _add_model_options(parser)
    parser.add_argument('--precision', default='fp32', help='fp32 (default), fp16 or bf16')


def _add_build(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = _add_verb(
        subparsers,
        'build-engine',
        text='build the vision encoder for this machine, or ahead of time for GPU generations',
        example=BUILD_EXAMPLE,
        run=run_build,
    )
    _add_model_options(parser)
    parser.add_argument(
        '--backend',
        help='tensorrt, tensorrt_rtx or onnxruntime (default: the first that can build here)',
    )
    parser.add_argument(
        '--precision', help='fp32, fp16 or bf16 (default: fp16, for onnxruntime fp32)'
    )
    parser.add_argument(
        '--compute-capability',
        default='',
        help='GPU generations to build for ahead of time, e.g. 8.6,8.9 (tensorrt_rtx only)',
    )
    parser.add_argument(
        '--optimization-level', type=int, default=3, help='0 fast build to 5 fast engine'
    )
    parser.add_argument('--workspace-mib', type=int, default=0, help='scratch memory limit')
    parser.add_argument('--params-file', type=Path, help='take model and backend from this file')


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--model', help='checkpoint folder (default: p2d-mini, which ships)')
    parser.add_argument(
        '--input',
        default='frames',
        choices=('frames', 'pixel_values'),
        help='frames (default): the engine resizes camera frames of one size; pixel_values: the '
        'CPU resizes, cameras may have any size',
    )
    parser.add_argument(
        '--camera-size', default='900x1600', help='HEIGHTxWIDTH of the frames (default 900x1600)'
    )
    parser.add_argument('--views', type=int, help='cameras (default: as configured, else 6)')


def _add_verify(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = _add_verb(
        subparsers,
        'verify-engine',
        text='compare engines with torch on this machine; the node loads no others',
        example=VERIFY_EXAMPLE,
        run=run_verify,
    )
    parser.add_argument('folders', type=Path, nargs='*', help='engine folders')
    parser.add_argument('--device', default='auto', help='GPU to verify on')


def _add_inspect(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = _add_verb(
        subparsers,
        'inspect-engine',
        text='compare engines with this machine, and show the command that fixes a mismatch',
        example=INSPECT_EXAMPLE,
        run=run_inspect,
    )
    parser.add_argument('folders', type=Path, nargs='*', help='engine folders (default: all)')
    parser.add_argument('--model', help='also compare with this checkpoint folder')
    parser.add_argument('--device', default='auto', help='GPU to compare with')


def _add_clean(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = _add_verb(
        subparsers,
        'clean-engines',
        text='remove old engines, the newest of each model, backend, precision, input and number '
        'of cameras kept',
        example=CLEAN_EXAMPLE,
        run=run_clean,
    )
    parser.add_argument('--keep', type=int, default=1, help='engines kept of each (default 1)')
    parser.add_argument('--dry-run', action='store_true', help='only say what would go')


def run_export(args: argparse.Namespace) -> int:
    """Export and report."""
    from p2d_node.engine_build.export_folder import export_model
    from p2d_node.vision_encoder.engine_store import DEFAULT_NUM_VIEWS, resolve_engine_dir

    views = DEFAULT_NUM_VIEWS if args.views is None else args.views
    planned = _export_plan(args, args.model, args.precision, views)
    with planned as plan, _progress_bar() as progress:
        built = export_model(plan, resolve_engine_dir(args.engine_dir), progress)
    _report_built(args, built, 'exported')
    return 0


def run_build(args: argparse.Namespace) -> int:
    """Build and report."""
    from p2d_node.checkpoints.devices import choose_device
    from p2d_node.cli.parameter_file import read_drive_config
    from p2d_node.engine_build.build import build_engine
    from p2d_node.engine_build.build_plan import BuildPlan, choose_backend, DEFAULT_PRECISION
    from p2d_node.vision_encoder.engine_store import resolve_engine_dir
    from p2d_node.vision_encoder.tensorrt_api import BuildOptions

    config = read_drive_config(args.params_file)
    device = choose_device(config.device)
    wanted = args.backend or config.encoder.backend
    backend = choose_backend(device) if wanted == 'auto' else wanted
    precision = args.precision or DEFAULT_PRECISION.get(backend, 'fp32')
    engine_dir = resolve_engine_dir(args.engine_dir or config.encoder.engine_dir)
    options = BuildOptions(
        compute_capabilities=tuple(filter(None, args.compute_capability.split(','))),
        optimization_level=_in_range('--optimization-level', args.optimization_level, 0, 5),
        workspace_bytes=_in_range('--workspace-mib', args.workspace_mib, 0, 1 << 20) << 20,
    )
    views = len(config.cameras) if args.views is None else args.views
    with _export_plan(args, args.model or config.model, precision, views) as export:
        plan = BuildPlan(export=export, backend=backend, options=options)
        with _progress_bar() as progress:
            built = build_engine(plan, engine_dir, device, progress)
    _report_built(args, built, 'built')
    return 0


def run_verify(args: argparse.Namespace) -> int:
    """Verify and report; exit code 1 where an engine is not what torch computes."""
    from p2d_node.checkpoints.devices import choose_device
    from p2d_node.engine_build.inspection import unverified_engines
    from p2d_node.engine_build.verify import verify_engine
    from p2d_node.vision_encoder.engine_store import resolve_engine_dir

    device, engine_dir = choose_device(args.device), resolve_engine_dir(args.engine_dir)
    folders = [folder.resolve() for folder in args.folders]
    folders = folders or unverified_engines(engine_dir, device)
    if not folders and not args.json:
        print(f'{engine_dir}: no engine waits for its verification')
    results = {}
    for folder in folders:
        results[str(folder)] = verification = verify_engine(engine_dir, folder, device)
        if not args.json:
            verdict = 'passed' if verification.passed else 'FAILED'
            print(f'{verdict}: {folder}\n  {verification.summary}')
    if args.json:
        print(json.dumps({name: asdict(result) for name, result in results.items()}, indent=2))
    return 0 if all(result.passed for result in results.values()) else DOES_NOT_FIT


def run_inspect(args: argparse.Namespace) -> int:
    """Compare and report; exit code 1 where an engine would not be loaded."""
    from p2d_node.checkpoints.devices import choose_device
    from p2d_node.engine_build.inspection import inspect_engine
    from p2d_node.vision_encoder.engine_store import list_all_engines, resolve_engine_dir

    device, engine_dir = choose_device(args.device), resolve_engine_dir(args.engine_dir)
    folders = [folder.resolve() for folder in args.folders] or list_all_engines(engine_dir)
    if not folders:
        raise ConfigError(f'{engine_dir}: holds no engine; build one with p2d build-engine')
    missing = [folder for folder in folders if not folder.is_dir()]
    if missing:
        raise ConfigError(f'{missing[0]}: not a folder; p2d inspect-engine lists what there is')
    request = _request(args.model) if args.model else None
    inspections = [inspect_engine(engine_dir, f, device, request) for f in folders]
    if args.json:
        print(json.dumps([_inspection_json(i) for i in inspections], indent=2))
    else:
        for inspection in inspections:
            _print_inspection(inspection)
    return 0 if all(inspection.fits for inspection in inspections) else DOES_NOT_FIT


def run_clean(args: argparse.Namespace) -> int:
    """Remove and report."""
    from p2d_node.engine_build.cleaning import clean_engines
    from p2d_node.vision_encoder.engine_store import resolve_engine_dir

    engine_dir = resolve_engine_dir(args.engine_dir)
    gone = clean_engines(engine_dir, args.keep, dry_run=args.dry_run)
    if args.json:
        print(json.dumps([str(folder) for folder in gone], indent=2))
        return 0
    for folder in gone:
        print(f'{"would remove" if args.dry_run else "removed"}: {folder}')
    if not gone:
        print(f'{engine_dir}: nothing to remove')
    return 0


@contextmanager
def _export_plan(
    args: argparse.Namespace, model: str | None, precision: str, num_views: int
) -> Iterator[ExportPlan]:
    from p2d_node.checkpoints.checkpoint import open_checkpoint
    from p2d_node.checkpoints.model_folder import model_folder
    from p2d_node.config import SHIPPED_MODEL
    from p2d_node.engine_build.export import ExportPlan
    from p2d_node.preprocessing import ImageProcessing
    from p2d_node.vision_encoder.base import EncoderInput, FRAMES

    input_spec = EncoderInput()
    if args.input == FRAMES:
        input_spec = EncoderInput(FRAMES, *_parse_size(args.camera_size))
    with model_folder(model or SHIPPED_MODEL) as folder:
        checkpoint = open_checkpoint(folder)
        yield ExportPlan(
            checkpoint=checkpoint,
            processing=ImageProcessing.from_folder(checkpoint.folder),
            input_spec=input_spec,
            precision=precision,
            num_views=num_views if checkpoint.mosaic is None else 1,
        )


def _parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r'(\d{1,6})x(\d{1,6})', text)
    if match is None:
        raise ConfigError(f'--camera-size: got {text!r}, allowed: HEIGHTxWIDTH, e.g. 900x1600')
    return int(match[1]), int(match[2])


def _in_range(name: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise ConfigError(f'{name}: got {value}, allowed: {low} to {high}')
    return value


def _request(model: str) -> Any:
    from p2d_node.checkpoints.checkpoint import open_checkpoint
    from p2d_node.checkpoints.model_folder import model_folder
    from p2d_node.language_model.families.registry import hash_vision_part
    from p2d_node.preprocessing import ImageProcessing
    from p2d_node.vision_encoder.engine_store import DEFAULT_NUM_VIEWS, EngineRequest

    with model_folder(model) as folder:
        checkpoint = open_checkpoint(folder)
        fingerprint = hash_vision_part(checkpoint)
        return EngineRequest(
            model_name=checkpoint.folder.name,
            model_folder=model,
            vision_sha256=lambda: fingerprint,
            processing=ImageProcessing.from_folder(checkpoint.folder).to_json(),
            num_views=DEFAULT_NUM_VIEWS if checkpoint.mosaic is None else 1,
        )


@contextmanager
def _progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback that shows one bar per phase on stderr; in a log, one line per phase."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def progress(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
                if not console.is_terminal:
                    console.print(phase)
            bars.update(tasks[phase], completed=done, total=total, visible=done < total)

        yield progress


def _report_built(args: argparse.Namespace, built: BuiltEngine, verb: str) -> None:
    verification = built.verification
    if args.json:
        proof = asdict(verification) if verification else None
        content = {**built.manifest.to_json(), 'folder': str(built.folder), 'verification': proof}
        print(json.dumps(content, indent=2))
        return
    print(f'{verb}: {built.folder}')
    if verification is not None:
        print(f'  compared with torch: {verification.summary}')
    elif verb == 'built':
        print(f'  not verified: run on the target: p2d verify-engine {built.folder}')


def _inspection_json(inspection: Inspection) -> dict[str, Any]:
    return {
        'folder': str(inspection.folder),
        'fits': inspection.fits,
        'checks': [asdict(check) for check in inspection.checks],
        'fix_command': inspection.fix_command,
    }


def _print_inspection(inspection: Inspection) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=str(inspection.folder), title_justify='left')
    for heading in ('', 'engine', 'here', 'fits'):
        table.add_column(heading, overflow='fold')
    for check in inspection.checks:
        table.add_row(check.what, check.in_engine, check.here, 'yes' if check.fits else 'NO')
    Console().print(table)
    if inspection.fix_command:
        print(f'fix: {inspection.fix_command}\n')
