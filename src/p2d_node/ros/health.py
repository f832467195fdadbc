"""Publishes the health of the node on `/diagnostics` once a second, and tells systemd of it."""

from __future__ import annotations

from collections import Counter
import itertools
import threading

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from p2d_node.camera_sync import SyncCounters
from p2d_node.ros import diagnostics
from p2d_node.ros.active_session import ActiveSession
from p2d_node.ros.answer_watcher import NOT_ACTIVE
from p2d_node.ros.camera_subscription import CameraSubscription
from p2d_node.ros.malloc_settings import return_freed_memory
from p2d_node.ros.memory_growth import GROWTH
from p2d_node.ros.refusals import Refusals
from p2d_node.ros.spinning import ended_by_shutdown
from p2d_node.ros.systemd import LIVES, notify_systemd
from p2d_node.ros.unexpected_error import unexpected_error
from p2d_node.ros.worker_state import WorkerState
from rclpy.node import Node

PERIOD_S = 1.0
WARN_EVERY_S = 5.0
TRIM_EVERY = 10
"""Reports from one return of freed memory to the next."""


class HealthReporter:
    """Reports from a thread of its own.

    The thread uses the steady clock, so it reports also while the executor is busy or the
    simulated time is paused.

    Attributes:
        hardware_id: Name of the computer, in every status; may be set at any time.
    """

    def __init__(self, node: Node, hardware_id: str, refusals: Refusals) -> None:
        """Start to report.

        Args:
            node: The node that publishes; the names of the statuses begin with its full name.
            hardware_id: Name of the computer.
            refusals: Their number is reported.
        """
        self.hardware_id = hardware_id
        self._node = node
        self._refusals = refusals
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._session: ActiveSession | None = None
        self._fault = ''
        self._reported = SyncCounters()
        self._reported_broken: Counter[str] = Counter()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name='health', daemon=True)
        self._thread.start()

    def use_session(self, session: ActiveSession | None) -> None:
        """Report about `session`; None: the node is not active."""
        GROWTH.begin()
        self._session, self._reported = session, SyncCounters()
        self._reported_broken = Counter()
        if session is not None:
            self._fault = ''

    def report_fault(self, reason: str) -> None:
        """Report an error until the next activation."""
        self._fault = reason

    def stop(self) -> None:
        """End the thread."""
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        for count in itertools.count():
            if self._ending.wait(PERIOD_S):
                return
            if count % TRIM_EVERY == 0:
                return_freed_memory()
                GROWTH.check()
            # A signal shuts the context down before the node is destroyed.
            with ended_by_shutdown(self._node.context):
                self._report()
            notify_systemd(LIVES)

    def _report(self) -> None:
        session = self._session
        try:
            if session is None or self._fault:
                statuses = [self._inactive_status()]
            else:
                statuses = self._statuses(session)
        except Exception as err:  # the thread must go on
            if not self._node.context.ok():
                return
            self._node.get_logger().error(
                f'diagnostics: {unexpected_error(err)}', throttle_duration_sec=WARN_EVERY_S
            )
            return
        stamp = self._node.get_clock().now().to_msg()
        message = DiagnosticArray(status=statuses)
        message.header.stamp = stamp
        self._publisher.publish(message)

    def _inactive_status(self) -> DiagnosticStatus:
        level, message = DiagnosticStatus.OK, NOT_ACTIVE
        if self._fault:
            level, message = DiagnosticStatus.ERROR, self._fault
        return self._status('pipeline', level, message, self._refused())

    def _status(
        self, component: str, level: bytes, message: str, values: dict[str, object]
    ) -> DiagnosticStatus:
        name = f'{self._node.get_fully_qualified_name()}: {component}'
        return diagnostics.make_status(name, level, message, values, self.hardware_id)

    def _refused(self) -> dict[str, object]:
        return {'requests refused': self._refusals.num}

    def _statuses(self, session: ActiveSession) -> list[DiagnosticStatus]:
        """Return the status of the pipeline, the synchroniser and each camera."""
        expected_hz = diagnostics.expected_rates(session.cameras)
        clock_rate = session.clock_rate.rate
        silence = diagnostics.common_silence(session.cameras, clock_rate)
        synchronizer, state = session.synchronizer, session.worker.state
        level, message, values = diagnostics.pipeline_status(
            session.worker, session.pipeline, silence
        )
        clock_problem = diagnostics.clock_problem(self._node)
        if clock_problem and level != DiagnosticStatus.ERROR:
            level, message = DiagnosticStatus.WARN, clock_problem
        parts = {
            'pipeline': (level, message, values | self._refused()),
            'synchroniser': diagnostics.sync_status(
                synchronizer, self._reported, silence, diagnostics.odd_clocks(session.cameras)
            ),
        }
        for camera in session.cameras:
            parts[camera.name] = self._camera_part(
                camera, state, expected_hz[camera.name], clock_rate
            )
        self._reported = synchronizer.counters.copy()
        return [self._status(component, *part) for component, part in parts.items()]

    def _camera_part(
        self, camera: CameraSubscription, state: WorkerState, expected_hz: float, clock_rate: float
    ) -> diagnostics.Status:
        """Return the status of a camera; what goes wrong here costs no other status."""
        try:
            camera.follow_publishers()
            num_broken = state.broken_frames[camera.name] + camera.num_refused
            is_broken = num_broken > self._reported_broken[camera.name]
            self._reported_broken[camera.name] = num_broken
            refusal, camera.refusal = camera.refusal, ''
            reason = refusal or state.broken_reasons.get(camera.name, '')
            return diagnostics.camera_status(
                camera,
                expected_hz,
                clock_rate,
                num_broken=num_broken,
                damage=reason if is_broken else '',
            )
        except Exception as err:
            return DiagnosticStatus.ERROR, str(unexpected_error(err)), {}
