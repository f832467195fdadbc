"""The ROS 2 node `drive`: six camera topics in, driving answers, timings and diagnostics out.

Threads: the executor's thread receives frames, and nothing in it blocks while the node is active;
one `SweepWorker` runs the pipeline; `~/ask`, whose callers wait, has a helper node and executor of
its own; one thread reports health on the steady clock, whatever the others and the simulated time
do. The frames' executor is single-threaded on purpose: rclpy's multi-threaded one keeps a core
busy while frames wait for their callback group, and sweeps get lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
import gc
import os
import signal
import sys
import threading
import time
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from p2d_msgs.msg import DrivingAnswer as DrivingAnswerMsg
from p2d_msgs.msg import StageTiming
from p2d_msgs.srv import Ask
from p2d_node.camera_sync import SweepSynchronizer, SyncCounters
from p2d_node.config import list_parameters
from p2d_node.errors import ConfigError, P2dError
from p2d_node.pipeline import DrivingPipeline
from p2d_node.records import DrivingAnswer, FrameSet
from p2d_node.ros import diagnostics
from p2d_node.ros.camera_subscription import CameraSubscription
from p2d_node.ros.conversions import to_answer, to_image, to_time, to_timing
from p2d_node.ros.overlay import draw_kept_tokens
from p2d_node.ros.parameters import declare_parameters, updated_config
from p2d_node.ros.spinning import ended_by_shutdown, spin_until_shutdown
from p2d_node.ros.sweep_worker import MAX_PENDING_QUESTIONS, Outcome, Settle, SweepWorker
from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
import rclpy
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.executors import MultiThreadedExecutor, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from std_msgs.msg import Header, String

POLL_PERIOD_S = 0.02
"""How often sweeps and waiting questions are checked against their deadlines."""

NUM_REQUEST_THREADS = MAX_PENDING_QUESTIONS + 1
"""Each caller of ~/ask that waits holds one; the last is left to tell others that too many do."""

MAX_POLL_GAP_NS = 100_000_000
"""A longer gap between two polls means that this process was held up."""

DIAGNOSTICS_PERIOD_S = 1.0
DEFAULT_ASK_TIMEOUT_S = 10.0
MAX_ASK_TIMEOUT_S = 120.0
WARN_EVERY_S = 5.0
WORKER_STOP_TIMEOUT_S = 1.0

EXIT_BAD_INPUT = 2
EXIT_OK = 0


@dataclass(frozen=True, slots=True)
class _Active:
    """What exists only while the node is active."""

    worker: SweepWorker
    cameras: tuple[CameraSubscription, ...]
    timers: tuple[Any, ...]


class _RequestNode:
    """A helper node whose service callbacks may block, with threads of its own."""

    def __init__(self, owner: LifecycleNode) -> None:
        self.node = rclpy.create_node(
            f'{owner.get_name()}_requests',
            context=owner.context,
            namespace=owner.get_namespace(),
            # Names are resolved by the owner: a renaming of the process would give both one name.
            use_global_arguments=False,
            start_parameter_services=False,
        )
        self._executor = MultiThreadedExecutor(NUM_REQUEST_THREADS, context=owner.context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(
            target=spin_until_shutdown,
            args=(self._executor, owner.context),
            name='requests',
            daemon=True,
        )
        self._thread.start()

    def destroy(self) -> None:
        """End the threads and destroy the node."""
        self._executor.shutdown(timeout_sec=1.0)
        self._thread.join(timeout=1.0)
        self.node.destroy_node()


class DriveNode(LifecycleNode):
    """Lifecycle node that answers driving questions about synchronised camera sweeps.

    `configure` loads the model and refuses what is wrong; `activate` subscribes to the cameras.
    """

    def __init__(self, **options: Any) -> None:
        """Declare the parameters; `options` go to rclpy's Node.

        Raises:
            ConfigError: A parameter with a value that is not allowed.
        """
        super().__init__('p2d', automatically_declare_parameters_from_overrides=True, **options)
        # What `destroy_node` ends, also where this constructor does not come to its own end.
        self._ending = threading.Event()
        self._health_thread: threading.Thread | None = None
        self._requests: _RequestNode | None = None
        self._active: _Active | None = None
        if not self.has_parameter('autostart'):
            self.declare_parameter(
                'autostart',
                True,
                ParameterDescriptor(description='Configure and activate at start.'),
            )
        self._config = declare_parameters(self)
        self._pipeline: DrivingPipeline | None = None
        self._sync: SweepSynchronizer | None = None
        self._reported = SyncCounters()
        self._lag_ns = 0
        self._polled_ns = 0
        self._interfaces: list[Any] = []
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._requests = _RequestNode(self)
        self._health_thread = threading.Thread(target=self._report, name='health', daemon=True)
        self._health_thread.start()

    def start(self) -> None:
        """Configure and activate.

        Raises:
            P2dError: What keeps the node from starting.
        """
        self._load()
        self.trigger_configure()
        self.trigger_activate()

    # Lifecycle transitions

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model and create the outputs."""
        try:
            self._load()
        except P2dError as err:
            self.get_logger().error(str(err))
            return TransitionCallbackReturn.FAILURE
        self._create_interfaces()
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the cameras and start to answer."""
        pipeline = self._pipeline
        if pipeline is None:
            return TransitionCallbackReturn.FAILURE
        self._sync, self._reported = self._make_synchronizer(), SyncCounters()
        worker = SweepWorker(pipeline, self._deliver, self._report_failure, self._publish_partial)
        worker.start()
        cameras = tuple(
            CameraSubscription(self, name, camera, self._on_frame)
            for name, camera in self._config.cameras.items()
        )
        # The steady clock: a paused or jumping simulated clock must not stop deadlines.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        poll = self.create_timer(POLL_PERIOD_S, self._check_deadlines, clock=steady)
        self._active = _Active(worker, cameras, (poll,))
        self.get_logger().info(
            f'answering {len(self._config.questions)} questions per sweep of {len(cameras)} '
            f'cameras with {pipeline.model_name} on {pipeline.encoder_identity}'
        )
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe and stop answering."""
        self.stop_working()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model and the outputs."""
        self._unload()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and free everything."""
        self.stop_working()
        self._unload()
        return super().on_shutdown(state)

    def stop_working(self) -> bool:
        """Stop worker and cameras; True if the worker's thread ended in time."""
        active, self._active = self._active, None
        if active is None:
            return True
        for timer in active.timers:
            self.destroy_timer(timer)
        for camera in active.cameras:
            camera.destroy()
        return active.worker.stop(WORKER_STOP_TIMEOUT_S)

    # Set-up

    def _load(self) -> None:
        if self._pipeline is not None:
            return
        self._pipeline = DrivingPipeline.from_config(self._config)
        for reason in self._pipeline.encoders_refused.values():
            self.get_logger().info(f'encoder not used: {reason}')
        if self._pipeline.untrained:
            self.get_logger().warning(
                f'{self._pipeline.model_name}: the weights are random, so the answers are random '
                'words; set model to a checkpoint folder'
            )

    def _unload(self) -> None:
        for interface in self._interfaces:
            self.destroy_publisher(interface)
        self._interfaces.clear()
        if self._pipeline is not None:
            self._pipeline.close()
            self._pipeline = None

    def _create_interfaces(self) -> None:
        self._answer = self.create_publisher(DrivingAnswerMsg, '~/answer', 10)
        self._answer_text = self.create_publisher(String, '~/answer_text', 10)
        self._timing = self.create_publisher(StageTiming, '~/timing', 10)
        self._kept_tokens = self.create_publisher(Image, '~/kept_tokens', 1)
        self._partial = self.create_publisher(String, '~/answer_partial', 10)
        self._interfaces = [
            self._answer,
            self._answer_text,
            self._partial,
            self._timing,
            self._kept_tokens,
        ]
        if self._requests is not None and not hasattr(self, '_ask'):
            name = self.resolve_service_name('~/ask')
            self._ask = self._requests.node.create_service(
                Ask, name, self._on_ask, callback_group=ReentrantCallbackGroup()
            )
            self._question = self.create_subscription(String, '~/question', self._on_question, 10)

    def _make_synchronizer(self) -> SweepSynchronizer:
        return SweepSynchronizer(
            {name: camera.exposure_offset_ms for name, camera in self._config.cameras.items()},
            self._config.sync,
            missing_camera_policy=self._config.missing_camera_policy,
            stamp_clock_ns=self._now_ns,
        )

    def _now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    # Frames in

    def _on_frame(self, camera: str, stamp_ns: int, arrival_ns: int, message: Any) -> None:
        active, sync = self._active, self._sync
        if active is None or sync is None:
            return
        resets, unstamped = sync.counters.reset, sync.counters.unstamped
        self._lag_ns = time.monotonic_ns() - arrival_ns
        frame_set = sync.push(camera, stamp_ns, message, arrival_ns=arrival_ns)
        if frame_set is not None:
            active.worker.submit(frame_set)
        if sync.counters.reset > resets:
            self.get_logger().warning(f'{camera}: time jumped back; a new run of sweeps begins')
        if sync.counters.unstamped > unstamped == 0:
            self.get_logger().warning(
                f'{camera}: stamps are 0; arrival times take their place, which cannot tell '
                'sweeps apart as surely; stamp the images at capture'
            )

    def _check_deadlines(self) -> None:
        active, sync = self._active, self._sync
        if active is None or sync is None:
            return
        active.worker.expire_questions()
        previous_ns, self._polled_ns = self._polled_ns, time.monotonic_ns()
        if self._polled_ns - previous_ns > MAX_POLL_GAP_NS:
            # After a hold-up frames may still lie in DDS: take them first.
            return
        for frame_set in sync.poll(delay_ns=self._lag_ns):
            active.worker.submit(frame_set)

    # Answers out

    def _deliver(self, frame_set: FrameSet, answers: Sequence[DrivingAnswer]) -> None:
        frame_id = self._frame_id_of(frame_set)
        for answer in answers:
            self._answer.publish(to_answer(answer, frame_id=frame_id, now_ns=self._now_ns()))
            line = _as_line(answer.model, answer.question, answer.answer)
            self._answer_text.publish(String(data=line))
        header = Header(stamp=to_time(frame_set.stamp_ns), frame_id=frame_id)
        self._timing.publish(to_timing(header, answers[0].times, now_ns=self._now_ns()))
        if self._kept_tokens.get_subscription_count() and self._pipeline is not None:
            picture = draw_kept_tokens(frame_set, answers[0], self._pipeline.views)
            self._kept_tokens.publish(to_image(picture, header))

    def _publish_partial(self, question: str, answer: str) -> None:
        model = self._pipeline.model_name if self._pipeline is not None else ''
        self._partial.publish(String(data=_as_line(model, question, answer)))

    def _frame_id_of(self, frame_set: FrameSet) -> str:
        frame = frame_set.frames.get(self._config.sync.reference_camera)
        return str(frame.payload.header.frame_id) if frame else ''

    def _report_failure(self, err: P2dError) -> None:
        self.get_logger().warning(
            f'sweep dropped: {err}', throttle_duration_sec=WARN_EVERY_S, skip_first=False
        )

    # Requests

    def _pass_on(self, question: str, timeout_s: float, settle: Settle) -> str:
        """Give a question to the worker; returns why it cannot be asked, empty where it can."""
        active, pipeline = self._active, self._pipeline
        if not question.strip():
            return 'question: got an empty text, allowed: a question'
        if active is None or pipeline is None:
            return 'the node is not active; activate it, then ask again'
        try:
            pipeline.check_questions([question])
        except ConfigError as err:
            return str(err)
        if not active.worker.ask(question, timeout_s, settle):
            return 'too many questions wait for a sweep; ask again later'
        return ''

    def _on_question(self, message: String) -> None:
        reason = self._pass_on(message.data, DEFAULT_ASK_TIMEOUT_S, lambda _outcome: None)
        if reason:
            self.get_logger().warning(f'~/question: {reason}')

    def _on_ask(self, request: Ask.Request, response: Ask.Response) -> Ask.Response:
        response.success = False
        timeout_s = request.timeout_s or DEFAULT_ASK_TIMEOUT_S
        if 0.0 < timeout_s <= MAX_ASK_TIMEOUT_S:
            self._wait_for_answer(request.question, timeout_s, response)
        else:
            response.message = (
                f'timeout_s: got {request.timeout_s:g}, allowed: 0 (the default, '
                f'{DEFAULT_ASK_TIMEOUT_S:g}) to {MAX_ASK_TIMEOUT_S:g}'
            )
        return response

    def _wait_for_answer(self, question: str, timeout_s: float, response: Ask.Response) -> None:
        active = self._active
        outcome: Future[Outcome] = Future()
        response.message = self._pass_on(question, timeout_s, outcome.set_result)
        if response.message:
            return
        answered = outcome.result()
        if isinstance(answered, P2dError):
            response.message = str(answered)
        elif answered is not None:
            frame_set, answer = answered
            frame_id = self._frame_id_of(frame_set)
            response.success = True
            response.answer = to_answer(answer, frame_id=frame_id, now_ns=self._now_ns())
        elif active is None or self._active is not active:
            response.message = 'the node was stopped; activate it, then ask again'
        else:
            silent = [c.name for c in active.cameras if c.rate_hz() == 0.0]
            reason = f'no frames from {", ".join(silent)}' if silent else 'see /diagnostics'
            response.message = f'no answer within {timeout_s:g} s: {reason}'

    # Parameters and health

    def _on_set_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        names = self._config_names()
        changes = {p.name: p.value for p in parameters if p.name in names}
        if not changes:
            return SetParametersResult(successful=True)
        try:
            config = updated_config(self._config, changes)
            if self._pipeline is not None and 'questions' in changes:
                self._pipeline.check_questions(config.questions)
        except ConfigError as err:
            return SetParametersResult(successful=False, reason=str(err))
        self._config = config
        if self._pipeline is not None:
            self._pipeline.reconfigure(config)
        if self._sync is not None:
            self._sync.missing_camera_policy = config.missing_camera_policy
        return SetParametersResult(successful=True)

    def _config_names(self) -> set[str]:
        return {parameter.name for parameter in list_parameters(tuple(self._config.cameras))}

    def _report(self) -> None:
        while not self._ending.wait(DIAGNOSTICS_PERIOD_S):
            # A signal ends the context before the node.
            with ended_by_shutdown(self.context):
                self._publish_diagnostics()

    def destroy_node(self) -> None:
        """Stop everything and destroy the node."""
        self._ending.set()
        if self._health_thread is not None:
            self._health_thread.join()
        self.stop_working()
        if self._requests is not None:
            self._requests.destroy()
        super().destroy_node()

    def _publish_diagnostics(self) -> None:
        hardware_id = str(self._config.device)
        statuses: list[DiagnosticStatus] = []
        active, sync, pipeline = self._active, self._sync, self._pipeline
        if active is None or sync is None or pipeline is None:
            statuses.append(
                diagnostics.make_status(
                    'p2d: pipeline', DiagnosticStatus.STALE, 'not active', {}, hardware_id
                )
            )
        else:
            for camera in active.cameras:
                camera.follow_publishers()
            expected = diagnostics.expected_rates(active.cameras)
            parts = {
                'p2d: pipeline': diagnostics.pipeline_status(active.worker, pipeline),
                'p2d: synchroniser': diagnostics.sync_status(sync, self._reported),
            }
            for camera in active.cameras:
                status = diagnostics.camera_status(camera, expected[camera.name])
                parts[f'p2d: {camera.name}'] = status
            self._reported = replace(sync.counters)
            statuses += [
                diagnostics.make_status(name, *part, hardware_id) for name, part in parts.items()
            ]
        stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(DiagnosticArray(header=Header(stamp=stamp), status=statuses))


def _as_line(model: str, question: str, answer: str) -> str:
    flag = '[untrained model, random words] ' if 'untrained' in model else ''
    return f'{flag}{question} {answer}'


def main(args: Sequence[str] | None = None) -> int:
    """Run the node until it is told to stop; returns the exit status."""
    rclpy.init(args=args)
    node: DriveNode | None = None
    executor = SingleThreadedExecutor()
    try:
        node = DriveNode()
        executor.add_node(node)
        if node.get_parameter('autostart').value:
            node.start()
        spin_until_shutdown(executor, node.context)
    except P2dError as err:
        rclpy.logging.get_logger('p2d').fatal(str(err))
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        pass
    finally:
        # The second Ctrl-C of an impatient user must not break off the orderly end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        ended = node.stop_working() if node is not None else True
        executor.shutdown(timeout_sec=0.2)
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
        # Else the interpreter's end would spend a second in looking for garbage among all objects.
        gc.freeze()
    if not ended:
        # A kernel that runs for seconds cannot be interrupted; the process must still end now.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_OK)
    return EXIT_OK


if __name__ == '__main__':
    sys.exit(main())
