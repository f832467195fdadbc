"""What exists while the node is active: frames come in, sweeps go to the worker."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import ExitStack
import time
from typing import Any

from p2d_node.camera_sync import SweepSynchronizer
from p2d_node.clips import ClipAssembler
from p2d_node.config import DriveConfig
from p2d_node.errors import P2dError
from p2d_node.pipeline import DrivingPipeline
from p2d_node.records import FrameSet
from p2d_node.ros.camera_subscription import CameraSubscription
from p2d_node.ros.clock_rate import ClockRate
from p2d_node.ros.live_context import LiveContext
from p2d_node.ros.outputs import Outputs
from p2d_node.ros.refusals import Refusals
from p2d_node.ros.sweep_age import SweepAge
from p2d_node.ros.sweep_worker import SweepWorker
from p2d_node.ros.throttled_log import ThrottledLog
from p2d_node.ros.unexpected_error import UnexpectedError
from p2d_node.units import NS_PER_MS, NS_PER_S
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

POLL_PERIOD_S = 0.02
"""Period at which the deadlines of sweeps and pending questions are checked."""

MAX_POLL_GAP_NS = 100 * NS_PER_MS
"""A longer gap between two polls means that this process did not run for a while."""

PAUSE_NS = NS_PER_S
"""After a gap of this length the watchdog counts anew: the worker did not run either."""

WORKER_STOP_TIMEOUT_S = 1.0


class ActiveSession:
    """Cameras, synchroniser and worker from activation to deactivation.

    Frames and the poll timer run on the thread that spins the node. They never block it.
    """

    def __init__(
        self,
        node: Node,
        config: DriveConfig,
        pipeline: DrivingPipeline,
        outputs: Outputs,
        *,
        refusals: Refusals,
        thread: Executor,
        look_ahead_thread: Executor,
        on_fault: Callable[[str], None],
    ) -> None:
        """Subscribe to the cameras and start the worker.

        Args:
            node: The node that subscribes.
            config: The configuration at activation.
            pipeline: Answers questions about sweeps.
            outputs: Publishes the answers.
            refusals: Gets the texts of ~/context that are refused.
            thread: Runs the worker.
            look_ahead_thread: Prepares the next sweep meanwhile.
            on_fault: Called with the reason, on the thread that spins the node, when the worker
                hangs or cannot go on.

        Raises:
            ConfigError: A camera topic is not a valid ROS name.
        """
        self.pipeline = pipeline

        def now_ns() -> int:
            return int(node.get_clock().now().nanoseconds)

        self.synchronizer = SweepSynchronizer(
            {name: camera.exposure_offset_ms for name, camera in config.cameras.items()},
            config.sync,
            missing_camera_policy=config.missing_camera_policy,
            stamp_clock_ns=now_ns,
        )
        self._clips = ClipAssembler(pipeline.clip)
        self.reference_camera = self.synchronizer.reference_camera
        self.clock_rate = ClockRate(now_ns, is_simulated=lambda: _uses_sim_time(node))
        self._context = LiveContext(node, pipeline, refusals)
        self.worker = SweepWorker(
            pipeline,
            thread=thread,
            look_ahead_thread=look_ahead_thread,
            age=SweepAge(now_ns, lambda: self.clock_rate.rate),
            context=lambda: self._context.text,
            on_answers=outputs.publish_answers,
            on_sweep=outputs.publish_sweep,
            on_failure=self._log_failure,
            on_broken=lambda err: self.log.warn(f'views left out: {err}'),
            on_partial=outputs.publish_partial,
            on_outdated=lambda: self.log.warn(
                'a parameter changed, so the sweep in work was dropped; the next one uses it'
            ),
        )
        self.cameras: tuple[CameraSubscription, ...] = ()
        self.log = ThrottledLog(node.get_logger())
        self._logger: Any = node.get_logger()
        self._on_fault = on_fault
        self._lag_ns = 0
        self._polled_ns = 0
        self._watched_since_ns = 0
        self._relearned = dict(self.synchronizer.counters.relearned)
        with ExitStack() as resources:
            self._start(node, config, resources)
            # Nothing failed: `stop` releases the resources, not the end of this block.
            self._resources = resources.pop_all()

    def _start(self, node: Node, config: DriveConfig, resources: ExitStack) -> None:
        resources.callback(self._context.destroy)
        for name in config.cameras:
            camera = CameraSubscription(node, name, config, self._on_frame)
            resources.callback(camera.destroy)
            self.cameras = (*self.cameras, camera)
        # The steady clock: a paused or jumping simulated clock must not stop deadlines.
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        timer = node.create_timer(POLL_PERIOD_S, self._poll, clock=clock)
        resources.callback(node.destroy_timer, timer)
        self.worker.start()

    def stop(self, timeout_s: float = WORKER_STOP_TIMEOUT_S, longest_s: float = 0.0) -> bool:
        """Unsubscribe and stop the worker.

        Args:
            timeout_s: Longest wait without progress for the end of the worker's work.
            longest_s: Longest wait in all; less than `timeout_s`: that.

        Returns:
            True if it ended in time.
        """
        try:
            self._resources.close()
        finally:
            has_ended = self.worker.stop(timeout_s, longest_s)
        return has_ended

    def _on_frame(self, camera: str, stamp_ns: int, arrival_ns: int, message: Any) -> None:
        counters = self.synchronizer.counters
        resets, unstamped = counters.reset, counters.unstamped[camera]
        self._lag_ns = time.monotonic_ns() - arrival_ns
        frame_set = self.synchronizer.push(camera, stamp_ns, message, arrival_ns=arrival_ns)
        if frame_set is not None:
            self._submit(frame_set)
        if counters.reset > resets:
            self.log.warn(f'time jumped back at a frame of {camera}; new sweeps start from it')
        if counters.unstamped[camera] > unstamped == 0:
            self._logger.warning(
                f'{camera}: stamps are 0, so arrival times are used; they separate sweeps less '
                'reliably; stamp the images at capture'
            )

    def _poll(self) -> None:
        self.worker.questions.expire()
        self._log_relearned()
        any(camera.renew() for camera in self.cameras)  # one at a time: others may have frames
        self.clock_rate.update()
        self.synchronizer.set_clock_rate(self.clock_rate.rate)
        previous_ns, self._polled_ns = self._polled_ns, time.monotonic_ns()
        gap_ns = self._polled_ns - previous_ns
        if gap_ns > PAUSE_NS:
            self._watched_since_ns = self._polled_ns
        if fault := self.worker.fault(self._watched_since_ns):
            self._on_fault(fault)
            return
        if gap_ns > MAX_POLL_GAP_NS:
            # Frames may still wait in DDS: receive them before their sweeps are closed.
            return
        for frame_set in self.synchronizer.poll(delay_ns=self._lag_ns):
            self._submit(frame_set)

    def _submit(self, frame_set: FrameSet) -> None:
        self.worker.submit(self._clips.add(frame_set))

    def _log_relearned(self) -> None:
        counts = self.synchronizer.counters.relearned
        if counts == self._relearned:
            return
        for name, count in counts.items():
            if count > self._relearned[name]:
                offset_ms = self.synchronizer.offsets_ns[name] / NS_PER_MS
                self.log.warn(f'{name}: its exposure offset is now {offset_ms:.1f} ms')
        self._relearned = dict(counts)

    def _log_failure(self, err: P2dError) -> None:
        self.log.warn(f'sweep dropped: {err}')
        if isinstance(err, UnexpectedError):
            self._logger.debug(err.trace)


def _uses_sim_time(node: Node) -> bool:
    return bool(node.get_parameter('use_sim_time').value)
