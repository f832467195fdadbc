"""The demo: a bag, the node in its own process, replay over DDS, a live table, a report."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path
import tempfile
from typing import Any, TYPE_CHECKING

from p2d_node.assembly import clip_settings
from p2d_node.bags.writing import write_bag
from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.checkpoints.model_folder import model_folder
from p2d_node.cli.demo_drive import DemoDrive, drawn_drive, drivelm_drive
from p2d_node.cli.demo_page import demo_page
from p2d_node.cli.demo_report import (
    print_references,
    write_answers,
    write_latency_plot,
    write_picture,
    write_story,
)
from p2d_node.cli.screen import say
from p2d_node.cli.shown_sweeps import to_shown_sweep
from p2d_node.cli.table import stamp_ns
from p2d_node.cli.verbs.node import DemoOptions
from p2d_node.config import DriveConfig, SHIPPED_MODEL
from p2d_node.durable_files import write_faults
from p2d_node.errors import ConfigError, P2dError
from p2d_node.language_model.families.registry import find_family
from p2d_node.records import NUSCENES_CAMERAS
from p2d_node.reports.page import REPORT_FILE, write_page
from p2d_node.units import NS_PER_S
from p2d_node.viewers.rerun_viewer import RerunViewer
from p2d_node.viewers.shown_sweep import Viewer

if TYPE_CHECKING:
    from p2d_node.ros.answer_watcher import AnswerWatcher

SAMPLE_FILE = 'drivelm_sample.json'
ANSWER_FILE = 'answers.jsonl'
LOG_FILE = 'node.log'
STORY_FILE = 'story.png'
OUTPUT_FILES = (
    ANSWER_FILE,
    STORY_FILE,
    REPORT_FILE,
    'kept_tokens.png',
    'latency.png',
    LOG_FILE,
)

DRAWN_ONLY = f'{SHIPPED_MODEL} knows drawn scenes only: its answers about photographs are wrong.'


def run(options: DemoOptions) -> int:
    """Run the demo; returns 0 if every sweep that was played got its answers."""
    untrained, num_frames = _check(options)
    drive = _drive(options)
    _prepare_output(options.out)
    viewer = None if options.rerun is None else RerunViewer(options.rerun)
    from p2d_node.cli.node_process import drive_node, isolate, play_and_watch  # needs ROS

    say(f'cameras: {drive.title}')
    if num_frames > 1 or options.frames_per_camera is not None:
        say(_clip_line(options, drive, num_frames))
    isolate()
    with tempfile.TemporaryDirectory(prefix='p2d-demo-') as folder:
        bag = Path(folder) / 'bag'
        num_sweeps = write_bag(drive.images, bag) // len(NUSCENES_CAMERAS)
        parameters = _parameters(options, drive, num_frames)
        with drive_node(parameters, Path(folder), options.out / LOG_FILE) as node:
            watcher, played = play_and_watch(bag, node, options.rate, pictures=True)
    warning = ''
    if options.model == SHIPPED_MODEL and not drive.is_drawn:
        warning = DRAWN_ONLY
    outputs = played_outputs(watcher, {image.stamp_ns for image in drive.images})
    _report(options.out, outputs, drive, num_sweeps, warning)
    if viewer is not None:
        _show(viewer, outputs, drive)
    if untrained:
        say('The model is untrained (random weights): its answers are random words.')
    return 0 if played else 1


def _check(options: DemoOptions) -> tuple[bool, int]:
    """Check what the node would refuse.

    Returns:
        Whether the model's weights are random, and the number of frames per camera.
    """
    if options.sample is not None and not (options.sample / SAMPLE_FILE).is_file():
        raise ConfigError(
            f'sample: got {options.sample}, allowed: a folder with {SAMPLE_FILE} and samples/; '
            'for other files give --data and --images'
        )
    with model_folder(options.model) as folder:
        checkpoint = open_checkpoint(folder)
        find_family(checkpoint)
        config = DriveConfig(frames_per_camera=options.frames_per_camera or 0)
        clip = clip_settings(config, checkpoint.prompt_layout)
        return checkpoint.untrained, clip.num_frames


def _prepare_output(out: Path) -> None:
    """Remove an earlier demo's files; anything else is not ours to touch.

    Raises:
        ConfigError: No files can be written there.
    """
    with write_faults(f'out: {out}', 'name another folder'):
        out.mkdir(parents=True, exist_ok=True)
        for name in OUTPUT_FILES:
            (out / name).unlink(missing_ok=True)
        (out / LOG_FILE).touch()


def _drive(options: DemoOptions) -> DemoDrive:
    if options.sample is not None:
        return drivelm_drive(options.sample / SAMPLE_FILE, options.sample)
    if options.data is not None and options.images is not None:
        return drivelm_drive(options.data, options.images)
    return drawn_drive(options.seed)


def _parameters(options: DemoOptions, drive: DemoDrive, num_frames: int) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        'model': options.model,
        'max_new_tokens': options.max_new_tokens,
        'questions': list(drive.questions),
    }
    if num_frames > 1 or options.frames_per_camera is not None:
        # Whatever the model says: the drive has no frames in between.
        parameters['frames_per_camera'] = num_frames
        parameters['frame_interval_ms'] = drive.period_ms
    if options.retention_ratio is not None:
        ratios = dict.fromkeys(DriveConfig().cameras, options.retention_ratio)
        parameters['retention_ratio'] = ratios
    return parameters


def _clip_line(options: DemoOptions, drive: DemoDrive, num_frames: int) -> str:
    line = f'frames per camera: {num_frames}, {drive.period_ms:.0f} ms apart'
    if options.model == SHIPPED_MODEL and num_frames != 1:
        line += f'; {SHIPPED_MODEL} was trained on one frame, so expect worse answers'
    return line


@dataclass(frozen=True, slots=True)
class Outputs:
    """What came about the sweeps that were played, each once.

    Attributes:
        answers: p2d_msgs/DrivingAnswer.
        timings: p2d_msgs/StageTiming.
        pictures: `~/kept_tokens`, sensor_msgs/Image.
    """

    answers: list[Any]
    timings: list[Any]
    pictures: list[Any]


def played_outputs(watcher: AnswerWatcher, stamps_ns: Container[int]) -> Outputs:
    """Leave out what another node publishes under the name of this one.

    Args:
        watcher: Has received it.
        stamps_ns: Capture stamps of the images that were played.
    """

    def played(messages: Iterable[Any]) -> list[Any]:
        return [message for message in messages if stamp_ns(message) in stamps_ns]

    answers = {(stamp_ns(a), a.question): a for a in played(watcher.answers)}
    answered_ns = {stamp for stamp, _ in answers}
    timings = {stamp_ns(t): t for t in played(watcher.timings) if stamp_ns(t) in answered_ns}
    return Outputs(list(answers.values()), list(timings.values()), played(watcher.pictures))


def _show(viewer: Viewer, outputs: Outputs, drive: DemoDrive) -> None:
    jpegs = {(image.camera, image.stamp_ns): image.jpeg for image in drive.images}
    answers = outputs.answers
    about = {stamp_ns(answer): answer for answer in answers}
    for number, timing in enumerate(outputs.timings):
        answer = about[stamp_ns(timing)]
        stamps = (stamp.sec * NS_PER_S + stamp.nanosec for stamp in answer.camera_stamps)
        captured = zip(answer.cameras, stamps, strict=True)
        views = {camera: jpegs[camera, stamp] for camera, stamp in captured}
        viewer.show(to_shown_sweep(number, timing, answers, views, outputs.pictures))
    viewer.close()


def _report(out: Path, outputs: Outputs, drive: DemoDrive, num_sweeps: int, warning: str) -> None:
    answers, timings = outputs.answers, outputs.timings
    picture = next(reversed(outputs.pictures), None)
    if not answers:
        log = (out / LOG_FILE).read_text(encoding='utf-8', errors='replace').strip()
        raise P2dError(f'the node gave no answer; its log ends with: {log[-600:] or "nothing"}')
    write_answers(answers, drive.references, out / ANSWER_FILE)
    fronts = {i.stamp_ns: i.jpeg for i in drive.images if i.camera == NUSCENES_CAMERAS[0]}
    write_story(fronts, answers, out / STORY_FILE, references=drive.references, warning=warning)
    write_latency_plot(
        timings, f'{answers[-1].model} on {answers[-1].encoder}', out / 'latency.png'
    )
    if picture is not None:
        write_picture(picture, out / 'kept_tokens.png')
    page = demo_page(
        drive.title,
        answers,
        timings,
        fronts,
        picture=picture,
        references=drive.references,
        num_sweeps=num_sweeps,
        warning=warning,
    )
    write_page(page, out / REPORT_FILE)
    if drive.references:
        print_references(answers, drive.references)
    say(f'{len(answers)} answers about {len(timings)} of {num_sweeps} sweeps: {out}/')
    say(f'open {out / REPORT_FILE} in a browser')
    lines = (out / LOG_FILE).read_text(encoding='utf-8', errors='replace').splitlines()
    dropped = [line for line in lines if 'sweep dropped: ' in line]
    if len(timings) < num_sweeps and dropped:
        say(f'{dropped[-1].partition("]: ")[2]} ({out / LOG_FILE})')
    if warning:
        say(warning)
