"""What exists while the node is active: frames come in, sweeps go to the worker."""

from __future__ import annotations

from contextlib import ExitStack
import time
from typing import Any

from p2d_node.camera_sync import SweepSynchronizer
from p2d_node.config import DriveConfig
from p2d_node.errors import P2dError
from p2d_node.pipeline import DrivingPipeline
from p2d_node.ros.camera_subscription import CameraSubscription
from p2d_node.ros.outputs import Outputs
from p2d_node.ros.sweep_worker import SweepWorker
from p2d_node.ros.unexpected_error import UnexpectedError
from p2d_node.units import NS_PER_MS
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

POLL_PERIOD_S = 0.02
"""Period at which the deadlines of sweeps and pending questions are checked."""

MAX_POLL_GAP_NS = 100 * NS_PER_MS
"""A longer gap between two polls means that this process did not run for a while."""

WARN_EVERY_S = 5.0
WORKER_STOP_TIMEOUT_S = 1.0


class ActiveSession:
    """Cameras, synchroniser and worker from activation to deactivation.

    Frames and the poll timer run on the thread that spins the node. They never block it.
    """

    def __init__(
        self, node: Node, config: DriveConfig, pipeline: DrivingPipeline, outputs: Outputs
    ) -> None:
        """Subscribe to the cameras and start the worker.

        Args:
            node: The node that subscribes.
            config: The configuration at activation.
            pipeline: Answers questions about sweeps.
            outputs: Publishes the answers.

        Raises:
            ConfigError: A camera topic is not a valid ROS name.
        """
        self.pipeline = pipeline
        self.synchronizer = SweepSynchronizer(
            {name: camera.exposure_offset_ms for name, camera in config.cameras.items()},
            config.sync,
            missing_camera_policy=config.missing_camera_policy,
            stamp_clock_ns=lambda: int(node.get_clock().now().nanoseconds),
        )
        self.reference_camera = self.synchronizer.reference_camera
        self.worker = SweepWorker(
            pipeline,
            on_answers=outputs.publish_answers,
            on_failure=self._log_failure,
            on_partial=outputs.publish_partial,
        )
        self.cameras: tuple[CameraSubscription, ...] = ()
        self._logger: Any = node.get_logger()
        self._lag_ns = 0
        self._polled_ns = 0
        with ExitStack() as resources:
            self._start(node, config, resources)
            # Nothing failed: `stop` releases the resources, not the end of this block.
            self._resources = resources.pop_all()

    def _start(self, node: Node, config: DriveConfig, resources: ExitStack) -> None:
        for name, camera_config in config.cameras.items():
            camera = CameraSubscription(node, name, camera_config, self._on_frame)
            resources.callback(camera.destroy)
            self.cameras = (*self.cameras, camera)
        # The steady clock: a paused or jumping simulated clock must not stop deadlines.
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        timer = node.create_timer(POLL_PERIOD_S, self._poll, clock=clock)
        resources.callback(node.destroy_timer, timer)
        self.worker.start()

    def stop(self) -> bool:
        """Unsubscribe and stop the worker.

        Returns:
            True if the worker's thread ended in time.
        """
        try:
            self._resources.close()
        finally:
            has_ended = self.worker.stop(WORKER_STOP_TIMEOUT_S)
        return has_ended

    def _on_frame(self, camera: str, stamp_ns: int, arrival_ns: int, message: Any) -> None:
        counters = self.synchronizer.counters
        resets, unstamped = counters.reset, counters.unstamped[camera]
        self._lag_ns = time.monotonic_ns() - arrival_ns
        frame_set = self.synchronizer.push(camera, stamp_ns, message, arrival_ns=arrival_ns)
        if frame_set is not None:
            self.worker.submit(frame_set)
        if counters.reset > resets:
            self._logger.warning(
                f'{camera}: time jumped back; new sweeps start from this frame',
                throttle_duration_sec=WARN_EVERY_S,
                skip_first=False,
            )
        if counters.unstamped[camera] > unstamped == 0:
            self._logger.warning(
                f'{camera}: stamps are 0, so arrival times are used; they separate sweeps less '
                'reliably; stamp the images at capture'
            )

    def _poll(self) -> None:
        self.worker.expire_questions()
        previous_ns, self._polled_ns = self._polled_ns, time.monotonic_ns()
        if self._polled_ns - previous_ns > MAX_POLL_GAP_NS:
            # Frames may still wait in DDS: receive them before their sweeps are closed.
            return
        for frame_set in self.synchronizer.poll(delay_ns=self._lag_ns):
            self.worker.submit(frame_set)

    def _log_failure(self, err: P2dError) -> None:
        self._logger.warning(
            f'sweep dropped: {err}', throttle_duration_sec=WARN_EVERY_S, skip_first=False
        )
        if isinstance(err, UnexpectedError):
            self._logger.debug(err.trace)
