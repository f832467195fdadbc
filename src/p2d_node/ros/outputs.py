"""The publishers of the drive node: answers, partial answers, times and the picture of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from p2d_msgs.msg import DrivingAnswer as DrivingAnswerMsg
from p2d_msgs.msg import StageTiming
from p2d_node.latency import LatencyWindow
from p2d_node.pipeline import DrivingPipeline
from p2d_node.records import DrivingAnswer, FrameSet
from p2d_node.ros.conversions import to_answer, to_header, to_image, to_times_ms, to_timing
from p2d_node.ros.overlay import draw_kept_tokens
from p2d_node.ros.spinning import ended_by_shutdown
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_msgs.msg import Header, String

UNTRAINED_PREFIX = '[untrained model, random words] '
LATE_PREFIX = '[late] '
QUEUE_DEPTH = 10


class Outputs:
    """Publishes what the pipeline returns. Exists while the node is configured.

    The publish methods are called by the worker's thread.
    """

    def __init__(self, node: Node, pipeline: DrivingPipeline, reference_camera: str) -> None:
        """Create the publishers.

        Args:
            node: The node that publishes.
            pipeline: The pipeline whose answers are published.
            reference_camera: The camera whose `frame_id` goes into the headers.
        """
        self._node = node
        self._pipeline = pipeline
        self._reference_camera = reference_camera
        self._window = LatencyWindow()
        self._publishers: list[Any] = []
        try:
            self._answer = self._create(DrivingAnswerMsg, '~/answer')
            self._answer_text = self._create(String, '~/answer_text')
            self._partial = self._create(String, '~/answer_partial')
            self._timing = self._create(StageTiming, '~/timing')
            self._kept_tokens = self._create(Image, '~/kept_tokens', depth=1)
        except Exception:
            self.destroy()
            raise

    def _create(self, message_type: Any, topic: str, depth: int = QUEUE_DEPTH) -> Any:
        publisher = self._node.create_publisher(message_type, topic, depth)
        self._publishers.append(publisher)
        return publisher

    def publish_answers(
        self, frame_set: FrameSet, answers: Sequence[DrivingAnswer], late: bool
    ) -> None:
        """Publish answers about one sweep.

        Args:
            frame_set: The sweep.
            answers: The answers.
            late: Whether the sweep is older than allowed; the messages say so.
        """
        header = to_header(frame_set, self._reference_camera)
        with ended_by_shutdown(self._node.context):
            for answer in answers:
                message = to_answer(answer, header, now_ns=self._now_ns(), late=late)
                self._answer.publish(message)
                line = self._as_line(answer.question, answer.answer)
                self._answer_text.publish(String(data=f'{LATE_PREFIX if late else ""}{line}'))

    def publish_sweep(self, frame_set: FrameSet, answers: Sequence[DrivingAnswer]) -> None:
        """Publish the times of one sweep, and the picture if it has subscribers.

        Args:
            frame_set: The sweep.
            answers: All answers about it, one or more.
        """
        answer = answers[0]
        header = to_header(frame_set, self._reference_camera)
        with ended_by_shutdown(self._node.context):
            times_ms = to_times_ms(answer, now_ns=self._now_ns())
            if times_ms['end_to_end_ms'] >= 0.0:  # else time jumped back between its two ends
                self._window.add(times_ms)
            self._timing.publish(to_timing(header, times_ms, answers, self._window))
            if self._kept_tokens.get_subscription_count():
                self._publish_kept_tokens(frame_set, answer, header)

    def publish_partial(self, question: str, answer: str) -> None:
        """Publish the part of an answer that has been generated so far."""
        with ended_by_shutdown(self._node.context):
            self._partial.publish(String(data=self._as_line(question, answer)))

    def destroy(self) -> None:
        """Destroy the publishers."""
        while self._publishers:
            self._node.destroy_publisher(self._publishers.pop())

    def _publish_kept_tokens(
        self, frame_set: FrameSet, answer: DrivingAnswer, header: Header
    ) -> None:
        pipeline = self._pipeline
        picture = draw_kept_tokens(frame_set, answer, pipeline.views, pipeline.decode_again)
        self._kept_tokens.publish(to_image(picture, header))

    def _as_line(self, question: str, answer: str) -> str:
        prefix = UNTRAINED_PREFIX if self._pipeline.untrained else ''
        return f'{prefix}{question} {answer}'

    def _now_ns(self) -> int:
        return int(self._node.get_clock().now().nanoseconds)
