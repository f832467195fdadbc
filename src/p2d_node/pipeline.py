"""The way of one sweep, top to bottom: read this first.

A `FrameSet` goes in, one `DrivingAnswer` per question comes out:

    decode -> preprocess -> encode -> select -> prefill -> generate

Each stage is a file of its own and knows no other; only this file knows their order. Latency is
taken here, not in the stages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
import tempfile
import time

import numpy as np
import numpy.typing as npt
from p2d_node.config import DriveConfig, UNTRAINED_MODEL
from p2d_node.errors import InferenceError
from p2d_node.image_decoding import decode_frame
from p2d_node.language_model.checkpoint import (
    Checkpoint,
    choose_device,
    choose_dtype,
    load_family,
    open_checkpoint,
)
from p2d_node.language_model.decode import Generation, Prefix
from p2d_node.language_model.families.base import Family
from p2d_node.language_model.prompt import Prompt
from p2d_node.language_model.untrained import write_untrained_checkpoint
from p2d_node.latency import NS_PER_MS, StageClock
from p2d_node.preprocessing import ImageProcessing, normalize, resize_frame
from p2d_node.records import DecodedFrame, DrivingAnswer, FrameSet, StageTimes
from p2d_node.token_selection import num_keep_from_retention, select_tokens
from p2d_node.vision_encoder.base import VisionEncoder
from p2d_node.vision_encoder.factory import make_vision_encoder
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sweep:
    """What the questions of one sweep share.

    `started_ns` is the steady clock when work on the sweep began; `clock` holds the shared stages;
    `kept` is `keep_indices` per camera, copied to the host once for all answers.
    """

    frame_set: FrameSet
    config: DriveConfig
    visual_tokens: Tensor
    keep_indices: tuple[Tensor, ...]
    kept: Mapping[str, npt.NDArray[np.int64]]
    clock: StageClock
    started_ns: int
    must_stop: Callable[[], bool]


class DrivingPipeline:
    """Answers questions about sweeps.

    Use it from one thread at a time; only `reconfigure` may be called from another. Model, buffers
    and thread pool are made once; `close` frees them.
    """

    def __init__(
        self,
        config: DriveConfig,
        *,
        checkpoint: Checkpoint,
        family: Family,
        encoder: VisionEncoder,
        processing: ImageProcessing,
        device: torch.device,
    ) -> None:
        """Put loaded parts together; see `from_config`."""
        self._config = config
        self._family = family
        self._encoder = encoder
        self._processing = processing
        self._device = device
        self._pool = ThreadPoolExecutor(max_workers=len(config.cameras), thread_name_prefix='view')
        self.model_name = checkpoint.name
        self.encoder_identity = encoder.identity
        self.untrained = checkpoint.untrained

    @classmethod
    def from_config(cls, config: DriveConfig) -> DrivingPipeline:
        """Load everything that `config` names.

        Raises:
            ConfigError: A folder, a file or a value that cannot be used.
            BackendUnavailableError: A device or library that is not there.
        """
        device = choose_device(config.device)
        dtype = choose_dtype(config.dtype, device)
        torch.set_num_threads(config.num_threads or max(1, torch.get_num_threads() - 1))
        if config.model != UNTRAINED_MODEL:
            return cls._load(config, Path(config.model), dtype, device)
        with tempfile.TemporaryDirectory(prefix='p2d-') as folder:
            random_model = write_untrained_checkpoint(Path(folder) / 'p2d-random')
            return cls._load(config, random_model, dtype, device)

    @classmethod
    def _load(
        cls, config: DriveConfig, folder: Path, dtype: torch.dtype, device: torch.device
    ) -> DrivingPipeline:
        checkpoint = open_checkpoint(folder)
        processing = ImageProcessing.from_folder(checkpoint.folder)
        family = load_family(checkpoint, dtype=dtype, device=device)
        encoder = make_vision_encoder(
            config.encoder, family.vision_module, dtype=dtype, device=device
        )
        return cls(
            config,
            checkpoint=checkpoint,
            family=family,
            encoder=encoder,
            processing=processing,
            device=device,
        )

    @property
    def config(self) -> DriveConfig:
        """The configuration that the next sweep will use."""
        return self._config

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patches of one view."""
        return self._family.grid

    def reconfigure(self, config: DriveConfig) -> None:
        """Use `config` from the next sweep on; only run-time fields may differ from before."""
        self._config = config

    def close(self) -> None:
        """Stop the thread pool."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def answer(
        self,
        frame_set: FrameSet,
        questions: Sequence[str],
        *,
        must_stop: Callable[[], bool] = lambda: False,
    ) -> list[DrivingAnswer]:
        """Answer `questions` about one sweep, in their order.

        Args:
            frame_set: The sweep; its payloads are ROS messages or records with the same fields.
            questions: May be empty: then nothing is computed.
            must_stop: Asked between tokens; True cuts the answers as the deadline does.

        Returns:
            One answer per question, all from the same visual tokens.

        Raises:
            ImageDecodeError: A frame that cannot be used; nothing of the sweep is answered.
            InferenceError: A model stage failed.
        """
        if not questions:
            return []
        config = self._config
        try:
            sweep = self._see(frame_set, config, must_stop)
            return self._answer_all(sweep, questions)
        except (RuntimeError, ValueError, IndexError) as err:
            # torch reports out of memory, bad shapes and device faults as these.
            raise InferenceError(
                f'sweep {frame_set.stamp_ns}: {type(err).__name__}: {str(err).splitlines()[0]}'
            ) from err

    def _see(
        self, frame_set: FrameSet, config: DriveConfig, must_stop: Callable[[], bool]
    ) -> _Sweep:
        """Everything before the first question: frames to kept visual tokens."""
        started_ns = time.monotonic_ns()
        clock = StageClock(self._device)
        with clock.stage('decode'):
            decoded = list(self._pool.map(decode_frame, frame_set.frames.values()))
        with clock.stage('preprocess'):
            pixel_values = self._preprocess(decoded)
        with clock.stage('encode'):
            visual_tokens = self._encoder.encode(pixel_values)
        with clock.stage('select'):
            num_keep = [
                num_keep_from_retention(visual_tokens.shape[1], config.retention_ratio_of(camera))
                for camera in frame_set.frames
            ]
            keep_indices = select_tokens(visual_tokens, num_keep, config.selector)
            on_host = (indices.cpu().numpy() for indices in keep_indices)
            kept = dict(zip(frame_set.frames, on_host, strict=True))
        return _Sweep(
            frame_set=frame_set,
            config=config,
            visual_tokens=visual_tokens,
            keep_indices=tuple(keep_indices),
            kept=kept,
            clock=clock,
            started_ns=started_ns,
            must_stop=_deadline(config.deadline_ms, started_ns, must_stop),
        )

    def _preprocess(self, decoded: Sequence[DecodedFrame]) -> Tensor:
        squares = list(
            self._pool.map(lambda frame: resize_frame(frame, self._processing), decoded)
        )
        return normalize(squares, self._processing, self._device)

    def _answer_all(self, sweep: _Sweep, questions: Sequence[str]) -> list[DrivingAnswer]:
        prefix: Prefix | None = None
        answers = []
        for question in questions:
            prompt = self._family.build_prompt(question, tuple(sweep.frame_set.frames))
            clock = StageClock(self._device)
            with clock.stage('prefill'):
                if prefix is None:
                    prefix = self._prefill_views(sweep, prompt)
                inputs = self._family.embed_question(prompt, prefix.end_position)
                asked, logits = self._family.decoder.prefill_question(prefix, inputs)
            ttft_ms = sweep.clock.elapsed_ms()
            with clock.stage('generate'):
                generation = self._generate(sweep, asked, logits)
            answers.append(self._to_answer(sweep, question, generation, clock, ttft_ms))
        total_ms = (time.monotonic_ns() - sweep.frame_set.first_arrival_ns) / NS_PER_MS
        return [replace(a, times=replace(a.times, total_ms=total_ms)) for a in answers]

    def _prefill_views(self, sweep: _Sweep, prompt: Prompt) -> Prefix:
        inputs = self._family.embed_prefix(prompt, sweep.visual_tokens, sweep.keep_indices)
        return self._family.decoder.prefill(inputs)

    def _generate(self, sweep: _Sweep, asked: Prefix, logits: Tensor) -> Generation:
        return self._family.decoder.generate_greedy(
            asked,
            logits,
            embed=self._family.embed,
            max_new_tokens=sweep.config.max_new_tokens,
            end_token_ids=self._family.end_token_ids,
            must_stop=sweep.must_stop,
        )

    def _to_answer(
        self,
        sweep: _Sweep,
        question: str,
        generation: Generation,
        clock: StageClock,
        ttft_ms: float,
    ) -> DrivingAnswer:
        frames = sweep.frame_set.frames
        num_tokens = sweep.visual_tokens.shape[1]
        return DrivingAnswer(
            stamp_ns=sweep.frame_set.stamp_ns,
            question=question,
            answer=self._family.text_of(generation.token_ids),
            model=self.model_name,
            encoder=self.encoder_identity,
            camera_stamps_ns={name: frame.stamp_ns for name, frame in frames.items()},
            tokens_total=dict.fromkeys(frames, num_tokens),
            keep_indices=sweep.kept,
            mean_log_probability=generation.mean_log_probability,
            num_generated_tokens=len(generation.token_ids),
            cut=generation.cut,
            times=_stage_times(sweep, clock, ttft_ms),
        )


def _deadline(
    deadline_ms: float, started_ns: int, must_stop: Callable[[], bool]
) -> Callable[[], bool]:
    """Return a check that is True once `deadline_ms` (0: never) after `started_ns` are over."""
    if deadline_ms == 0.0:
        return must_stop
    end_ns = started_ns + int(deadline_ms * NS_PER_MS)
    return lambda: time.monotonic_ns() >= end_ns or must_stop()


def _stage_times(sweep: _Sweep, clock: StageClock, ttft_ms: float) -> StageTimes:
    frame_set, shared = sweep.frame_set, sweep.clock.durations_ms
    return StageTimes(
        sync_wait_ms=(frame_set.closed_ns - frame_set.first_arrival_ns) / NS_PER_MS,
        queue_ms=(sweep.started_ns - frame_set.closed_ns) / NS_PER_MS,
        decode_ms=shared['decode'],
        preprocess_ms=shared['preprocess'],
        encode_ms=shared['encode'],
        select_ms=shared['select'],
        prefill_ms=clock.durations_ms['prefill'],
        ttft_ms=ttft_ms,
        generate_ms=clock.durations_ms['generate'],
    )
