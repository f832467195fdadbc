"""The configuration: one frozen dataclass per stage, checked on construction.

Field metadata holds the help text, the allowed values and whether a value may change at run time.
Parameter files, command line options and ROS parameters are all derived from these classes, by
`config_parameters`. A value that is not allowed raises `ConfigError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from p2d_node.config_option import check_fields, check_value, Option, option
from p2d_node.errors import ConfigError
from p2d_node.records import NUSCENES_CAMERAS
from p2d_node.retention_presets import tuned_ratios

SHIPPED_MODEL = 'p2d-mini'
"""Value of `model` for the small model that ships with this package."""

UNTRAINED_MODEL = 'untrained'
"""Value of `model` for a tiny model with random weights, created at start."""

DEFAULT_RETENTION_RATIO = 0.10
"""The main setting of the Prune2Drive paper: one visual token in ten."""

NUSCENES_EXPOSURE_OFFSETS_MS = {
    'CAM_FRONT_LEFT': 0.0,
    'CAM_FRONT': 7.6,
    'CAM_FRONT_RIGHT': 15.5,
    'CAM_BACK_RIGHT': 23.1,
    'CAM_BACK': 32.7,
    'CAM_BACK_LEFT': 42.6,
}
"""Exposure of the nuScenes cameras after CAM_FRONT_LEFT, from the stamps in the file names."""

DEFAULT_MAX_IMAGE_PIXELS = 4096 * 4096
"""Decoded it takes 50 MB; automotive cameras have up to 3840x2160 pixels."""

DEFAULT_QUESTIONS = (
    'What are the important objects in the current scene?',
    'What should the ego vehicle do next, and why?',
)

MAX_BATCH_TOKENS = 1 << 16
"""Of `question_batch` answers of `max_new_tokens`."""

MAX_FRAMES_PER_CAMERA = 16

MAX_QUESTIONS, MAX_QUESTIONS_CHARACTERS = 256, 64_000
"""Limits of the questions per sweep, which are checked on the thread that receives frames. DriveLM
has about 100 per keyframe, each a sentence or two."""

MAX_STOP_TEXTS, MAX_STOP_CHARACTERS = 16, 1024
"""Limits of the stop texts, all of which are looked for after every token. In use are one to four,
such as a line break or the name of the next speaker."""

RETENTION_RATIO = Option(
    help="Share of this camera's visual tokens that the language model gets: kept/total.",
    minimum=0.001,
    maximum=1.0,
    runtime=True,
)


@dataclass(frozen=True, kw_only=True)
class CameraConfig:
    """One camera: its topic, transport, exposure within a sweep and frame rate."""

    topic: str = option(
        '',
        'Topic of the camera images; a relative one is below camera_namespace.',
        fixed=True,
    )
    transport: str = option(
        'compressed',
        'raw: sensor_msgs/Image; compressed: sensor_msgs/CompressedImage.',
        choices=('raw', 'compressed'),
        fixed=True,
    )
    exposure_offset_ms: float = option(
        0.0,
        'Exposure after the start of the sweep, in ms; 0 for cameras that are triggered together.',
        minimum=-1000.0,
        maximum=1000.0,
        fixed=True,
    )
    rate_hz: float = option(
        0.0,
        'Expected frames per second; diagnostics warn below 80 % of it. 0: the rate of the '
        'fastest camera.',
        minimum=0.0,
        maximum=1000.0,
        fixed=True,
    )

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(self, 'cameras.*.')


@dataclass(frozen=True, kw_only=True)
class SyncConfig:
    """How the frames of several cameras are grouped into sweeps."""

    reference_camera: str = option(
        '',
        'Camera whose capture stamp and frame_id are in the header of the answers. Empty: the '
        'first of camera_names.',
    )
    tolerance_ms: float = option(
        24.0,
        'Largest difference, in ms, between the start of a sweep and a stamp minus its exposure '
        'offset. Keep it below half of the shortest sweep period (nuScenes: 50 ms).',
        minimum=0.0,
        maximum=1000.0,
    )
    deadline_ms: float = option(
        150.0,
        'Time, in ms, from the first frame of a sweep to the end of the wait for the others.',
        minimum=1.0,
        maximum=10000.0,
    )
    reset_threshold_ms: float = option(
        1000.0,
        'A stamp this many ms before the newest one is a jump of time, such as a bag that starts '
        'again, and not a late frame.',
        minimum=10.0,
        maximum=3600000.0,
    )
    exposure_offsets: str = option(
        'preset',
        'preset: use cameras.<NAME>.exposure_offset_ms; auto: learn the offsets from the first '
        'sweeps.',
        choices=('preset', 'auto'),
    )
    min_views: int = option(
        3,
        'With missing_camera_policy drop_view: smallest number of views that are answered about.',
        minimum=1,
        maximum=64,
    )

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(self, 'sync.')

    def reference_of(self, cameras: Iterable[str]) -> str:
        """Return the reference camera: the one that is set, or the first of `cameras`."""
        return self.reference_camera or next(iter(cameras))


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Which runtime runs the vision encoder."""

    backend: str = option(
        'auto',
        'Runtime of the vision encoder. auto: the first of tensorrt, tensorrt_rtx, onnxruntime '
        'that is installed and has an engine for this machine and model, otherwise torch.',
        choices=('auto', 'tensorrt', 'tensorrt_rtx', 'onnxruntime', 'torch'),
    )
    engine_dir: str = option(
        '',
        'Folder of the built engines. Empty: engines/ of the source tree, or '
        '~/.local/share/p2d_node/engines if there is no source tree.',
    )
    weights: str = option(
        'as_is',
        "Quantisation of the encoder's linear layers, with backend torch on a CPU. as_is: none. "
        'int8: faster than float32, mostly on CPUs without bfloat16; other tokens are kept.',
        choices=('as_is', 'int8'),
    )
    allow_unverified: bool = option(
        False,
        'Whether to load engines that p2d verify-engine has not compared with torch on this '
        'machine.',
    )

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(self, 'encoder.')
        if self.weights != 'as_is' and self.backend != 'torch':
            raise ConfigError(
                f'encoder.weights: got {self.weights} with encoder.backend {self.backend}, '
                'allowed with it: torch; set encoder.backend to torch'
            )


