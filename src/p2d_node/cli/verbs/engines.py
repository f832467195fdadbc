"""`p2d export`, `build-engine`, `verify-engine`, `inspect-engine` and `clean-engines`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from p2d_node.cli.options import argument, Options, same_as
from p2d_node.cli.verb import Verb
from p2d_node.cli.verbs.shared import device, json_output, PARAMETER_FILE_HELP
from p2d_node.config import DriveConfig, EncoderConfig
from p2d_node.errors import ConfigError

EXPORT_EXAMPLES = """example:
  p2d export --model models/drivemm --camera-size 900x1600 --precision fp16
"""
BUILD_EXAMPLES = """examples:
  p2d build-engine --model models/drivemm --backend tensorrt
  p2d build-engine --model models/drivemm --backend tensorrt_rtx --compute-capability 8.6,8.9
  p2d build-engine --model models/drivemm --backend onnxruntime --input pixel_values
"""
VERIFY_EXAMPLES = """examples:
  p2d verify-engine --model models/drivemm  # every engine of it that this user did not verify
  p2d verify-engine --model models/drivemm engines/drivemm/tensorrt-fp16-frames-900x1600-20260801
"""
INSPECT_EXAMPLES = """examples:
  p2d inspect-engine
  p2d inspect-engine --model models/drivemm --json
"""
CLEAN_EXAMPLES = """example:
  p2d clean-engines --keep 2 --dry-run
"""


DEFAULT_CAMERA_SIZE = '900x1600'


@dataclass(frozen=True, kw_only=True)
class EngineOptions(Options):
    """Options that all verbs of engines have."""

    engine_dir: str = same_as(EncoderConfig, 'engine_dir')
    json: bool = json_output()


@dataclass(frozen=True, kw_only=True)
class ModelOptions(EngineOptions):
    """What `export` and `build-engine` need to know about the model and its input."""

    model: str | None = same_as(
        DriveConfig, 'model', default=None, default_text='as configured, else p2d-mini'
    )
    input: str = argument(
        'frames',
        'frames: the engine resizes camera frames, all of one size; pixel_values: the CPU '
        'resizes, and cameras may have any size.',
        choices=('frames', 'pixel_values'),
    )
    camera_size: str | None = argument(
        None,
        'Size of the frames, pixels, with --input frames.',
        metavar='HEIGHTxWIDTH',
        default_text=DEFAULT_CAMERA_SIZE,
    )
    num_views: int | None = argument(
        None,
        'Number of cameras.',
        flag='--views',
        minimum=1,
        maximum=64,
        default_text='as configured, else 6',
    )

    def __post_init__(self) -> None:
        """Check the values and how they fit together."""
        super().__post_init__()
        if self.input == 'pixel_values' and self.camera_size is not None:
            raise ConfigError(
                f'camera_size: got {self.camera_size}, which has no effect with --input '
                'pixel_values; leave it out'
            )


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ModelOptions):
    """Write the vision encoder as ONNX, checked against torch."""

    precision: str = argument('fp32', 'Number format: fp32, fp16 or bf16.')


EXPORT = Verb(
    name='export',
    help='write the vision encoder as ONNX, checked against torch',
    examples=EXPORT_EXAMPLES,
    options=ExportOptions,
    run='p2d_node.cli.engines:run_export',
)


@dataclass(frozen=True, kw_only=True)
class BuildOptions(ModelOptions):
    """Build the vision encoder for this machine, or ahead of time for GPU generations."""

    backend: str | None = argument(
        None,
        'Runtime: tensorrt, tensorrt_rtx or onnxruntime.',
        default_text='as configured, else the first that can build here',
    )
    precision: str | None = argument(
        None,
        'Number format: fp32, fp16 or bf16.',
        default_text='fp16; for onnxruntime fp32',
    )
    compute_capability: str = argument(
        '', 'GPU generations to build for ahead of time, e.g. 8.6,8.9; tensorrt_rtx only.'
    )
    optimization_level: int = argument(
        3, '0 builds fastest, 5 makes the fastest engine.', minimum=0, maximum=5
    )
    workspace_mib: int = argument(
        0,
        'Most scratch memory of the build, MiB; 0: no limit.',
        minimum=0,
        maximum=1 << 20,
    )
    params_file: Path | None = argument(
        None, f'{PARAMETER_FILE_HELP} Sets model, backend, engine folder and cameras.'
    )

    def __post_init__(self) -> None:
        """Check the values and how they fit together."""
        super().__post_init__()
        if self.backend == 'onnxruntime':
            for name in ('optimization_level', 'workspace_mib'):
                value = getattr(self, name)
                if value != getattr(BuildOptions, name):
                    raise ConfigError(
                        f'{name}: got {value}, which has no effect with --backend onnxruntime; '
                        'leave it out'
                    )


BUILD_ENGINE = Verb(
    name='build-engine',
    help='build the vision encoder for this machine, or ahead of time for GPU generations',
    examples=BUILD_EXAMPLES,
    options=BuildOptions,
    run='p2d_node.cli.engines:run_build',
)


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(EngineOptions):
    """Compare engines with torch on this machine; the node loads no others."""

    folders: tuple[Path, ...] = argument(
        (),
        'Engine folders.',
        positional=True,
        default_text='all of the model that this user did not verify on this machine',
    )
    model: str | None = same_as(
        DriveConfig,
        'model',
        default=None,
        default_text='p2d-mini; torch computes from it what the engine must compute',
    )
    device: str = device()


VERIFY_ENGINE = Verb(
    name='verify-engine',
    help='compare engines with torch on this machine; the node loads no others',
    examples=VERIFY_EXAMPLES,
    options=VerifyOptions,
    run='p2d_node.cli.engines:run_verify',
)


@dataclass(frozen=True, kw_only=True)
class InspectOptions(EngineOptions):
    """Show whether engines fit this machine, and the command that fixes those that do not."""

    folders: tuple[Path, ...] = argument(
        (), 'Engine folders.', positional=True, default_text='all'
    )
    model: str | None = argument(None, 'Checkpoint folder; engines are compared with it too.')
    device: str = device()


INSPECT_ENGINE = Verb(
    name='inspect-engine',
    help='show whether engines fit this machine, and the command that fixes those that do not',
    examples=INSPECT_EXAMPLES,
    options=InspectOptions,
    run='p2d_node.cli.engines:run_inspect',
)


@dataclass(frozen=True, kw_only=True)
class CleanOptions(EngineOptions):
    """Remove old engines.

    The newest of each model, backend, precision, input and number of cameras stay; those that are
    verified on this machine are counted apart.
    """

    keep: int = argument(
        1,
        'Engines that stay of each model, backend, precision, input and number of cameras: the '
        'newest.',
        minimum=1,
    )
    dry_run: bool = argument(False, 'Only list what would be removed.')


CLEAN_ENGINES = Verb(
    name='clean-engines',
    help='remove old engines',
    examples=CLEAN_EXAMPLES,
    options=CleanOptions,
    run='p2d_node.cli.engines:run_clean',
)
