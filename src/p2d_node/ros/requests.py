"""Questions from outside: the service `~/ask` and the topic `~/question`."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import suppress
import threading
import time

from p2d_msgs.msg import DrivingAnswer as DrivingAnswerMsg
from p2d_msgs.srv import Ask
from p2d_node.errors import ConfigError, P2dError, quote
from p2d_node.ros.active_session import ActiveSession
from p2d_node.ros.asked_questions import AskedAnswer, MAX_PENDING_QUESTIONS, WorkerStoppedError
from p2d_node.ros.conversions import to_answer, to_header
from p2d_node.ros.lost_replies import LostReplies
from p2d_node.ros.quiet_node import QuietNode
from p2d_node.ros.refusals import Refusals
from p2d_node.ros.spinning import spin_until_shutdown
from p2d_node.ros.text_subscription import TextSubscription
from p2d_node.ros.throttled_log import ThrottledLog
from p2d_node.ros.unexpected_error import unexpected_error
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.executors import MultiThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile

NUM_THREADS = MAX_PENDING_QUESTIONS + 2
"""Each pending caller of ~/ask holds one; one refuses further callers, one runs the timer."""

FREE_PLACES_EVERY_S = 1.0
REPLY_GAP_S = 0.02
THREAD_START_TIMEOUT_S = 5.0

QUEUE_DEPTH = 256
"""Questions that DDS keeps until they are read; with rclpy's 10 a burst would lose some."""

DEFAULT_TIMEOUT_S = 10.0
MAX_TIMEOUT_S = 120.0


