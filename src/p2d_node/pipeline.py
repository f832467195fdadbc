"""The way of one sweep through the stages. Read this first.

A `FrameSet` goes in, one `DrivingAnswer` per question comes out:

    decode -> preprocess -> encode -> begin -> select -> resume -> ask -> generate

With clips, the tokens of the sweeps before it are put beside those of the new one after `encode`.
Each stage is a file of its own and knows no other; only this file knows their order. The prefill
has two halves: `begin` runs the decoder layers before `prune_layer`, `resume` the others with the
kept tokens. Latency is measured here, not in the stages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
import time

import numpy as np
from p2d_node.answers import to_driving_answers, to_sweep_times
from p2d_node.assembly import assemble, Stages
from p2d_node.clip_tokens import EncodedSweep, EncodedSweeps, join_tokens
from p2d_node.config import DriveConfig
from p2d_node.errors import ConfigError, ImageDecodeError
from p2d_node.inference_faults import guarded, guarded_groups
from p2d_node.language_model.conversation import (
    DraftSettings,
    Limits,
    OnPartial,
    SharedPrefix,
    TextAnswer,
    UNANSWERED,
)
from p2d_node.latency import MustStop, never, StageClock, stop_at
from p2d_node.records import CameraFrame, DecodedFrame, DrivingAnswer, DrivingChoice, FrameSet
from p2d_node.units import NS_PER_MS
from p2d_node.vision_frontend import PreparedFrames
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class _Sweep:
    """One sweep on its way: what stays the same from stage to stage."""

    frame_set: FrameSet
    config: DriveConfig
    clock: StageClock
    must_stop: MustStop
    context: str

    @property
    def cameras(self) -> tuple[str, ...]:
        """The camera of each picture, in the model's order; in a clip once per frame."""
        return self.frame_set.picture_cameras

    def without(self, broken: Mapping[str, str]) -> _Sweep:
        """Return the sweep without broken frames.

        Raises:
            ImageDecodeError: There are some, and no answer without them is wanted.
        """
        if not broken:
            return self
        config, num_whole = self.config, len(self.frame_set.frames) - len(broken)
        if config.missing_camera_policy != 'drop_view' or num_whole < config.sync.min_views:
            raise ImageDecodeError(broken)
        return replace(self, frame_set=self.frame_set.without(broken))


