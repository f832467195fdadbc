"""The configuration: one frozen dataclass per stage; defaults, units, ranges and help in metadata.

Parameter files, the command line and the node's declared parameters all derive from these classes,
so they cannot disagree. Values are checked on construction; what is wrong raises `ConfigError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
import difflib
import math
from typing import Any, TypeVar

from p2d_node.errors import ConfigError
from p2d_node.records import NUSCENES_CAMERAS

SHIPPED_MODEL = 'p2d-mini'
"""Value of `model` that stands for the small model that ships with this package."""

UNTRAINED_MODEL = 'untrained'
"""Value of `model` that stands for a tiny model with random weights, made at start."""

DEFAULT_RETENTION_RATIO = 0.10
"""The paper's main setting: one visual token in ten."""

NUSCENES_EXPOSURE_OFFSETS_MS = {
    'CAM_FRONT_LEFT': 0.0,
    'CAM_FRONT': 7.6,
    'CAM_FRONT_RIGHT': 15.5,
    'CAM_BACK_RIGHT': 23.1,
    'CAM_BACK': 32.7,
    'CAM_BACK_LEFT': 42.6,
}
"""When the nuScenes cameras expose within a sweep, after FRONT_LEFT (read off its file names)."""

DEFAULT_QUESTIONS = (
    'What are the important objects in the current scene?',
    'What should the ego vehicle do next, and why?',
)

T = TypeVar('T')


@dataclass(frozen=True, slots=True)
class Option:
    """What a configuration field promises about its value.

    Attributes:
        help: One sentence for a reader of `ros2 param describe`.
        minimum: Smallest allowed number, inclusive.
        maximum: Largest allowed number, inclusive.
        choices: Allowed values, where they are few.
        runtime: True where the value may change while the node runs.
    """

    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    runtime: bool = False


def option(default: T, help: str, **limits: Any) -> T:
    """Declare a configuration field with its default and its `Option`."""
    metadata = {'option': Option(help=help, **limits)}
    return field(default=default, metadata=metadata)


def check_value(name: str, value: Any, spec: Option) -> None:
    """Raise `ConfigError` where `value` breaks the promise of `spec`.

    Args:
        name: The parameter's full name, for the message.
        value: The value to check.
        spec: What is allowed.
    """
    if spec.choices and value not in spec.choices:
        raise ConfigError(f'{name}: got {value!r}, allowed: {", ".join(spec.choices)}')
    if spec.minimum is None and spec.maximum is None:
        return
    low = -math.inf if spec.minimum is None else spec.minimum
    high = math.inf if spec.maximum is None else spec.maximum
    if not low <= value <= high:
        raise ConfigError(f'{name}: got {value!r}, allowed: {low:g} to {high:g}')


def _check_fields(config: Any, prefix: str = '') -> None:
    for item in fields(config):
        spec = item.metadata.get('option')
        if spec is not None:
            check_value(f'{prefix}{item.name}', getattr(config, item.name), spec)


RETENTION_RATIO = Option(
    help="Share of this camera's visual tokens that is kept: kept/total.",
    minimum=0.001,
    maximum=1.0,
    runtime=True,
)


@dataclass(frozen=True, kw_only=True)
class CameraConfig:
    """One camera: where its frames come from and when it exposes within a sweep."""

    topic: str = option('', 'Topic of the camera images.')
    transport: str = option(
        'compressed',
        'raw: sensor_msgs/Image; compressed: sensor_msgs/CompressedImage.',
        choices=('raw', 'compressed'),
    )
    exposure_offset_ms: float = option(
        0.0,
        'Exposure after the start of the sweep; 0 for all cameras of a triggered rig.',
        minimum=-1000.0,
        maximum=1000.0,
    )
    rate_hz: float = option(
        0.0,
        'Frames per second that this camera should deliver; diagnostics warn below 80 % of it. '
        '0: as many as the fastest camera delivers.',
        minimum=0.0,
        maximum=1000.0,
    )

    def __post_init__(self) -> None:
        """Check the values."""
        _check_fields(self, 'cameras.*.')


