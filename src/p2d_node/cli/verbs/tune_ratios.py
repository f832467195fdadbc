"""`p2d tune-ratios`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from p2d_node.cli.options import argument, Options, same_as
from p2d_node.cli.verb import Verb
from p2d_node.cli.verbs.shared import (
    frame_interval,
    frames_per_camera,
    json_output,
    PARAMETER_FILE_HELP,
)
from p2d_node.config import DriveConfig

EXAMPLES = """examples:
  p2d tune-ratios --data train.json --images nuscenes --model models/drivemm
  p2d tune-ratios --data train.json --images nuscenes --mean-retention 0.1 --workers 4 \\
      --methods tpe,uniform,random --held-out val.json
  p2d tune-ratios --data train.json --images nuscenes \\
      --storage postgresql://user@host/optuna    # on each machine; its password in ~/.pgpass

The same command, started again, continues a study that ended or was interrupted.
"""


@dataclass(frozen=True, kw_only=True)
class _Data(Options):
    TITLE = 'data and model'

    data: Path = argument(help='JSON file of DriveLM, with answers.')
    images: Path = argument(help='Folder that holds samples/<CAMERA>/*.jpg.')
    limit: int | None = argument(None, 'Use only the first N keyframes.', metavar='N', minimum=1)
    held_out: Path | None = argument(
        None, 'JSON file of DriveLM that the search does not use; the result is checked with it.'
    )
    held_out_images: Path | None = argument(
        None,
        'Folder of the images of --held-out.',
        default_text='--images',
        needs='held_out',
    )
    model: str | None = same_as(
        DriveConfig, 'model', default=None, default_text='as in --params-file, else p2d-mini'
    )
    params_file: Path | None = argument(None, PARAMETER_FILE_HELP)
    frames_per_camera: int | None = frames_per_camera()
    frame_interval_ms: float | None = frame_interval()


@dataclass(frozen=True, kw_only=True)
class _Objective(Options):
    TITLE = 'objective'

    language_weight: float = argument(0.5, 'Weight of the language score in the objective.')
    accuracy_weight: float = argument(0.5, 'Weight of the accuracy in the objective.')
    ratio_penalty: float | None = argument(
        None,
        'Multiplied by the sum of the ratios and subtracted from the objective.',
        default_text='0.03, or 0 with --mean-retention',
    )
    mean_retention: float | None = argument(
        None,
        'Keep as many tokens as this ratio would; the search only decides how the cameras share '
        'them.',
        above=0.0,
        maximum=1.0,
    )
    min_retention: float | None = argument(
        None,
        'Smallest ratio of a camera.',
        default_text='0.1, or a quarter of --mean-retention',
    )
    max_retention: float = argument(1.0, 'Largest ratio of a camera.')
    tokenizer: str = argument(
        'treebank',
        'Splits answers into words: treebank, or ptb, which needs Java on every machine.',
    )


@dataclass(frozen=True, kw_only=True)
class _Search(Options):
    TITLE = 'search'

    methods: str = argument(
        'tpe,uniform', 'Some of tpe, uniform, random, grid, evolutionary, separated by commas.'
    )
    trials: int = argument(100, 'Trials of each method, over all workers.', minimum=1)
    no_pruning: bool = argument(False, 'Finish trials that are clearly worse, too.')
    seed: int = argument(0, 'Random seed of the search.', minimum=0, maximum=2**32 - 1)
    storage: str | None = argument(
        None,
        'Database URL, such as postgresql://..., an SQLite file, or a journal (FILE.log).',
        default_text='OUT/study.db',
    )
    name: str | None = argument(None, 'Name of the study.', default_text='the model')
    workers: int = argument(1, 'Processes on this machine.', minimum=1)
    cache: Path | None = argument(None, 'Folder of encoded keyframes.', default_text='OUT/cache')
    lease: float = argument(
        120.0,
        'Seconds without a heartbeat after which a worker counts as dead.',
        metavar='S',
        minimum=4.0,
        maximum=1e6,
    )


@dataclass(frozen=True, kw_only=True)
class TuneOptions(_Search, _Objective, _Data):
    """Search the retention ratio of each camera, and write the ratios for the node."""

    out: Path = argument(
        Path('tuning'),
        'Folder of <model>.yaml with the ratios, report.html, study.png, study.db and cache.',
    )
    params_out: Path | None = argument(
        None, 'Parameter file to write.', default_text='OUT/<model>.yaml'
    )
    install: bool = argument(
        False,
        "Make the ratios the model's defaults: config/retention/<model>.yaml of this package. The "
        'file before is kept; fewer trials or a worse held-out score than it has are refused.',
    )
    force: bool = argument(
        False, 'With --install: install them in spite of that.', needs='install'
    )
    json: bool = json_output('Print figures as JSON.')


TUNE_RATIOS = Verb(
    name='tune-ratios',
    help='search the retention ratio of each camera',
    examples=EXAMPLES,
    options=TuneOptions,
    run='p2d_node.cli.tune_ratios:run',
)
