"""`p2d evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from p2d_node.cli.options import argument, Options, require_at_most_one, same_as
from p2d_node.cli.verb import Verb
from p2d_node.cli.verbs.shared import (
    frame_interval,
    frames_per_camera,
    json_output,
    PARAMETER_FILE_HELP,
    retention_ratio,
)
from p2d_node.config import DriveConfig
from p2d_node.errors import ConfigError

EXAMPLES = """examples:
  p2d evaluate --data v1_1_val_nus_q_only_with_tag.json --images nuscenes --model models/drivemm
  p2d evaluate --data DriveLMMo1_TEST.json --images nuscenes --model models/drivelmm-o1 --workers 4
  p2d evaluate --data v1_1_train_nus.json --bag scene-0061 --model models/drivemm
  p2d evaluate --data v1_1_val_with_answers.json --predictions submission.json --json
"""

API_KEY_VARIABLE = 'P2D_JUDGE_API_KEY'
AUTO_FORMAT = 'auto'
FORMAT_NAMES = ('drivelm', 'drivelmm-o1')


@dataclass(frozen=True, kw_only=True)
class _Data(Options):
    TITLE = 'data'

    data: Path = argument(help='JSON file of DriveLM or of DriveLMM-o1.')
    format: str = argument(
        AUTO_FORMAT,
        'Format of --data; auto: recognised by its fields.',
        choices=(AUTO_FORMAT, *FORMAT_NAMES),
    )
    limit: int | None = argument(None, 'Use only the first N keyframes.', metavar='N', minimum=1)
    predictions: Path | None = argument(None, 'File of answers to score; no model runs.')


@dataclass(frozen=True, kw_only=True)
class _Answering(Options):
    TITLE = 'answering'

    images: Path | None = argument(
        None, 'Folder that holds samples/<CAMERA>/*.jpg.', unless='predictions'
    )
    bag: Path | None = argument(
        None,
        'Use the keyframes of --data whose images this bag has, and its images: a rosbag2 with '
        'the capture stamps of nuScenes, in place of --images.',
        unless='predictions',
    )
    model: str | None = same_as(
        DriveConfig,
        'model',
        default=None,
        default_text='as in --params-file, else p2d-mini',
        unless='predictions',
    )
    params_file: Path | None = argument(None, PARAMETER_FILE_HELP, unless='predictions')
    retention_ratio: float | None = retention_ratio(
        None,
        default_text='as in --params-file, else as tuned for the model, else 0.1',
        unless='predictions',
    )
    max_new_tokens: int | None = same_as(
        DriveConfig,
        'max_new_tokens',
        default=None,
        default_text="as in --params-file, else as in the benchmark's own inference: 1024 for "
        'DriveLM, 2000 for DriveLMM-o1, whose answers reason first',
        unless='predictions',
    )
    frames_per_camera: int | None = frames_per_camera(unless='predictions')
    frame_interval_ms: float | None = frame_interval(unless='predictions')
    instruction: str = argument(
        '',
        'Text before each question, for a model that must be told how to answer.',
        unless='predictions',
    )
    workers: int = argument(
        1,
        'Processes that answer keyframes side by side. Each loads the model, so N of them need N '
        'times its memory, on a GPU too. They share the CPU threads, and the times in the report '
        'are taken while they compete.',
        minimum=1,
        unless='predictions',
    )
    scheduler: str | None = argument(
        None,
        'Answer on the workers of a running Dask cluster, as tcp://host:8786 or tls://host:8786, '
        'instead of workers of its own; only for networks that you trust.',
        metavar='ADDRESS',
        unless='predictions',
    )
    out: Path = argument(
        Path('evaluation'),
        'Folder of report.html, answers.jsonl, submission.json and judgements.jsonl. A run that '
        'was interrupted continues there.',
    )


@dataclass(frozen=True, kw_only=True)
class _Scoring(Options):
    TITLE = 'scoring'

    judge_command: str | None = argument(
        None,
        'Command that scores free answers: reads JSON lines, writes a number per line, or for '
        'DriveLMM-o1 an object of ratings per line.',
    )
    judge_url: str | None = argument(
        None, f'OpenAI-compatible service that scores free answers; its key in {API_KEY_VARIABLE}.'
    )
    judge_model: str = argument('gpt-4o-mini', 'Model of --judge-url.', needs='judge_url')
    judge_parallel: int = argument(
        4, 'Requests to --judge-url at a time.', minimum=1, needs='judge_url'
    )
    tokenizer: str = argument('auto', 'Splits answers into words: ptb (Java), treebank or auto.')
    json: bool = json_output('Print figures as JSON.')


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(_Scoring, _Answering, _Data):
    """Answer the questions of a benchmark and score the answers, or score a file of answers."""

    def __post_init__(self) -> None:
        """Check the values and how they fit together."""
        super().__post_init__()
        require_at_most_one(self, 'judge_command', 'judge_url')
        require_at_most_one(self, 'images', 'bag')
        if self.bag is not None and self.scheduler is not None:
            raise ConfigError(
                f'scheduler: got {self.scheduler}, allowed with --bag: none; its workers do not '
                'have the images: use --workers'
            )
        if self.scheduler is not None and self.workers > 1:
            raise ConfigError(
                f'workers: got {self.workers}, which has no effect with --scheduler; leave it out'
            )


EVALUATE = Verb(
    name='evaluate',
    help='answer and score the questions of DriveLM and DriveLMM-o1',
    examples=EXAMPLES,
    options=EvaluateOptions,
    run='p2d_node.cli.evaluate:run',
)