@dataclass(frozen=True, kw_only=True)
class SyncConfig:
    """How frames of several cameras become one sweep."""

    reference_camera: str = option(
        'CAM_FRONT', 'Camera whose capture stamp and frame_id the answers carry.'
    )
    tolerance_ms: float = option(
        24.0,
        'Largest distance of a stamp from its sweep, exposure offset taken off; below half of the '
        'shortest sweep period (nuScenes: 50 ms).',
        minimum=0.0,
        maximum=1000.0,
    )
    deadline_ms: float = option(
        150.0,
        'A sweep is closed this long after its first frame arrived, complete or not.',
        minimum=1.0,
        maximum=10000.0,
    )
    reset_threshold_ms: float = option(
        1000.0,
        'A stamp this far behind the newest one is a jump of time (a bag loop), not a late frame.',
        minimum=10.0,
        maximum=3600000.0,
    )
    exposure_offsets: str = option(
        'preset',
        'preset: cameras.<NAME>.exposure_offset_ms; auto: learned from the first sweeps.',
        choices=('preset', 'auto'),
    )
    min_views: int = option(
        3,
        'With missing_camera_policy drop_view: fewer views than this are not worth an answer.',
        minimum=1,
        maximum=64,
    )

    def __post_init__(self) -> None:
        """Check the values."""
        _check_fields(self, 'sync.')


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Which runtime computes the visual tokens."""

    backend: str = option(
        'auto',
        'Runtime of the vision encoder; auto: the first of tensorrt, tensorrt_rtx, onnxruntime '
        'that is installed and has an engine that fits, else torch.',
        choices=('auto', 'tensorrt', 'tensorrt_rtx', 'onnxruntime', 'torch'),
    )
    engine_dir: str = option(
        '',
        'Folder of the built engines; only engines inside it are loaded. Empty: engines/ of the '
        'source tree, else ~/.local/share/p2d_node/engines.',
    )
    allow_unverified: bool = option(
        False,
        'Load engines that p2d verify-engine has not compared with torch on this machine.',
    )

    def __post_init__(self) -> None:
        """Check the values."""
        _check_fields(self, 'encoder.')


@dataclass(frozen=True, kw_only=True)
class DriveConfig:
    """Everything the drive node and the pipeline need to know."""

    model: str = option(
        SHIPPED_MODEL,
        'Checkpoint folder in Hugging Face format (safetensors); "p2d-mini": the small model that '
        'ships; "untrained": a tiny one with random weights, to try the plumbing.',
    )
    device: str = option(
        'auto',
        'torch device: auto, cpu or cuda; auto takes a GPU where there is one, the first that '
        'CUDA_VISIBLE_DEVICES leaves.',
    )
    dtype: str = option(
        'auto',
        'Number format of the weights; auto: bfloat16 on a GPU, float32 on a CPU.',
        choices=('auto', 'float32', 'bfloat16', 'float16', 'float64'),
    )
    weights: str = option(
        'as_is',
        "Whether the language model's linear weights are quantised by torchao: as_is, int8, int4 "
        '(NVIDIA GPUs from compute capability 8.0 on, dtype bfloat16).',
        choices=('as_is', 'int8', 'int4'),
    )
    num_threads: int = option(
        0,
        "CPU threads of torch; 0: torch's own choice less one for the camera callbacks.",
        minimum=0,
        maximum=1024,
    )
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    cameras: Mapping[str, CameraConfig] = field(
        default_factory=lambda: {
            name: CameraConfig(
                topic=f'/{name}/image_rect_compressed',
                exposure_offset_ms=NUSCENES_EXPOSURE_OFFSETS_MS[name],
            )
            for name in NUSCENES_CAMERAS
        }
    )
    sync: SyncConfig = field(default_factory=SyncConfig)
    view_max_pixels: int = option(
        0,
        'Most pixels of a view for models that take pictures of any size (Qwen-VL); 0: as the '
        'checkpoint says. Fewer pixels are fewer visual tokens.',
        minimum=0,
        maximum=100_000_000,
    )
    missing_camera_policy: str = option(
        'skip',
        'What happens to a sweep that the deadline closed: skip drops it, drop_view answers from '
        'the views there are.',
        choices=('skip', 'drop_view'),
        runtime=True,
    )
    retention_ratio: Mapping[str, float] = field(
        default_factory=lambda: dict.fromkeys(NUSCENES_CAMERAS, DEFAULT_RETENTION_RATIO)
    )
    selector: str = option(
        'tfps',
        'How the kept tokens are chosen.',
        choices=('tfps', 'random', 'grid', 'divprune'),
        runtime=True,
    )
    allocation: str = option(
        'fixed',
        'fixed: every camera keeps its retention ratio; adaptive: all cameras share one budget, '
        'split for every sweep by how much each token adds; the ratios then weigh the cameras.',
        choices=('fixed', 'adaptive'),
        runtime=True,
    )
    prune_layer: int = option(
        0,
        'Decoder layer before which tokens are dropped, below the number of layers; 0: before the '
        'language model; 1: as in the published inference code.',
        minimum=0,
        maximum=255,
    )
    questions: tuple[str, ...] = option(
        DEFAULT_QUESTIONS, 'Questions that are answered for every sweep.', runtime=True
    )
    question_batch: int = option(
        16,
        'Questions about a sweep that are answered together; fewer need less memory.',
        minimum=1,
        maximum=256,
        runtime=True,
    )
    max_new_tokens: int = option(
        64,
        'Longest answer, in tokens; memory for so many is reserved.',
        minimum=1,
        maximum=4096,
        runtime=True,
    )
    stop: tuple[str, ...] = option(
        (), 'Texts that end an answer where they appear, and are not part of it.', runtime=True
    )
    stream_partial_answers: bool = option(
        False, 'Whether answers are published while they grow, on ~/answer_partial.', runtime=True
    )
    deadline_ms: float = option(
        0.0,
        'Generation for a sweep stops this long after work on it began, and the answer is marked '
        'as cut; 0: no limit.',
        minimum=0.0,
        maximum=600000.0,
        runtime=True,
    )

    def __post_init__(self) -> None:
        """Check the values and how they fit together."""
        _check_fields(self)
        if not self.cameras:
            raise ConfigError('cameras: got none, allowed: one or more; name them in camera_names')
        if self.sync.reference_camera not in self.cameras:
            raise ConfigError(
                f'sync.reference_camera: got {self.sync.reference_camera!r}, '
                f'allowed: {", ".join(self.cameras)}'
            )
        unknown = sorted(set(self.retention_ratio) - set(self.cameras))
        if unknown:
            raise ConfigError(
                f'retention_ratio: got camera {unknown[0]!r}, allowed: {", ".join(self.cameras)}'
            )
        for name in self.cameras:
            check_value(f'retention_ratio.{name}', self.retention_ratio_of(name), RETENTION_RATIO)
        if self.allocation == 'adaptive' and self.selector != 'tfps':
            raise ConfigError(
                f'allocation: got adaptive with selector {self.selector!r}, allowed: with tfps, '
                'whose distances it compares'
            )
        if '' in self.stop:
            raise ConfigError('stop: got an empty text, which ends every answer; remove it')
        if any(not question.strip() for question in self.questions):
            raise ConfigError(
                'questions: got an empty question, allowed: non-empty texts; to ask nothing by '
                'itself set questions to an empty list'
            )

    def retention_ratio_of(self, camera: str) -> float:
        """Return the retention ratio of `camera`, the default where none is set."""
        return self.retention_ratio.get(camera, DEFAULT_RETENTION_RATIO)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One leaf of the configuration under its parameter name.

    Attributes:
        name: Dotted name, e.g. `sync.tolerance_ms`.
        default: Value where nothing is set; its type is the parameter's type.
        option: What is allowed.
    """

    name: str
    default: Any
    option: Option


