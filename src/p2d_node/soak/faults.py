"""The kinds of faults of a soak: what each does, and what diagnostics must say meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
import random
import signal
import subprocess
import threading
import time

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from p2d_node.soak.callers import Callers
from p2d_node.soak.faulty_cameras import Change, FaultyCameras, of_camera, SentFrame, with_stamp
from rcl_interfaces.msg import Parameter, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image

SHORTEST_S, LONGEST_S = 4.5, 7.0
"""A camera counts as silent after 2 s, and diagnostics come once a second."""

PAUSE_S = 3.0
OVERLOAD_HZ = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What faults act on.

    Attributes:
        cameras: The cameras.
        callers: Callers of the node's services.
        process: The drive node.
        node: The node of the soak.
        stranger: A node in another process, as far as DDS knows.
        random: Source of chance.
    """

    cameras: FaultyCameras
    callers: Callers
    process: subprocess.Popen[bytes]
    node: Node
    stranger: Node
    random: random.Random


Apply = Callable[[Stage, str], Iterator[None]]
"""A generator that begins a fault of a camera, yields while it lasts, and ends it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultKind:
    """One kind of fault.

    Attributes:
        name: What happens.
        apply: Does it.
        component: Diagnostic component that must not be OK meanwhile; `{camera}` stands for the
            camera. Empty: no message is expected.
        text: What its message must contain.
    """

    name: str
    apply: Apply
    component: str = ''
    text: str = ''


def _frames(change: Callable[[SentFrame, random.Random], list[SentFrame]]) -> Apply:
    """Return a fault that changes the frames of one camera."""

    def apply(stage: Stage, camera: str) -> Iterator[None]:
        spoil: Change = lambda frame: change(frame, stage.random)  # noqa: E731
        stage.cameras.change = of_camera(camera, spoil)
        yield
        stage.cameras.change = None

    return apply


def _cut(frame: SentFrame, chance: random.Random) -> list[SentFrame]:
    end = chance.randrange(len(frame.data) // 4, len(frame.data) // 2)
    return [replace(frame, data=frame.data[:end] + b'\xff\xd9')]


def _scramble(frame: SentFrame, chance: random.Random) -> list[SentFrame]:
    start = chance.randrange(len(frame.data) // 3, len(frame.data) // 2)
    data = frame.data[:start] + chance.randbytes(600) + frame.data[start + 600 :]
    return [replace(frame, data=data)]


def _claim_size(frame: SentFrame, _chance: random.Random) -> list[SentFrame]:
    at = frame.data.index(b'\xff\xc0') + 5
    data = frame.data[:at] + (32000).to_bytes(2, 'big') * 2 + frame.data[at + 4 :]
    return [replace(frame, data=data)]


def _lose(frame: SentFrame, chance: random.Random) -> list[SentFrame]:
    return [] if chance.random() < 0.5 else [frame]


def _gone(stage: Stage, camera: str) -> Iterator[None]:
    stage.cameras.close(camera)
    yield
    stage.cameras.open(camera)


def _raw(stage: Stage, camera: str) -> Iterator[None]:
    stage.cameras.close(camera)
    publisher = stage.stranger.create_publisher(Image, stage.cameras.topic_of(camera), 10)
    yield
    stage.stranger.destroy_publisher(publisher)
    stage.cameras.open(camera)


def _best_effort(stage: Stage, camera: str) -> Iterator[None]:
    stage.cameras.open(camera, reliable=False)
    yield
    stage.cameras.open(camera)


def _second_publisher(stage: Stage, camera: str) -> Iterator[None]:
    topic = stage.cameras.topic_of(camera)
    publisher = stage.stranger.create_publisher(CompressedImage, topic, 10)
    yield
    stage.stranger.destroy_publisher(publisher)


def _jump_back(stage: Stage, _camera: str) -> Iterator[None]:
    stage.cameras.change = lambda frame: [with_stamp(frame, -30.0)]
    yield
    stage.cameras.change = None


def _overload(stage: Stage, _camera: str) -> Iterator[None]:
    usual_hz, stage.cameras.rate_hz = stage.cameras.rate_hz, OVERLOAD_HZ
    yield
    stage.cameras.rate_hz = usual_hz


def _burst(stage: Stage, _camera: str) -> Iterator[None]:
    for _ in range(40):
        stage.callers.ask('Is there a pedestrian?')
    yield


def _long_questions(stage: Stage, _camera: str) -> Iterator[None]:
    for _ in range(12):
        stage.callers.ask('Is the road clear? ' * 200)
    yield


def _bad_requests(stage: Stage, _camera: str) -> Iterator[None]:
    """Send parameters that are not allowed, one of a type that does not exist."""
    client = stage.node.create_client(SetParameters, '/p2d/set_parameters')
    client.wait_for_service(timeout_sec=2.0)
    for name, kind in (('selector', 4), ('max_new_tokens', 99), ('', 0), ('nonsense', 2)):
        value = ParameterValue(type=kind, string_value='x' * 10_000, integer_value=-1)
        client.call_async(SetParameters.Request(parameters=[Parameter(name=name, value=value)]))
    yield
    stage.node.destroy_client(client)


def _pause(stage: Stage, _camera: str) -> Iterator[None]:
    """Stop the process; a timer lets it go on even if the soak ends meanwhile."""
    stage.process.send_signal(signal.SIGSTOP)
    threading.Timer(PAUSE_S, stage.process.send_signal, (signal.SIGCONT,)).start()
    yield
    stage.process.send_signal(signal.SIGCONT)


def _restart(stage: Stage, _camera: str) -> Iterator[None]:
    """Deactivate the node and activate it again."""
    client = stage.node.create_client(ChangeState, '/p2d/change_state')
    client.wait_for_service(timeout_sec=2.0)
    for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE):
        done = client.call_async(ChangeState.Request(transition=Transition(id=transition)))
        end_s = time.monotonic() + 5.0
        while not done.done() and time.monotonic() < end_s:
            time.sleep(0.02)
    yield
    stage.node.destroy_client(client)


CAMERA = '{camera}'

KINDS = (
    FaultKind(
        name='camera silent',
        apply=_frames(lambda _frame, _chance: []),
        component=CAMERA,
        text='no frame for',
    ),
    FaultKind(name='camera gone', apply=_gone, component=CAMERA, text='nobody publishes'),
    FaultKind(
        name='camera sends another type', apply=_raw, component=CAMERA, text='is published as'
    ),
    FaultKind(
        name='camera loses half of its frames',
        apply=_frames(_lose),
        component='synchroniser|{camera}',
        text='{camera}|below its rate',
    ),
    FaultKind(
        name='second publisher', apply=_second_publisher, component=CAMERA, text='2 publishers'
    ),
    FaultKind(name='camera becomes best-effort', apply=_best_effort),
    FaultKind(name='JPEG cut', apply=_frames(_cut), component=CAMERA, text='damaged or truncated'),
    FaultKind(
        name='JPEG scrambled',
        apply=_frames(_scramble),
        component=CAMERA,
        text='damaged or truncated',
    ),
    FaultKind(
        name='JPEG claims 32000x32000',
        apply=_frames(_claim_size),
        component=CAMERA,
        text='got 32000x32000 px',
    ),
    FaultKind(
        name='frame empty',
        apply=_frames(lambda frame, _chance: [replace(frame, data=b'')]),
        component=CAMERA,
        text='got 0 bytes',
    ),
    FaultKind(
        name='stamps 0',
        apply=_frames(lambda frame, _chance: [replace(frame, stamp_ns=0)]),
        component='synchroniser',
        text='stamps are 0.*{camera}',
    ),
    FaultKind(
        name='stamps 14 ms off',
        apply=_frames(lambda frame, _chance: [with_stamp(frame, 0.014)]),
        component='synchroniser',
        text='{camera}: its stamps are',
    ),
    FaultKind(
        name='stamps 50 s ahead',
        apply=_frames(lambda frame, _chance: [with_stamp(frame, 50.0)]),
        component='synchroniser',
        text='{camera}|different clocks',
    ),
    FaultKind(
        name='frames 0.4 s late',
        apply=_frames(lambda frame, _chance: [replace(frame, delay_s=0.4)]),
        component='synchroniser',
        text='{camera}',
    ),
    FaultKind(
        name='frames twice',
        apply=_frames(lambda frame, _chance: [frame, replace(frame, delay_s=0.01)]),
    ),
    FaultKind(
        name='frames up to 30 ms late',
        apply=_frames(lambda frame, chance: [replace(frame, delay_s=0.03 * chance.random())]),
    ),
    FaultKind(name='time jumps back', apply=_jump_back),
    FaultKind(name='cameras at 30 Hz', apply=_overload),
    FaultKind(name='40 callers at once', apply=_burst),
    FaultKind(name='12 long questions', apply=_long_questions),
    FaultKind(name='malformed requests', apply=_bad_requests),
    FaultKind(name='process stopped for 3 s', apply=_pause),
    FaultKind(name='deactivated and activated', apply=_restart),
)


@contextmanager
def fault(kind: FaultKind, stage: Stage, camera: str) -> Iterator[None]:
    """Let a fault last for the block."""
    applied = kind.apply(stage, camera)
    next(applied)
    try:
        yield
    finally:
        next(applied, None)