@dataclass(frozen=True, kw_only=True)
class DriveConfig:
    """The configuration of the drive node and of the pipeline.

    A camera that is not in `retention_ratio` has the ratio that was tuned for the model, if there
    is one, or `DEFAULT_RETENTION_RATIO`.
    """

    _tuned_ratios: ClassVar[Mapping[str, float]] = {}

    model: str = option(
        SHIPPED_MODEL,
        'Checkpoint folder in Hugging Face format (safetensors); p2d-mini: the small model that '
        'ships with the package; untrained: a tiny model with random weights, for tests without a '
        'checkpoint.',
    )
    device: str = option(
        'auto',
        'Device of torch: auto, cpu or cuda. auto: the first GPU in CUDA_VISIBLE_DEVICES, or cpu '
        'if there is no GPU.',
    )
    dtype: str = option(
        'auto',
        'Number format of the weights. auto: bfloat16 on a GPU and on a CPU with AVX512-BF16 or '
        'AMX, float32 on other CPUs.',
        choices=('auto', 'float32', 'bfloat16', 'float16', 'float64'),
    )
    weights: str = option(
        'as_is',
        "Quantisation of the language model's linear weights by torchao. as_is: none. int4 needs "
        'an NVIDIA GPU of compute capability 8.0 or higher and dtype bfloat16.',
        choices=('as_is', 'int8', 'int4'),
    )
    num_threads: int = option(
        0,
        "CPU threads of torch. 0: one less than torch's default, to leave one for the camera "
        'callbacks.',
        minimum=0,
        maximum=1024,
    )
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    cameras: Mapping[str, CameraConfig] = field(
        default_factory=lambda: {
            name: CameraConfig(
                topic=f'{name}/image_rect/compressed',
                exposure_offset_ms=NUSCENES_EXPOSURE_OFFSETS_MS[name],
            )
            for name in NUSCENES_CAMERAS
        }
    )
    camera_namespace: str = option(
        '',
        'Namespace of relative camera topics, such as /car1/sensors. Empty: that of the node.',
        fixed=True,
    )
    sync: SyncConfig = field(default_factory=SyncConfig)
    view_max_pixels: int = option(
        0,
        'Largest number of pixels of a view, for models with a variable image size (Qwen-VL). '
        'Fewer pixels give fewer visual tokens. 0: the limit of the checkpoint.',
        minimum=0,
        maximum=100_000_000,
    )
    max_image_pixels: int = option(
        DEFAULT_MAX_IMAGE_PIXELS,
        'Largest number of pixels of a camera image, height x width; a side may have up to twice '
        'its square root. A larger image is a broken frame; its header is checked before memory '
        'is allocated.',
        minimum=256,
        maximum=1 << 28,
    )
    frames_per_camera: int = option(
        0,
        'Frames of each camera that the model sees: the newest and those before it. 0: as many '
        'as the model folder says, or 1.',
        minimum=0,
        maximum=MAX_FRAMES_PER_CAMERA,
    )
    frame_interval_ms: float = option(
        0.0,
        'Time, in ms, from one frame of a clip to the next; the nearest sweep within half of it '
        'is taken. 0: as the model folder says, or 100.',
        minimum=0.0,
        smallest=5.0,
        maximum=10000.0,
    )
    short_clip_policy: str = option(
        'answer',
        'What happens to a sweep with fewer earlier frames than frames_per_camera needs, as after '
        'a gap. answer: the answers use what is there; skip: it is dropped.',
        choices=('answer', 'skip'),
        runtime=True,
    )
    missing_camera_policy: str = option(
        'skip',
        'What happens to a sweep with cameras missing at the deadline or with broken frames. '
        'skip: it is dropped; drop_view: the answers use the other views, which also keep the '
        'tokens of the lost ones.',
        choices=('skip', 'drop_view'),
        runtime=True,
    )
    retention_ratio: Mapping[str, float] = field(default_factory=dict)
    selector: str = option(
        'tfps',
        'Method that selects the visual tokens to keep. tfps is that of the Prune2Drive paper; '
        'tfps_motion prefers new and moving tokens of a clip, and those that no other view has.',
        choices=('tfps', 'tfps_motion', 'random', 'grid', 'divprune', 'dart'),
        runtime=True,
    )
    selection_scope: str = option(
        'clip',
        'Where tokens compete with frames_per_camera above 1. clip: all frames of a camera '
        'together; frame: each frame by itself, with an equal share of the kept tokens.',
        choices=('clip', 'frame'),
        runtime=True,
    )
    allocation: str = option(
        'fixed',
        'fixed: every camera keeps its retention ratio. adaptive: the cameras share one budget, '
        'which is split anew for every sweep; the retention ratios weight the cameras.',
        choices=('fixed', 'adaptive'),
        runtime=True,
    )
    prune_layer: int = option(
        0,
        'Decoder layer before which tokens are dropped, less than the number of layers. 0: before '
        'the language model; 1: as in the published inference code.',
        minimum=0,
        maximum=255,
    )
    questions: tuple[str, ...] = option(
        DEFAULT_QUESTIONS,
        'Questions that are answered for every sweep; an empty list: none.',
        max_texts=MAX_QUESTIONS,
        max_characters=MAX_QUESTIONS_CHARACTERS,
        runtime=True,
    )
    context: str = option(
        '',
        'Text that stands before every question, such as the route. A text of ~/context takes its '
        'place. Empty: none.',
        runtime=True,
    )
    max_context_age_ms: float = option(
        2000.0,
        'Age, in ms, from which a text of ~/context is no longer used. 0: no limit.',
        minimum=0.0,
        smallest=1.0,
        maximum=3_600_000.0,
        runtime=True,
    )
    asked_tokens_per_sweep: int = option(
        1024,
        'Largest number of question tokens per sweep of ~/ask and ~/question; further questions '
        'wait for the next sweep, and a longer one is refused. The standing questions are always '
        'answered first.',
        minimum=1,
        maximum=1_000_000,
        runtime=True,
    )
    question_batch: int = option(
        16,
        'Largest number of questions that are answered in one batch. A smaller batch needs less '
        'memory. Together with max_new_tokens: up to 65,536 tokens per batch.',
        minimum=1,
        maximum=256,
        runtime=True,
    )
    max_new_tokens: int = option(
        64,
        'Largest number of tokens of an answer. Memory is reserved for this number.',
        minimum=1,
        maximum=4096,
        runtime=True,
    )
    stop: tuple[str, ...] = option(
        (),
        'Texts at which an answer ends; the answer does not contain them.',
        max_texts=MAX_STOP_TEXTS,
        max_characters=MAX_STOP_CHARACTERS,
        runtime=True,
    )
    drafts: str = option(
        'last_sweep',
        'Where drafts of answers come from; one decoder pass verifies several drafted tokens, and '
        'the answers stay the same (in bfloat16 but for nearly equal tokens). last_sweep: the '
        'last answer to the same question; prompt_lookup: the question and the other answers of '
        'the sweep; none.',
        choices=('last_sweep', 'prompt_lookup', 'none'),
        runtime=True,
    )
    max_draft_tokens: int = option(
        8,
        'Largest number of drafted tokens per decoder pass; fewer are drafted when they were '
        'wrong lately. 0: none.',
        minimum=0,
        maximum=64,
        runtime=True,
    )
    stream_partial_answers: bool = option(
        False,
        'Whether unfinished answers are published on ~/answer_partial after every token.',
        runtime=True,
    )
    deadline_ms: float = option(
        0.0,
        'Time, in ms, after the start of work on a sweep at which generation stops; answers that '
        'were cut say so. 0: no limit.',
        minimum=0.0,
        smallest=1.0,
        maximum=600000.0,
        runtime=True,
    )
    max_answer_age_ms: float = option(
        2000.0,
        'Largest age, in ms, of a sweep since its capture. An older one is dropped before work on '
        'it begins; answers that become older are published with late set. 0: no limit.',
        minimum=0.0,
        smallest=1.0,
        maximum=600000.0,
        runtime=True,
    )
    late_until_error: int = option(
        5,
        'Number of late sweeps in a row at which the warning of the diagnostics becomes an error.',
        minimum=1,
        maximum=1_000_000,
        runtime=True,
    )
    max_sweep_s: float = option(
        5.0,
        'Longest time, in s, that work on a sweep may stand still, without a stage that ends, '
        'a decoded frame (that may take up to 60 s) or a token. Then the node reports the stage, '
        'goes to its error state and ends. 0: no limit.',
        minimum=0.0,
        smallest=0.5,
        maximum=3600.0,
        runtime=True,
    )
    access: str = option(
        'open',
        'open: any peer on the ROS network may change parameters and the lifecycle state. locked: '
        'the node refuses both and keeps what its launch gave it; needs autostart.',
        choices=('open', 'locked'),
        fixed=True,
    )

    hardware_id: str = option(
        '',
        'Name of the computer in /diagnostics. Empty: name of the host and, with device cuda, of '
        'its GPU.',
    )

    def __post_init__(self) -> None:
        """Check each value and the values that depend on each other."""
        check_fields(self)
        if not self.model:
            raise ConfigError(
                f'model: got an empty text, allowed: a checkpoint folder or {SHIPPED_MODEL}'
            )
        object.__setattr__(self, '_tuned_ratios', tuned_ratios(self.model))
        self._check_cameras()
        if self.allocation == 'adaptive' and self.selector != 'tfps':
            raise ConfigError(
                f'allocation: got adaptive with selector {self.selector!r}, allowed: with tfps '
                'only; set selector to tfps or allocation to fixed'
            )
        if self.allocation == 'adaptive' and self.selection_scope != 'clip':
            raise ConfigError(
                f'allocation: got adaptive with selection_scope {self.selection_scope!r}, '
                'allowed: with clip only; set selection_scope to clip or allocation to fixed'
            )
        if self.selector == 'tfps_motion' and self.selection_scope != 'clip':
            raise ConfigError(
                f'selector: got tfps_motion with selection_scope {self.selection_scope!r}, '
                'allowed: with clip only; set selection_scope to clip'
            )
        if self.question_batch * self.max_new_tokens > MAX_BATCH_TOKENS:
            raise ConfigError(
                f'question_batch: got {self.question_batch} with max_new_tokens '
                f'{self.max_new_tokens}, allowed: up to {MAX_BATCH_TOKENS} tokens per batch, for '
                'which memory is reserved; lower one of them'
            )
        if '' in self.stop:
            raise ConfigError('stop: got an empty text, which ends every answer; remove it')
        if any(not question.strip() for question in self.questions):
            raise ConfigError(
                'questions: got an empty question, allowed: texts that are not empty; for no '
                'questions set an empty list'
            )

    def _check_cameras(self) -> None:
        if not self.cameras:
            raise ConfigError('cameras: got none, allowed: one or more; set camera_names')
        reference = self.sync.reference_camera
        if reference and reference not in self.cameras:
            raise ConfigError(
                f'sync.reference_camera: got {reference!r}, allowed: {", ".join(self.cameras)}'
            )
        topics = [camera.topic for camera in self.cameras.values() if camera.topic]
        shared = [
            f'cameras.{name}.topic'
            for name, camera in self.cameras.items()
            if topics.count(camera.topic) > 1
        ]
        if shared:
            raise ConfigError(
                f'{", ".join(shared)}: got one topic for several cameras, allowed: a topic of its '
                'own for each'
            )
        unknown = sorted(set(self.retention_ratio) - set(self.cameras))
        if unknown:
            raise ConfigError(
                f'retention_ratio: got camera {unknown[0]!r}, allowed: {", ".join(self.cameras)}'
            )
        for name in self.cameras:
            check_value(f'retention_ratio.{name}', self.retention_ratio_of(name), RETENTION_RATIO)

    def topic_of(self, camera: str) -> str:
        """Return the topic of `camera`; a relative one is below `camera_namespace`."""
        topic = self.cameras[camera].topic
        if not topic or not self.camera_namespace or topic.startswith(('/', '~')):
            return topic
        return f'{self.camera_namespace.rstrip("/")}/{topic}'

    @property
    def work_limits(self) -> tuple[object, ...]:
        """The values that decide how much there is to answer about a sweep, and for how long."""
        return (
            self.questions,
            self.stop,
            self.max_new_tokens,
            self.question_batch,
            self.deadline_ms,
        )

    def retention_ratio_of(self, camera: str) -> float:
        """Return the retention ratio of `camera`: as given, as tuned for the model, or 0.1."""
        tuned = self._tuned_ratios.get(camera, DEFAULT_RETENTION_RATIO)
        return self.retention_ratio.get(camera, tuned)
