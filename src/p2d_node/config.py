"""The configuration: one frozen dataclass per stage; defaults, units, ranges and help in metadata.

Parameter files, the command line and the node's declared parameters all derive from these classes,
so they cannot disagree. Values are checked on construction; what is wrong raises `ConfigError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
import math
from typing import Any, TypeVar

from p2d_node.errors import ConfigError
from p2d_node.records import NUSCENES_CAMERAS

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

    backend: str = option('torch', 'Runtime of the vision encoder.', choices=('torch',))
    engine_dir: str = option('', 'Folder of the built engines; only engines inside it are loaded.')

    def __post_init__(self) -> None:
        """Check the values."""
        _check_fields(self, 'encoder.')


@dataclass(frozen=True, kw_only=True)
class DriveConfig:
    """Everything the drive node and the pipeline need to know."""

    model: str = option(
        UNTRAINED_MODEL,
        'Checkpoint folder in Hugging Face format (safetensors); "untrained": a tiny model with '
        'random weights, to try the plumbing.',
    )
    device: str = option(
        'auto',
        'torch device: auto, cpu, cuda or cuda:<index>; auto takes a GPU where there is one.',
    )
    dtype: str = option(
        'auto',
        'Number format of the weights; auto: bfloat16 on a GPU, float32 on a CPU.',
        choices=('auto', 'float32', 'bfloat16', 'float16', 'float64'),
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
    prune_layer: int = option(
        0,
        'Decoder layer before which tokens are dropped; 0: before the language model.',
        minimum=0,
        maximum=0,
    )
    questions: tuple[str, ...] = option(
        DEFAULT_QUESTIONS, 'Questions that are answered for every sweep.', runtime=True
    )
    max_new_tokens: int = option(
        64, 'Longest answer, in tokens.', minimum=1, maximum=4096, runtime=True
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
        if any(not question.strip() for question in self.questions):
            raise ConfigError(
                'questions: got an empty question, allowed: non-empty texts; to ask nothing by '
                'itself set questions to an empty list'
            )

    def retention_ratio_of(self, camera: str) -> float:
        """Return the retention ratio of `camera`, the default where none is set."""
        return self.retention_ratio.get(camera, DEFAULT_RETENTION_RATIO)
