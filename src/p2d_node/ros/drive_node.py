"""The ROS 2 node `drive`: six camera topics in; driving answers, times and diagnostics out.

Threads: the executor's thread receives frames and never blocks while the node is active
(`ActiveSession`). `SweepWorker` runs the pipeline. `Requests` has threads for the callers of
`~/ask`, and `HealthReporter` one for `/diagnostics`. The executor is single-threaded because
rclpy's multi-threaded executor keeps a core busy while frames wait for their callback group, and
loses sweeps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from p2d_node.checkpoints.devices import one_compute_thread
from p2d_node.config import DriveConfig
from p2d_node.errors import ConfigError, P2dError
from p2d_node.pipeline import DrivingPipeline
from p2d_node.ros.active_session import ActiveSession, WORKER_STOP_TIMEOUT_S
from p2d_node.ros.camera_subscription import resolve_topic
from p2d_node.ros.guarded_services import guard_services
from p2d_node.ros.hardware import hardware_name
from p2d_node.ros.health import HealthReporter
from p2d_node.ros.live_config import LiveConfig
from p2d_node.ros.outputs import Outputs
from p2d_node.ros.parameters import declare_autostart
from p2d_node.ros.quiet_node import QuietNode
from p2d_node.ros.rcl_errors import node_creation_errors
from p2d_node.ros.refusals import Refusals
from p2d_node.ros.requests import Requests
from p2d_node.ros.spinning import ended_by_shutdown, ShutdownInTransition
from p2d_node.ros.sweep_worker import DECODE_S, SweepWorker
from p2d_node.ros.throttled_log import ThrottledLog
from p2d_node.ros.unexpected_error import unexpected_error, UnexpectedError
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

FAULT_REPORT_S = 3.0
"""Time for which diagnostics report a fault before the process ends."""

SLOW_SWEEP_S = 60.0
"""Longest wait for the end of a sweep when max_sweep_s sets no limit."""


class DriveNode(QuietNode, LifecycleNode):
    """Lifecycle node that answers driving questions about synchronised camera sweeps.

    `configure` checks the topics, loads the model and creates the outputs. While the node is
    unconfigured, `model` and most other parameters may change. `activate` subscribes
    to the cameras. A transition that fails logs the reason in one line, releases what it created
    and leaves the node in the state it had before.

    A worker that hangs or cannot go on is a fault: the node deactivates with an error, and is
    finalized if the worker's thread still runs, because a second one must not start beside it.

    Attributes:
        autostart: Whether the node is to configure and activate itself.
        fault: Why the node stopped to work; empty while nothing is wrong.
        on_fault_reported: Called once diagnostics have reported a fault for a few seconds.
    """

    def __init__(self, **options: Any) -> None:
        """Declare the parameters.

        Args:
            options: Arguments of rclpy's Node.

        Raises:
            ConfigError: A parameter, the node's name or the network settings are not allowed.
        """
        with node_creation_errors():
            super().__init__('p2d', **options)
        # rclpy calls `destroy_node` also if the rest of this constructor raises.
        self._health: HealthReporter | None = None
        self._requests: Requests | None = None
        self._session: ActiveSession | None = None
        self._outputs: Outputs | None = None
        self._pipeline: DrivingPipeline | None = None
        self._transition_error: P2dError | None = None
        self._lost_worker: SweepWorker | None = None
        self._worker_thread = one_compute_thread('sweep-worker')
        self._look_ahead_thread = one_compute_thread('look-ahead')
        self.fault = ''
        self.on_fault_reported: Callable[[], None] | None = None
        self._log = ThrottledLog(self.get_logger())
        self._refusals = Refusals(self.get_logger())
        self.autostart = declare_autostart(self)
        self._live_config = LiveConfig(
            self, pipeline=lambda: self._pipeline, on_change=self._use_config
        )
        is_locked = self._config.access == 'locked'
        if is_locked and not self.autostart:
            raise ConfigError(
                'access: got locked with autostart false, so that nobody could start the node; '
                'set autostart to true or access to open'
            )
        guard_services(self, self._refusals, locked=is_locked)
        self._health = HealthReporter(self, hardware_name(self._config), self._refusals)

    @property
    def _config(self) -> DriveConfig:
        return self._live_config.value

    @property
    def session(self) -> ActiveSession | None:
        """The cameras, synchroniser and worker; None while the node is not active."""
        return self._session

    def start(self) -> None:
        """Configure and activate. A shutdown meanwhile is no error.

        Raises:
            P2dError: The reason why a transition failed, which has been logged.
        """
        with ended_by_shutdown(self.context):
            for trigger in (self.trigger_configure, self.trigger_activate):
                if trigger() != TransitionCallbackReturn.SUCCESS:
                    if self._transition_error is not None:
                        raise self._transition_error
                    return

    # Lifecycle transitions

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Check the topics, load the model and create the outputs."""
        if not self._run_transition('configure', self._configure, undo=self._release):
            return TransitionCallbackReturn.FAILURE
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the cameras and start to answer."""
        if not self._run_transition('activate', self._activate, undo=self.stop_working):
            return TransitionCallbackReturn.FAILURE
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe and stop to answer."""
        if not self._run_transition('deactivate', self._deactivate):
            return TransitionCallbackReturn.ERROR
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model and the outputs."""
        if not self._run_transition('clean up', self._release):
            return TransitionCallbackReturn.ERROR
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and free everything."""
        if not self._run_transition('shut down', self._shut_down):
            return TransitionCallbackReturn.ERROR
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free what a failed transition has left.

        The node is unconfigured then; or finalized, if the worker's thread still runs.
        """
        if not self._run_transition('recover', self._release) or self.has_lost_worker:
            return TransitionCallbackReturn.FAILURE
        return super().on_error(state)

    def _run_transition(
        self, name: str, action: Callable[[], Any], undo: Callable[[], Any] | None = None
    ) -> bool:
        """Run the action of a transition; rclpy itself discards what it raises.

        Args:
            name: The transition, for the log.
            action: What the transition does.
            undo: Releases what a failed action has created.

        Returns:
            False if the action raised. The reason is logged and kept for `start`.
        """
        try:
            action()
        except Exception as err:
            error = err if isinstance(err, P2dError) else unexpected_error(err)
        else:
            self._end_if_shut_down()
            return True
        self._end_if_shut_down()  # which may have made rclpy raise
        self._log_transition_error(name, error)
        if undo is not None:
            self._run_transition(f'undo {name}', undo)
        self._transition_error = error
        return False

    def _end_if_shut_down(self) -> None:
        """Leave a transition without a word after a signal: rclpy can neither log nor go on."""
        if not self.context.ok():
            raise ShutdownInTransition

    def _log_transition_error(self, name: str, error: P2dError) -> None:
        if isinstance(error, UnexpectedError):
            self._log.error(f'{name}: {error}')
            self.get_logger().debug(error.trace)
        else:
            self._log.error(str(error))

    def _configure(self) -> None:
        for name in self._config.cameras:
            resolve_topic(self, name, self._config)
        self._live_config.use_ratios_of_model()
        self._pipeline = DrivingPipeline.from_config(self._config)
        if self._pipeline.device.type == 'cuda':  # kernels are compiled and graphs captured
            self._pipeline.warm_up()
        self._end_if_shut_down()
        self._log_model(self._pipeline)
        if self._health is not None:
            self._health.hardware_id = hardware_name(self._config, self._pipeline.device)
        reference_camera = self._config.sync.reference_of(self._config.cameras)
        self._outputs = Outputs(self, self._pipeline, reference_camera)
        if self._requests is None:
            self._requests = Requests(self, self._refusals)

    def _log_model(self, pipeline: DrivingPipeline) -> None:
        for reason in pipeline.encoders_refused.values():
            self._log.info(f'encoder not used: {reason}')
        if pipeline.untrained:
            self._log.warn(
                f'{pipeline.model_name}: the weights are random, so the answers are random words; '
                'set model to a checkpoint folder'
            )

    def _activate(self) -> None:
        pipeline, outputs = self._pipeline, self._outputs
        if pipeline is None or outputs is None:
            raise P2dError('the node is not configured; configure it first')
        if self.has_lost_worker:
            raise P2dError('the worker of the last activation still runs; start the node again')
        self.fault = ''
        self._use_session(
            ActiveSession(
                self,
                self._config,
                pipeline,
                outputs,
                refusals=self._refusals,
                thread=self._worker_thread,
                look_ahead_thread=self._look_ahead_thread,
                on_fault=self._on_fault,
            )
        )
        self._log.info(
            f'answering {len(self._config.questions)} questions per sweep of '
            f'{len(self._config.cameras)} cameras with {pipeline.model_name} on '
            f'{pipeline.encoder_identity}'
        )

    def _use_session(self, session: ActiveSession | None) -> None:
        self._session = session
        for part in (self._health, self._requests):
            if part is not None:
                part.use_session(session)

    def _deactivate(self) -> None:
        """Stop to answer; raises `P2dError` after a fault, or if the worker does not end."""
        self._stop_patiently()
        if self.fault:
            raise P2dError(f'{self.fault}; the node stops')

    def _shut_down(self) -> None:
        try:
            self._stop_patiently()
        finally:
            self._release()

    def _stop_patiently(self) -> None:
        """Stop to answer. A worker that does not end is a fault."""
        timeout_s, longest_s = WORKER_STOP_TIMEOUT_S, 0.0
        if not self.fault:  # a stage that is only slow may end, and so may frames
            timeout_s = max(timeout_s, self._config.max_sweep_s or SLOW_SWEEP_S)
            longest_s = DECODE_S
        if not self.stop_working(timeout_s, longest_s):
            self._report_lost_worker()

    def _on_fault(self, reason: str) -> None:
        """Report a fault of the worker and leave the active state."""
        self._report_fault(reason)
        self.trigger_deactivate()

    def _report_lost_worker(self) -> None:
        if self._lost_worker is not None and not self.fault:
            stage = self._lost_worker.stage
            self._report_fault(f'the worker was told to stop and still works in stage {stage}')

    def _report_fault(self, reason: str) -> None:
        """Have diagnostics report a fault, and the process end after that."""
        self.fault = reason
        if self._health is not None:
            self._health.report_fault(reason)

        def report() -> None:
            timer.cancel()
            if self.on_fault_reported is not None:
                self.on_fault_reported()

        clock = Clock(clock_type=ClockType.STEADY_TIME)
        timer = self.create_timer(FAULT_REPORT_S, report, clock=clock)

    @property
    def has_lost_worker(self) -> bool:
        """Whether the thread of an earlier activation still runs."""
        return self._lost_worker is not None and self._lost_worker.is_alive

    def stop_working(
        self, timeout_s: float = WORKER_STOP_TIMEOUT_S, longest_s: float = 0.0
    ) -> bool:
        """End the active session, if there is one.

        Args:
            timeout_s: Longest wait without progress for the end of the worker's thread.
            longest_s: Longest wait in all; less than `timeout_s`: that.

        Returns:
            True if the worker's thread ended in time.
        """
        session = self._session
        if session is None:
            return not self.has_lost_worker
        self._use_session(None)
        has_ended = session.stop(timeout_s, longest_s)
        if not has_ended:
            self._lost_worker = session.worker
        return has_ended

    def _release(self) -> None:
        """Stop to answer, and free the outputs and the model, also when one of these raises."""
        pipeline, self._pipeline = self._pipeline, None
        outputs, self._outputs = self._outputs, None
        try:
            if not self.stop_working():
                self._report_lost_worker()
        finally:
            try:
                if outputs is not None:
                    outputs.destroy()
            finally:
                if pipeline is not None:
                    pipeline.close()

    def destroy_node(self) -> None:
        """Stop everything and destroy the node."""
        if self._health is not None:
            self._health.stop()
        self.stop_working()
        self._worker_thread.shutdown(wait=False)
        self._look_ahead_thread.shutdown(wait=False, cancel_futures=True)
        if self._requests is not None:
            self._requests.destroy()
        super().destroy_node()

    def _use_config(self, config: DriveConfig) -> None:
        if self._pipeline is not None:
            self._pipeline.reconfigure(config)
        if self._session is not None:
            policy = config.missing_camera_policy
            self._session.synchronizer.missing_camera_policy = policy