CAMERA_NAMES = Parameter(
    'camera_names',
    NUSCENES_CAMERAS,
    Option(help='The cameras, in the order in which the model sees them.'),
)
"""Names the cameras; the parameters `cameras.<NAME>.*` and `retention_ratio.<NAME>` follow it."""


def check_camera_names(names: Any) -> tuple[str, ...]:
    """Return the value of `camera_names` as a tuple.

    Raises:
        ConfigError: Not a list of different, non-empty texts, or a text with a dot, which
            separates the parts of parameter names.
    """
    if (
        not isinstance(names, (list, tuple))
        or not names
        or not all(isinstance(name, str) and name and '.' not in name for name in names)
        or len(set(names)) < len(names)
    ):
        raise ConfigError(
            f'{CAMERA_NAMES.name}: got {names!r}, allowed: a list of one or more different names '
            'without dots, such as [CAM_FRONT, CAM_BACK]'
        )
    return tuple(names)


def list_parameters(
    camera_names: Sequence[str], tuned: Mapping[str, float] | None = None
) -> list[Parameter]:
    """List every parameter but `camera_names`, for these cameras, with its default.

    Args:
        camera_names: The cameras.
        tuned: Camera to the retention ratio that was tuned for the model, where one was.
    """
    defaults = DriveConfig()
    parameters = _leaves(defaults, '')
    for section in ('encoder', 'sync'):
        parameters += _leaves(getattr(defaults, section), f'{section}.')
    for name in camera_names:
        camera = defaults.cameras.get(name, CameraConfig(topic=f'/{name}/image_raw'))
        parameters += _leaves(camera, f'cameras.{name}.')
        ratio = (tuned or {}).get(name, DEFAULT_RETENTION_RATIO)
        parameters.append(Parameter(f'retention_ratio.{name}', ratio, RETENTION_RATIO))
    return parameters