class Requests:
    """Passes questions to the worker of the active session.

    `~/ask` blocks until its answer is there, so it has a helper node whose threads may wait.
    `~/question` does not wait; it runs on the thread that spins `node`.
    """

    def __init__(self, node: Node, refusals: Refusals) -> None:
        """Create the service and the subscription.

        Args:
            node: The drive node, whose name and namespace they get.
            refusals: Gets the questions that are refused.
        """
        self._node = node
        self._refusals = refusals
        self._session: ActiveSession | None = None
        self._log = ThrottledLog(node.get_logger())
        self._awaited: set[Future[AskedAnswer]] = set()
        self._awaited_lock = threading.Lock()
        self._reply_lock = threading.Lock()
        self._replied_s = 0.0
        self._service_name = node.resolve_service_name('~/ask')
        self._helper = QuietNode(
            f'{node.get_name()}_requests',
            context=node.context,
            namespace=node.get_namespace(),
            # With global arguments a remapped node name would apply to both nodes.
            use_global_arguments=False,
            start_parameter_services=False,
        )
        service = self._helper.create_service(
            Ask,
            self._service_name,
            self._on_ask,
            qos_profile=QoSProfile(depth=QUEUE_DEPTH),
            callback_group=ReentrantCallbackGroup(),
        )
        LostReplies([service], refusals)
        if hasattr(node, 'count_clients'):  # not in Humble; callers keep their place until timeout
            clock = Clock(clock_type=ClockType.STEADY_TIME)
            self._helper.create_timer(FREE_PLACES_EVERY_S, self._free_places, clock=clock)
        self._question = TextSubscription(
            node, '~/question', self._on_question, QoSProfile(depth=QUEUE_DEPTH)
        )
        self._executor = MultiThreadedExecutor(NUM_THREADS, context=node.context)
        self._executor.add_node(self._helper)
        self._starting = threading.Barrier(NUM_THREADS)
        self._thread = threading.Thread(
            target=spin_until_shutdown,
            args=(self._executor, self._helper),
            name='requests',
            daemon=True,
        )
        self._thread.start()
        self._start_threads()

    def _start_threads(self) -> None:
        """Have the executor start all its threads now: a burst of callers starts none."""
        for _ in range(NUM_THREADS):
            self._executor.create_task(_wait_at, self._starting)

    def use_session(self, session: ActiveSession | None) -> None:
        """Send further questions to `session`; with None they are refused."""
        self._session = session

    def destroy(self) -> None:
        """End the threads and destroy the helper node."""
        self._starting.abort()
        self._executor.shutdown(timeout_sec=1.0)
        self._thread.join(timeout=1.0)
        self._helper.destroy_node()

    def _free_places(self) -> None:
        """Withdraw the questions of callers of ~/ask if all callers have gone.

        The graph tells when the last client of the service goes, not which request was whose.
        """
        session = self._session
        if session is None or not self._awaited or self._node.count_clients(self._service_name):
            return
        with self._awaited_lock:
            session.worker.questions.withdraw(
                set(self._awaited), P2dError('the caller of ~/ask has gone')
            )

    def _on_question(self, question: str, _sent_ns: int) -> None:
        try:
            session, pending = self._submit_question(question, DEFAULT_TIMEOUT_S)
        except P2dError as err:
            self._refusals.add('~/question', str(err))
            return

        def log_failure(done: Future[AskedAnswer]) -> None:
            if isinstance(err := done.exception(), TimeoutError):
                err = P2dError(_explain_timeout(session, DEFAULT_TIMEOUT_S))
            if err is not None and not isinstance(err, WorkerStoppedError):
                self._log.warn(f'~/question: {quote(question)}: {err}')

        pending.add_done_callback(log_failure)

    def _on_ask(self, request: Ask.Request, response: Ask.Response) -> Ask.Response:
        try:
            response.answer = self._ask(request.question, request.timeout_s)
            response.success = True
        except P2dError as err:
            response.message = str(err)
        except Exception as err:  # it would end the threads of ~/ask
            response.message = str(unexpected_error(err))
            self._log.error(f'~/ask: {response.message}')
        self._pace_replies()
        return response

    def _pace_replies(self) -> None:
        """Wait until the reply before has been out for a moment.

        DDS delivers every reply to every client, each of which keeps ten. Of a burst of replies
        some clients would lose their own.
        """
        with self._reply_lock:
            time.sleep(max(0.0, self._replied_s + REPLY_GAP_S - time.monotonic()))
            self._replied_s = time.monotonic()

    def _ask(self, question: str, requested_timeout_s: float) -> DrivingAnswerMsg:
        """Wait for the answer to a question.

        Raises:
            P2dError: The reason why there is no answer.
        """
        timeout_s = requested_timeout_s or DEFAULT_TIMEOUT_S
        try:
            session, pending = self._submit_question(question, timeout_s)
        except P2dError as err:
            self._refusals.add('~/ask', str(err))
            raise
        with self._awaited_lock:
            self._awaited.add(pending)
        try:
            asked = pending.result()
        except TimeoutError as err:
            raise P2dError(_explain_timeout(session, timeout_s)) from err
        finally:
            with self._awaited_lock:
                self._awaited.discard(pending)
        header = to_header(asked.frame_set, session.reference_camera)
        now_ns = int(self._node.get_clock().now().nanoseconds)
        return to_answer(asked.answer, header, now_ns=now_ns, late=asked.late)

    def _submit_question(
        self, question: str, timeout_s: float
    ) -> tuple[ActiveSession, Future[AskedAnswer]]:
        """Give a question to the worker.

        Raises:
            P2dError: The question or the time is not allowed, too many questions wait, or the
                node is not active.
        """
        session = self._session
        if not 0.0 < timeout_s <= MAX_TIMEOUT_S:
            raise ConfigError(
                f'timeout_s: got {timeout_s:g}, allowed: 0 (the default, {DEFAULT_TIMEOUT_S:g}) '
                f'to {MAX_TIMEOUT_S:g}'
            )
        if not question.strip():
            raise ConfigError('question: got an empty text, allowed: a question')
        if session is None:
            raise P2dError('the node is not active; activate it, then ask again')
        return session, session.worker.questions.ask(question, timeout_s)


def _wait_at(barrier: threading.Barrier) -> None:
    with suppress(threading.BrokenBarrierError):  # the node ends meanwhile
        barrier.wait(THREAD_START_TIMEOUT_S)


def _explain_timeout(session: ActiveSession, timeout_s: float) -> str:
    silent = [camera.name for camera in session.cameras if camera.rate_hz() == 0.0]
    reason = 'the sweeps of this time had no time left for it; see /diagnostics'
    if silent:
        reason = f'no frames from {", ".join(silent)}'
    return f'no answer within {timeout_s:g} s: {reason}'