class DrivingPipeline:
    """Answers questions about sweeps.

    Use it from one thread at a time; any thread may call `reconfigure`, `check_questions` and
    `prepare`.
    Models, buffers and threads are allocated once; `close` frees them.

    Attributes:
        clip: How many frames of each camera the model sees, and their distance in time.
        views: How views become pictures, and which tokens belong to which camera.
        device: Where the models run.
        model_name: Name of the checkpoint and the format of its weights.
        encoder_identity: Backend of the vision encoder and identity of its engine or weights.
        untrained: Whether the weights are random.
        encoders_refused: With backend auto: why the preferred backends do not run.
        picture_settings: Resize and normalisation of pictures, as JSON data.
    """

    def __init__(self, config: DriveConfig, stages: Stages) -> None:
        """Use loaded stages; see `from_config`."""
        self._config = config
        self._frontend = stages.frontend
        self._encoder = stages.encoder
        self._selector = stages.selector
        self._language_model = stages.language_model
        self._model = stages.model
        self._clock: StageClock | None = None
        self._decoded_again_ns, self._is_decoding_again = 0, False
        self._last_questions: tuple[str, ...] = ()
        self._last_stamp_ns = 0
        self._encoded = EncodedSweeps(stages.clip)
        self._layout = stages.layout
        self.clip = stages.clip
        self.views = stages.views
        self.device = stages.device
        self.model_name = stages.model.name
        self.encoder_identity = stages.model.encoder
        self.untrained = stages.model.untrained
        self.encoders_refused = stages.encoders_refused
        self.picture_settings = stages.picture_settings

    @classmethod
    def from_config(cls, config: DriveConfig) -> DrivingPipeline:
        """Load everything that `config` names.

        Raises:
            ConfigError: A folder, a file or a value that cannot be used.
            BackendUnavailableError: A device or library that is missing.
            EngineMismatchError: An engine that must not be loaded.
        """
        pipeline = cls(config, assemble(config))
        # Without questions too: a chat template that fails is found here.
        questions = config.questions or ('',)
        pipeline.check_questions(questions)
        if config.context:
            pipeline.check_context(config.context, questions)
        return pipeline

    def answer(
        self,
        frame_set: FrameSet,
        questions: Sequence[str],
        *,
        context: str | None = None,
        must_stop: MustStop = never,
        on_partial: OnPartial | None = None,
    ) -> list[DrivingAnswer]:
        """Answer `questions` about one sweep, in their order.

        Args:
            frame_set: The sweep; its payloads are ROS messages or records with the same fields.
            questions: If empty, nothing is computed.
            context: Text that stands before each question; None: the parameter `context`.
            must_stop: Called between tokens; True cuts the answers as the deadline does.
            on_partial: Called with a question and its answer so far after each of its tokens.

        Returns:
            One answer per question, all from the same visual tokens.

        Raises:
            ConfigError: The questions are one text instead of a list.
            ImageDecodeError: Frames that cannot be used, unless `missing_camera_policy` is
                drop_view and enough others are left; nothing of the sweep is answered.
            InferenceError: A model stage failed.
        """
        if isinstance(questions, str):
            raise ConfigError(f'questions: got the text {questions!r}, allowed: a list of texts')
        groups = self.answer_groups(
            frame_set, [questions], context=context, must_stop=must_stop, on_partial=on_partial
        )
        return [answer for group in groups for answer in group]

    @guarded_groups
    def answer_groups(
        self,
        frame_set: FrameSet,
        groups: Sequence[Sequence[str]],
        *,
        context: str | None = None,
        must_stop: MustStop = never,
        on_partial: OnPartial | None = None,
        prepared: Future[PreparedFrames] | None = None,
    ) -> Iterator[list[DrivingAnswer]]:
        """Answer groups of questions about one sweep, one group after the other.

        Args:
            frame_set: As for `answer`.
            groups: Questions; no batch holds questions of two groups.
            context: As for `answer`.
            must_stop: As for `answer`.
            on_partial: As for `answer`.
            prepared: What `prepare` returns for this sweep; None: it is done here.

        Yields:
            The answers of each group, before work on the next one begins; empty for an empty one.

        Raises:
            P2dError: As `answer`.
        """
        if not any(groups):
            yield from ([] for _ in groups)
            return
        sweep = self._start(frame_set, must_stop, context)
        sweep, tokens = self._encode_clip(sweep, prepared)
        yield from self._answer_tokens(sweep, tokens, groups, on_partial=on_partial)

    def prepare(self, frame_set: FrameSet) -> PreparedFrames:
        """Decode and preprocess a sweep ahead of `answer_groups`.

        Any thread may call it while another sweep is in work.

        Raises:
            ImageDecodeError: Frames of a size that the encoder does not take.
        """
        return self._frontend.prepare(frame_set)

    def _encode_clip(
        self, sweep: _Sweep, prepared: Future[PreparedFrames] | None = None
    ) -> tuple[_Sweep, Tensor]:
        """Return the sweep without broken frames, and the visual tokens of its clip."""
        if self.clip.num_frames == 1:
            whole, tokens = self._encode_sweep(sweep, prepared)
            frame_set = self._in_order(whole.frame_set)
            if frame_set is not whole.frame_set:
                tokens = join_tokens([EncodedSweep(whole.frame_set, tokens)], frame_set)
            return replace(whole, frame_set=frame_set), tokens
        earlier = self._encode_earlier(sweep)
        whole, tokens = self._encode_sweep(sweep, prepared)
        newest = self._encoded.add(sweep.frame_set, whole.frame_set, tokens)
        clip = tuple(encoded.frame_set for encoded in earlier)
        frame_set = self._in_order(replace(whole.frame_set, earlier=clip))
        return replace(whole, frame_set=frame_set), join_tokens([*earlier, newest], frame_set)

    def _in_order(self, frame_set: FrameSet) -> FrameSet:
        """Return a sweep with its cameras in the order of the prompt."""
        ordered = self._ordered(frame_set.frames)
        if ordered == tuple(frame_set.frames):
            return frame_set
        return replace(frame_set, frames={name: frame_set.frames[name] for name in ordered})

    def _ordered(self, cameras: Iterable[str]) -> tuple[str, ...]:
        names = tuple(cameras)
        return self._layout.in_order(names) if self._layout else names

    def _encode_earlier(self, sweep: _Sweep) -> list[EncodedSweep]:
        """Return the earlier sweeps of the clip; a broken one and those before it are left out."""
        clip: list[EncodedSweep] = []
        for frame_set in reversed(sweep.frame_set.earlier):
            if self._encoded.is_broken(frame_set, sweep.config):
                break
            encoded = self._encoded.find(frame_set)
            if encoded is None:
                try:
                    whole, tokens = self._encode_sweep(replace(sweep, frame_set=frame_set))
                except ImageDecodeError:
                    self._encoded.note_broken(frame_set, sweep.config)
                    break
                encoded = self._encoded.add(frame_set, whole.frame_set, tokens)
            clip.append(encoded)
        return clip[::-1]

    def _encode_sweep(
        self, sweep: _Sweep, prepared: Future[PreparedFrames] | None = None
    ) -> tuple[_Sweep, Tensor]:
        with sweep.clock.stage('decode'):
            ready = prepared.result() if prepared else self._frontend.decode(sweep.frame_set)
            sweep = sweep.without(ready.broken)
        with sweep.clock.stage('preprocess'):
            pixels = self._to_pixels(ready)
        with sweep.clock.stage('encode'):
            return sweep, self._encoder.encode(pixels)

    def _to_pixels(self, ready: PreparedFrames) -> Tensor:
        return self._frontend.preprocess(ready.frames) if ready.pixels is None else ready.pixels

    def _answer_tokens(
        self,
        sweep: _Sweep,
        tokens: Tensor,
        groups: Sequence[Sequence[str]],
        *,
        keep: Sequence[Tensor] | None = None,
        on_partial: OnPartial | None = None,
    ) -> Iterator[list[DrivingAnswer]]:
        config, clock, language_model = sweep.config, sweep.clock, self._language_model
        questions = [question for group in groups for question in group]
        with clock.stage('prefill'):
            paused = language_model.begin(
                questions, sweep.cameras, tokens, config.prune_layer, context=sweep.context
            )
        with clock.stage('select'):
            keep = keep or self._selector.select(
                paused.visual_states, sweep.cameras, config, missing=sweep.frame_set.missing
            )
        with clock.stage('prefill'):
            prefix = language_model.resume(paused, self.views.merge_indices(keep, sweep.cameras))
        first = 0
        for group in groups:
            texts = self._answer_group(sweep, prefix, first, len(group), on_partial)
            first += len(group)
            yield to_driving_answers(
                sweep.frame_set,
                group,
                texts,
                context=sweep.context,
                keep_indices=keep,
                views=self.views,
                model=self._model,
                times=to_sweep_times(sweep.frame_set, clock),
            )

    def _answer_group(
        self,
        sweep: _Sweep,
        prefix: SharedPrefix,
        first: int,
        num_questions: int,
        on_partial: OnPartial | None,
    ) -> list[TextAnswer]:
        """Ask and generate batch by batch; what the deadline leaves no time for is unanswered."""
        config, clock, language_model = sweep.config, sweep.clock, self._language_model
        limits = Limits(
            max_new_tokens=config.max_new_tokens, stop=config.stop, must_stop=sweep.must_stop
        )
        drafting = DraftSettings(source=config.drafts, max_tokens=config.max_draft_tokens)
        texts: list[TextAnswer] = []
        for batch in prefix.batches(first, first + num_questions, config.question_batch):
            # The very first batch is begun in any case: a sweep has at least a cut answer.
            if (first or texts) and sweep.must_stop():
                return texts + [UNANSWERED] * (num_questions - len(texts))
            with clock.stage('prefill'):
                asked = language_model.ask(
                    prefix, batch, max_new_tokens=config.max_new_tokens, drafting=drafting
                )
            clock.mark('ttft')
            with clock.stage('generate'):
                texts += language_model.generate(asked, limits, on_partial)
        return texts

    @guarded
    def encode(self, frame_set: FrameSet) -> Tensor:
        """Run the first half of `answer`: frames to visual tokens [pictures, tokens, features].

        The result is the caller's own; later sweeps do not overwrite it.

        Raises:
            ImageDecodeError: A frame that cannot be used.
            InferenceError: The vision encoder failed.
        """
        clip = []
        for sweep in (*frame_set.earlier, frame_set):
            decoded = self._frontend.decode(sweep)
            if decoded.broken:
                raise ImageDecodeError(decoded.broken)
            tokens = self._encoder.encode(self._to_pixels(decoded)).clone()
            clip.append(EncodedSweep(sweep, tokens))
        ordered = self._in_order(frame_set)
        if ordered is frame_set and not frame_set.earlier:
            return clip[0].tokens
        return join_tokens(clip, ordered)

    @guarded
    def answer_tokens(
        self,
        frame_set: FrameSet,
        visual_tokens: Tensor,
        questions: Sequence[str],
        *,
        keep_indices: Sequence[Tensor] | None = None,
        must_stop: MustStop = never,
    ) -> list[DrivingAnswer]:
        """Run the second half of `answer`: visual tokens to answers.

        Args:
            frame_set: Names the cameras and the frames of the clip; its payloads are not used.
            visual_tokens: Of the sweep, from `encode`, on this pipeline's device.
            questions: One or more.
            keep_indices: Per camera, in the order of `num_tokens`, the kept tokens, int64,
                ascending; None: they are selected.
            must_stop: As for `answer`.

        Raises:
            InferenceError: A model stage failed.
        """
        sweep = self._start(self._in_order(frame_set), must_stop)
        (answers,) = self._answer_tokens(sweep, visual_tokens, [questions], keep=keep_indices)
        return answers

    def selection_features(self, frame_set: FrameSet, visual_tokens: Tensor) -> Tensor:
        """Return the features that tokens are selected by with `prune_layer` 0.

        Args:
            frame_set: The sweep; its payloads are not used.
            visual_tokens: Of the sweep, from `encode`.

        Returns:
            Float [pictures, tokens, hidden].
        """
        cameras = self._in_order(frame_set).picture_cameras
        return self._language_model.begin(('',), cameras, visual_tokens, 0).visual_states

    @guarded
    def choose(self, frame_set: FrameSet, question: str, choices: Sequence[str]) -> DrivingChoice:
        """Compute the likelihood of each of `choices` as the whole answer to `question`.

        Args:
            frame_set: The sweep, as for `answer`.
            question: One question; it should tell the model what the choices are.
            choices: Different texts, as the model would write them: `A`, or `keep speed`.

        Raises:
            ConfigError: Choices that are missing, empty or equal.
            ImageDecodeError: A frame that cannot be used.
            InferenceError: A model stage failed.
        """
        language_model = self._language_model
        answers = language_model.tokenize_choices(choices)
        sweep, tokens = self._encode_clip(self._start(frame_set, never))
        cameras, config = sweep.cameras, sweep.config
        paused = language_model.begin(
            (question,), cameras, tokens, config.prune_layer, context=sweep.context
        )
        keep = self._selector.select(
            paused.visual_states, cameras, config, missing=sweep.frame_set.missing
        )
        prefix = language_model.resume(paused, self.views.merge_indices(keep, cameras))
        scores = language_model.score(language_model.ask(prefix, prefix.batch), answers)
        return DrivingChoice(
            stamp_ns=frame_set.stamp_ns,
            question=question,
            model=self.model_name,
            log_likelihoods=dict(zip(choices, scores, strict=True)),
            tokens_kept={n: len(k) for n, k in zip(sweep.frame_set.frames, keep, strict=True)},
        )

    def check_questions(self, questions: Sequence[str]) -> None:
        """Raise `ConfigError` for a question that cannot be asked; any thread may call it."""
        self._language_model.check_questions(questions)

    def check_context(self, context: str, questions: Sequence[str] = ('',)) -> None:
        """Raise `ConfigError` for a text that cannot stand before questions.

        Any thread may call it.
        """
        self._language_model.check_context(context, questions)

    def count_tokens(self, question: str) -> int:
        """Return how many tokens a question adds to the prompt; any thread may call it.

        Raises:
            ConfigError: As `check_questions`.
        """
        return self._language_model.count_tokens(question)

    @property
    def progress(self) -> tuple[str, int]:
        """The stage in work, empty between stages, and when the last progress was made.

        The time is on the steady clock, nanoseconds. Progress is the beginning or the end of a
        stage, each decoded frame and each generated token. Any thread may read it.
        """
        if self._is_decoding_again:
            return 'decode', self._decoded_again_ns
        clock = self._clock
        if clock is None:
            return '', self._decoded_again_ns
        stage, progressed_ns = clock.current, max(clock.progressed_ns, self._decoded_again_ns)
        if stage == 'decode':  # else it is a frame of the sweep that waits
            progressed_ns = max(progressed_ns, self._frontend.decoded_ns)
        return stage, progressed_ns

    def decode_again(self, frame: CameraFrame) -> DecodedFrame:
        """Decode a frame of an answered sweep, to draw it; counts as progress.

        Raises:
            ImageDecodeError: It cannot be used.
        """
        self._decoded_again_ns, self._is_decoding_again = time.monotonic_ns(), True
        try:
            return self._frontend.decode_again(frame)
        finally:
            self._decoded_again_ns, self._is_decoding_again = time.monotonic_ns(), False

    def warm_up(self) -> None:
        """Answer about grey frames once: what is compiled at first use delays no real sweep.

        Raises:
            InferenceError: A model stage failed.
        """
        grey = np.full((*self._frontend.frame_size, 3), 128, np.uint8)
        frame_set = FrameSet.from_images(dict.fromkeys(self._config.cameras, grey))
        clip = replace(frame_set, earlier=(frame_set,) * (self.clip.num_frames - 1))
        self.answer(clip, self._config.questions or ('',), must_stop=lambda: True)
        self._encoded.forget()

    def reconfigure(self, config: DriveConfig) -> None:
        """Use `config` from the next sweep on; only run-time fields may differ."""
        self._config = config

    def release(self) -> None:
        """Free memory that is reused from sweep to sweep; the next sweep allocates it again."""
        self._encoded.forget()
        self._language_model.release()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Stop the threads."""
        self._frontend.close()

    @property
    def config(self) -> DriveConfig:
        """The configuration that the next sweep will use."""
        return self._config

    @property
    def num_tokens(self) -> dict[str, int]:
        """Camera to the number of visual tokens of its full clip before any is dropped.

        The cameras are in the order of the prompt.
        """
        num_frames, cameras = self.clip.num_frames, self._ordered(self._config.cameras)
        return {name: num_frames * self.views.count_tokens(name) for name in cameras}

    @property
    def num_features(self) -> int:
        """Features of a visual token."""
        return self._language_model.num_features

    def _start(
        self, frame_set: FrameSet, must_stop: MustStop, context: str | None = None
    ) -> _Sweep:
        """Start the clock of a sweep; its configuration no longer changes."""
        if len(frame_set.earlier) >= self.clip.num_frames:
            raise ConfigError(
                f'frame_set.earlier: got {len(frame_set.earlier)} sweeps, allowed: up to '
                f'{self.clip.num_frames - 1}; set frames_per_camera to the length of the clip'
            )
        config, clock = self._config, StageClock(self.device)
        self._clock = clock
        if frame_set.stamp_ns < self._last_stamp_ns or config.questions != self._last_questions:
            self._language_model.drafter.forget()
        self._last_stamp_ns, self._last_questions = frame_set.stamp_ns, config.questions
        must_stop = clock.noting(must_stop)
        if config.deadline_ms > 0.0:
            must_stop = stop_at(clock.started_ns + int(config.deadline_ms * NS_PER_MS), must_stop)
        context = config.context if context is None else context
        return _Sweep(frame_set, config, clock, must_stop, context)