def closest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the parameter that a misspelt one may stand for; None where none is like it."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    return close[0] if close else None


def config_from_parameters(
    camera_names: Sequence[str],
    values: Mapping[str, Any],
    tuned: Mapping[str, float] | None = None,
) -> DriveConfig:
    """Build the configuration from parameter values; what is not in `values` keeps its default.

    Args:
        camera_names: The cameras.
        values: Parameter names to values.
        tuned: As for `list_parameters`.

    Raises:
        ConfigError: A name that is not a parameter, a value of the wrong type or out of range.
    """
    camera_names = check_camera_names(camera_names)
    known = {parameter.name: parameter for parameter in list_parameters(camera_names, tuned)}
    for name in values:
        if name not in known:
            close = closest_name(name, known)
            hint = f'did you mean {close}?' if close else f'allowed: {", ".join(sorted(known))}'
            raise ConfigError(f'{name}: there is no such parameter; {hint}')
    typed = {
        name: _to_type_of(parameter.default, values.get(name, parameter.default), name)
        for name, parameter in known.items()
    }

    def section(prefix: str) -> dict[str, Any]:
        return {
            name.removeprefix(prefix): value
            for name, value in typed.items()
            if name.startswith(prefix)
        }

    return DriveConfig(
        **{name: value for name, value in typed.items() if '.' not in name},
        encoder=EncoderConfig(**section('encoder.')),
        sync=SyncConfig(**section('sync.')),
        cameras={name: CameraConfig(**section(f'cameras.{name}.')) for name in camera_names},
        retention_ratio=section('retention_ratio.'),
    )


def _leaves(config: Any, prefix: str) -> list[Parameter]:
    return [
        Parameter(f'{prefix}{item.name}', getattr(config, item.name), item.metadata['option'])
        for item in fields(config)
        if 'option' in item.metadata
    ]


def _to_type_of(default: Any, value: Any, name: str) -> Any:
    """Return `value` in the type of `default`: whole numbers pass as floats, lists as tuples."""
    if isinstance(default, tuple):
        if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise ConfigError(f'{name}: got {value!r}, allowed: a list of texts')
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise ConfigError(f'{name}: got {value!r}, allowed: a {type(default).__name__}')
    return value
