"""The way of one sweep, top to bottom: read this first.

A `FrameSet` goes in, one `DrivingAnswer` per question comes out:

    decode -> preprocess -> encode -> select -> prefill -> generate

Each stage is a file of its own and knows no other; only this file knows their order. With
`prune_layer` above 0 the first decoder layers of the prefill run before tokens are selected.
Latency is taken here, not in the stages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
import math
from pathlib import Path
import threading
import time
import traceback
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from p2d_node.checkpoints.checkpoint import Checkpoint, open_checkpoint
from p2d_node.checkpoints.devices import choose_device, choose_dtype
from p2d_node.checkpoints.model_folder import model_folder
from p2d_node.config import DriveConfig
from p2d_node.errors import checkpoint_faults, ConfigError, InferenceError
from p2d_node.image_decoding import decode_frame
from p2d_node.language_model.decode import Prefix
from p2d_node.language_model.families.base import Family
from p2d_node.language_model.families.registry import hash_vision_part, load_family
from p2d_node.language_model.generate import cut_at, generate_greedy, Generation, score_answers
from p2d_node.language_model.prompt import Prompt, split_opening
from p2d_node.language_model.quantize import AS_IS
from p2d_node.latency import NS_PER_MS, StageClock
from p2d_node.preprocessing import FrameStack, ImageProcessing, normalize, resize_frame
from p2d_node.records import (
    Cut,
    DecodedFrame,
    DrivingAnswer,
    DrivingChoice,
    FrameSet,
    StageTimes,
)
from p2d_node.token_selection import (
    num_keep_from_retention,
    select_adaptively,
    select_tokens,
)
from p2d_node.views import Mosaic, Region
from p2d_node.vision_encoder.base import FRAMES, VisionEncoder
from p2d_node.vision_encoder.engine_store import EngineRequest
from p2d_node.vision_encoder.factory import ChosenEncoder, make_vision_encoder
from p2d_node.vision_encoder.torch_encoder import TorchVisionEncoder
import torch
from torch import Tensor

OnPartial = Callable[[str, str], None]
"""Gets a question and its answer so far."""

MAX_QUESTION_CHARACTERS = 4000
"""Longer ones would hold up all others: a question is read in one go, whatever the deadline."""

INCOMPLETE_CHARACTER = '\ufffd'

T = TypeVar('T')


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sweep:
    """A sweep as the vision encoder saw it.

    `started_ns` is the steady clock when work on the sweep began; `clock` holds the stages that
    its questions share; `keep_indices` are per camera the kept tokens where they were chosen
    beforehand.
    """

    frame_set: FrameSet
    config: DriveConfig
    visual_tokens: Tensor
    clock: StageClock
    started_ns: int
    must_stop: Callable[[], bool]
    keep_indices: Sequence[Tensor] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """What the language model has read before the questions of a sweep part ways.

    `end_position` is where the questions go on; `kept` is `keep_indices` per camera, copied to the
    host once for all answers; `prefill_share_ms` is each question's share of the time.
    """

    prefix: Prefix
    end_position: int
    kept: Mapping[str, npt.NDArray[np.int64]]
    prefill_share_ms: float


class DrivingPipeline:
    """Answers questions about sweeps.

    Use it from one thread at a time; only `reconfigure` and `check_questions` may be called from
    another. Model, buffers
    and thread pool are made once; `close` frees them.
    """

    def __init__(
        self,
        config: DriveConfig,
        *,
        checkpoint: Checkpoint,
        family: Family,
        chosen: ChosenEncoder,
        processing: ImageProcessing,
        device: torch.device,
    ) -> None:
        """Put loaded parts together; see `from_config`."""
        self._config = config
        self._family = family
        self._encoder = chosen.encoder
        self._processing = processing
        self._device = device
        self._tokenizing = threading.Lock()  # tokenizers are not made for several threads
        self._pool = ThreadPoolExecutor(max_workers=len(config.cameras), thread_name_prefix='view')
        self.mosaic = checkpoint.mosaic
        self._regions = _find_regions(checkpoint.mosaic, family.grid, device)
        self._frames = _make_frame_stack(chosen.encoder, _num_pictures(config, checkpoint), device)
        quantized = '' if config.weights == AS_IS else f' {config.weights}'
        self.model_name = f'{checkpoint.name}{quantized}'
        self.encoder_identity = chosen.encoder.identity
        self.encoders_refused = chosen.refused
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
        torch.set_num_threads(config.num_threads or default_num_threads())
        with model_folder(config.model) as folder:
            return cls._load(config, folder, dtype, device)

    @classmethod
    def _load(
        cls, config: DriveConfig, folder: Path, dtype: torch.dtype, device: torch.device
    ) -> DrivingPipeline:
        with checkpoint_faults(folder):
            checkpoint = open_checkpoint(folder)
            _check_cameras(config, checkpoint)
            processing = ImageProcessing.from_folder(
                checkpoint.folder, max_pixels=config.view_max_pixels
            )
            view_size = (processing.height_px, processing.width_px)
            family = load_family(
                checkpoint, view_size=view_size, dtype=dtype, device=device, weights=config.weights
            )
        if config.prune_layer >= family.decoder.num_layers:
            raise ConfigError(
                f'prune_layer: got {config.prune_layer}, allowed: 0 to '
                f'{family.decoder.num_layers - 1}, the layers of {checkpoint.name}'
            )
        chosen = make_vision_encoder(
            config.encoder,
            _engine_request(config, checkpoint, processing),
            family.vision_module,
            dtype=dtype,
            device=device,
        )
        if not isinstance(chosen.encoder, TorchVisionEncoder):
            family.release_vision_module()
        pipeline = cls(
            config,
            checkpoint=checkpoint,
            family=family,
            chosen=chosen,
            processing=processing,
            device=device,
        )
        # Without any question too: a chat template that does not work is found here.
        pipeline.check_questions(config.questions or ('',))
        return pipeline

    @property
    def config(self) -> DriveConfig:
        """The configuration that the next sweep will use."""
        return self._config

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the visual tokens of one picture: a view, or the mosaic."""
        return self._family.grid

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self._device

    @property
    def picture_settings(self) -> dict[str, Any]:
        """What is done to a picture before the vision encoder sees it, as JSON data."""
        return self._processing.to_json()

    @property
    def num_tokens(self) -> dict[str, int]:
        """Camera to the number of its visual tokens before any is dropped."""
        if self._regions:
            return {c: len(self._regions[c].indices) for c in self._config.cameras}
        rows, columns = self.grid
        return dict.fromkeys(self._config.cameras, rows * columns)

    @property
    def pads_frames(self) -> bool:
        """Whether the grid lies over the frame padded to a square, or over the frame itself."""
        return self._processing.fit == 'pad'

    def reconfigure(self, config: DriveConfig) -> None:
        """Use `config` from the next sweep on; only run-time fields may differ from before."""
        self._config = config

    def check_questions(self, questions: Sequence[str]) -> None:
        """Make sure that questions can be asked; may be called from any thread.

        Raises:
            ConfigError: A question that is too long, or that holds what only the chat template
                may write; or a chat template that does not work.
        """
        for question in questions:
            self._check_question(question)

    def _check_question(self, question: str) -> None:
        if len(question) > MAX_QUESTION_CHARACTERS:
            raise ConfigError(
                f'question: got a text of {len(question)} characters, allowed: up to '
                f'{MAX_QUESTION_CHARACTERS}'
            )
        special = self._family.special_tokens_in(question)
        if special:
            raise ConfigError(
                f'question: got a text with {special[0]}, which only the chat template of '
                f'{self.model_name} may write; leave it out'
            )
        prompt = self._build_prompt(question, tuple(self._config.cameras))
        num_words = sum(map(len, prompt.segments)) + len(prompt.suffix)
        length = num_words + sum(self.num_tokens.values())
        if length >= self._family.max_positions:
            raise ConfigError(
                f'question: got a text of {len(question)} characters, which with the pictures '
                f'makes {length} tokens; allowed with {self.model_name}: fewer than '
                f'{self._family.max_positions}; shorten it, or view_max_pixels where views have '
                'no fixed size'
            )

    def _build_prompt(self, question: str, cameras: Sequence[str]) -> Prompt:
        with self._tokenizing:
            return self._family.build_prompt(question, cameras)

    def close(self) -> None:
        """Stop the thread pool."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def answer(
        self,
        frame_set: FrameSet,
        questions: Sequence[str],
        *,
        must_stop: Callable[[], bool] = lambda: False,
        on_partial: OnPartial | None = None,
    ) -> list[DrivingAnswer]:
        """Answer `questions` about one sweep, in their order.

        Args:
            frame_set: The sweep; its payloads are ROS messages or records with the same fields.
            questions: May be empty: then nothing is computed.
            must_stop: Asked between tokens; True cuts the answers as the deadline does.
            on_partial: Called with a question and its answer so far after each of its tokens.

        Returns:
            One answer per question, all from the same visual tokens.

        Raises:
            ImageDecodeError: A frame that cannot be used; nothing of the sweep is answered.
            InferenceError: A model stage failed.
        """
        if not questions:
            return []
        config = self._config

        def answer_all() -> list[DrivingAnswer]:
            sweep = self._see(frame_set, config, must_stop)
            return self._answer_all(sweep, questions, on_partial)

        return self._guarded(frame_set, answer_all)

    def choose(self, frame_set: FrameSet, question: str, choices: Sequence[str]) -> DrivingChoice:
        """Say how likely each of `choices` is as the whole answer to `question`.

        Args:
            frame_set: The sweep, as for `answer`.
            question: One question; it should tell the model what the choices are.
            choices: Different texts, as the model would write them: `A`, or `keep speed`.

        Raises:
            ConfigError: Choices that are missing, empty or equal.
            ImageDecodeError: A frame that cannot be used.
            InferenceError: A model stage failed.
        """
        answers = [self._family.tokenize(choice) for choice in choices]
        if not answers or not all(answers) or len(set(choices)) < len(choices):
            raise ConfigError(f'choices: got {list(choices)!r}, allowed: different, not empty')
        config = self._config
        return self._guarded(
            frame_set,
            lambda: self._choose(
                self._see(frame_set, config, lambda: False), question, choices, answers
            ),
        )

    def encode(self, frame_set: FrameSet) -> Tensor:
        """Return the visual tokens of a sweep, for `answer_tokens`: [pictures, tokens, features].

        They are the caller's own: the next sweep leaves them as they are.

        Raises:
            ImageDecodeError: A frame that cannot be used.
            InferenceError: The vision encoder failed.
        """
        config = self._config
        seen = self._guarded(
            frame_set, lambda: self._see(frame_set, config, lambda: False).visual_tokens
        )
        return seen.clone()  # an engine writes the next sweep's over its own

    @torch.inference_mode()
    def selection_features(self, visual_tokens: Tensor) -> Tensor:
        """Return what tokens are chosen by with `prune_layer` 0: [pictures, tokens, hidden].

        Args:
            visual_tokens: Of one sweep, from `encode`.
        """
        prompt = self._build_prompt('', tuple(self._config.cameras))
        inputs = self._family.embed_prefix(prompt, visual_tokens)
        return torch.stack([inputs.embeddings[0, view] for view in inputs.views])

    def answer_tokens(
        self,
        frame_set: FrameSet,
        visual_tokens: Tensor,
        questions: Sequence[str],
        *,
        keep_indices: Sequence[Tensor] | None = None,
        must_stop: Callable[[], bool] = lambda: False,
    ) -> list[DrivingAnswer]:
        """Answer questions about a sweep that the vision encoder has seen before.

        Args:
            frame_set: Names the cameras; its payloads are not looked at.
            visual_tokens: Of the sweep, from `encode`, on this pipeline's device.
            questions: One or more.
            keep_indices: Per camera the kept indices, int64, ascending; None: chosen as ever.
            must_stop: As for `answer`.

        Raises:
            InferenceError: A model stage failed.
        """
        sweep = _Sweep(
            frame_set=frame_set,
            config=self._config,
            visual_tokens=visual_tokens,
            clock=StageClock(self._device),
            started_ns=time.monotonic_ns(),
            must_stop=must_stop,
            keep_indices=keep_indices,
        )
        return self._guarded(frame_set, lambda: self._answer_all(sweep, questions, None))

    def _guarded(self, frame_set: FrameSet, work: Callable[[], T]) -> T:
        """Return what `work` returns, its faults translated.

        Memory that it took is free after a fault, and so are the buffers of the decoder.
        """
        try:
            return work()
        except (RuntimeError, ValueError, IndexError) as err:
            # torch reports out of memory, bad shapes and device faults as these. A traceback would
            # hold everything that was computed so far for as long as somebody keeps the error.
            traceback.clear_frames(err.__traceback__)
            self._family.decoder.release()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            reason = f'{type(err).__name__}: {str(err).partition(chr(10))[0]}'
            raise InferenceError(f'sweep {frame_set.stamp_ns}: {reason}{_remedy(err)}') from err

    def _choose(
        self,
        sweep: _Sweep,
        question: str,
        choices: Sequence[str],
        answers: Sequence[Sequence[int]],
    ) -> DrivingChoice:
        family = self._family
        prompt = self._build_prompt(question, tuple(sweep.frame_set.frames))
        reading = self._read(sweep, prompt, (), 1)
        text = family.embed_text(prompt.suffix, reading.end_position)
        asked, logits = family.decoder.extend(reading.prefix, [text])
        scores = score_answers(
            family.decoder,
            asked,
            logits,
            answers,
            embed=family.embed,
            end_token_ids=family.end_token_ids,
        )
        return DrivingChoice(
            stamp_ns=sweep.frame_set.stamp_ns,
            question=question,
            model=self.model_name,
            log_likelihoods=dict(zip(choices, scores, strict=True)),
            tokens_kept={camera: len(keep) for camera, keep in reading.kept.items()},
        )

    def _see(
        self, frame_set: FrameSet, config: DriveConfig, must_stop: Callable[[], bool]
    ) -> _Sweep:
        """Everything before the language model: frames to visual tokens."""
        started_ns = time.monotonic_ns()
        clock = StageClock(self._device)
        with clock.stage('decode'):
            decoded = list(self._pool.map(decode_frame, frame_set.frames.values()))
        with clock.stage('preprocess'):
            frames = self._preprocess(decoded)
        with clock.stage('encode'):
            visual_tokens = self._encoder.encode(frames)
        return _Sweep(
            frame_set=frame_set,
            config=config,
            visual_tokens=visual_tokens,
            clock=clock,
            started_ns=started_ns,
            must_stop=_deadline(config.deadline_ms, started_ns, must_stop),
        )

    def _preprocess(self, decoded: Sequence[DecodedFrame]) -> Tensor:
        """Make what the encoder takes: whole frames, or pixel_values."""
        if self.mosaic is not None:
            decoded = [self.mosaic.stitch(decoded)]
        if self._frames is not None:
            return self._frames.fill(decoded, self._pool)
        pictures = list(
            self._pool.map(lambda frame: resize_frame(frame, self._processing), decoded)
        )
        return normalize(pictures, self._processing, self._device)

    def _answer_all(
        self, sweep: _Sweep, questions: Sequence[str], on_partial: OnPartial | None
    ) -> list[DrivingAnswer]:
        cameras = tuple(sweep.frame_set.frames)
        prompts = [self._build_prompt(question, cameras) for question in questions]
        opening, endings = split_opening([prompt.suffix for prompt in prompts])
        reading = self._read(sweep, prompts[0], opening, len(questions))
        answers: list[DrivingAnswer] = []
        size = sweep.config.question_batch
        for start in range(0, len(questions), size):
            batch = slice(start, start + size)
            if start and sweep.must_stop():
                answers += self._leave_unanswered(sweep, reading, questions[start:])
                break
            answers += self._answer_batch(
                sweep, reading, questions[batch], endings[batch], on_partial
            )
        total_ms = (time.monotonic_ns() - sweep.frame_set.first_arrival_ns) / NS_PER_MS
        return [replace(a, times=replace(a.times, total_ms=total_ms)) for a in answers]

    def _read(
        self, sweep: _Sweep, prompt: Prompt, opening: Sequence[int], num_questions: int
    ) -> _Reading:
        """Prefill what all questions share: the views, and the words before the questions part.

        Tokens are dropped on the way, before decoder layer `prune_layer`.
        """
        family = self._family
        kept: list[Tensor] = []

        def select(states: Tensor) -> Sequence[Tensor]:
            with sweep.clock.stage('select'):
                kept.extend(sweep.keep_indices or self._select(sweep, states))
            return kept if self.mosaic is None else [torch.cat(kept).sort().values]

        with sweep.clock.stage('prefill'):
            inputs = family.embed_prefix(prompt, sweep.visual_tokens)
            prefix = family.decoder.prefill(
                inputs, select=select, prune_layer=sweep.config.prune_layer
            )
            if opening:
                inputs = family.embed_text(opening, inputs.end_position)
                prefix, _ = family.decoder.extend(prefix, [inputs])
        on_host = (indices.cpu().numpy() for indices in kept)
        return _Reading(
            prefix=prefix,
            end_position=inputs.end_position,
            kept=dict(zip(sweep.frame_set.frames, on_host, strict=True)),
            prefill_share_ms=sweep.clock.durations_ms['prefill'] / num_questions,
        )

    def _select(self, sweep: _Sweep, states: Tensor) -> list[Tensor]:
        """Return per camera the kept indices into the tokens of its picture."""
        config, cameras = sweep.config, tuple(sweep.frame_set.frames)
        regions = [self._regions[camera] for camera in cameras] if self._regions else []
        sizes = [len(region.indices) for region in regions] or [states.shape[1]] * len(cameras)
        num_keep = [
            num_keep_from_retention(size, config.retention_ratio_of(camera))
            for size, camera in zip(sizes, cameras, strict=True)
        ]
        views = [states[:, region.indices] for region in regions]
        if config.allocation == 'adaptive':
            weights = [config.retention_ratio_of(camera) for camera in cameras]
            kept = select_adaptively(views or [states], num_keep, weights)
        elif regions:
            kept = [
                select_tokens(view, [count], config.selector, grid_size=region.grid)[0]
                for view, count, region in zip(views, num_keep, regions, strict=True)
            ]
        else:
            kept = select_tokens(states, num_keep, config.selector, grid_size=self.grid)
        if not regions:
            return kept
        return [region.indices[indices] for region, indices in zip(regions, kept, strict=True)]

    def _answer_batch(
        self,
        sweep: _Sweep,
        reading: _Reading,
        questions: Sequence[str],
        endings: Sequence[Sequence[int]],
        on_partial: OnPartial | None,
    ) -> list[DrivingAnswer]:
        family = self._family
        clock = StageClock(self._device)
        with clock.stage('prefill'):
            texts = [family.embed_text(ids, reading.end_position) for ids in endings]
            asked, logits = family.decoder.extend(
                reading.prefix, texts, room=sweep.config.max_new_tokens
            )
        ttft_ms = sweep.clock.elapsed_ms()
        with clock.stage('generate'):
            generations = generate_greedy(
                family.decoder,
                asked,
                logits,
                embed=family.embed,
                max_new_tokens=sweep.config.max_new_tokens,
                end_token_ids=family.end_token_ids,
                must_stop=sweep.must_stop,
                is_answered=self._watch(sweep.config.stop, questions, on_partial),
            )
        times = replace(
            _shared_times(sweep),
            prefill_ms=reading.prefill_share_ms + clock.durations_ms['prefill'] / len(questions),
            ttft_ms=ttft_ms,
            generate_ms=clock.durations_ms['generate'] / len(questions),
        )
        return [
            self._to_answer(sweep, reading, question, generation, times)
            for question, generation in zip(questions, generations, strict=True)
        ]

    def _leave_unanswered(
        self, sweep: _Sweep, reading: _Reading, questions: Sequence[str]
    ) -> list[DrivingAnswer]:
        times = replace(_shared_times(sweep), prefill_ms=reading.prefill_share_ms)
        nothing = Generation((), math.nan, Cut.DEADLINE)
        return [
            self._to_answer(sweep, reading, question, nothing, times) for question in questions
        ]

    def _watch(
        self, stop: Sequence[str], questions: Sequence[str], on_partial: OnPartial | None
    ) -> Callable[[int, Sequence[int]], bool] | None:
        """Return what looks at answers while they grow; None where nobody has to."""
        if not stop and on_partial is None:
            return None

        def is_answered(row: int, token_ids: Sequence[int]) -> bool:
            text = self._family.text_of(token_ids)
            kept = cut_at(text, stop)
            if on_partial is not None:
                # The last character may lack bytes that the next token brings.
                on_partial(questions[row], kept.rstrip(INCOMPLETE_CHARACTER).strip())
            return len(kept) < len(text)

        return is_answered

    def _to_answer(
        self,
        sweep: _Sweep,
        reading: _Reading,
        question: str,
        generation: Generation,
        times: StageTimes,
    ) -> DrivingAnswer:
        frames = sweep.frame_set.frames
        text = self._family.text_of(generation.token_ids)
        num_tokens = dict.fromkeys(frames, sweep.visual_tokens.shape[1])
        for camera in self._regions.keys() & frames.keys():
            num_tokens[camera] = len(self._regions[camera].indices)
        return DrivingAnswer(
            stamp_ns=sweep.frame_set.stamp_ns,
            question=question,
            answer=cut_at(text, sweep.config.stop).strip(),
            model=self.model_name,
            encoder=self.encoder_identity,
            camera_stamps_ns={name: frame.stamp_ns for name, frame in frames.items()},
            tokens_total=num_tokens,
            keep_indices=reading.kept,
            mean_log_probability=generation.mean_log_probability,
            num_generated_tokens=len(generation.token_ids),
            cut=generation.cut,
            times=times,
        )


def default_num_threads() -> int:
    """Return torch's number of threads less one, which is left for the camera callbacks."""
    return max(1, torch.get_num_threads() - 1)


def _remedy(err: Exception) -> str:
    out_of_memory = isinstance(err, torch.OutOfMemoryError) or 'allocate memory' in str(err)
    if not out_of_memory:
        return ''
    return '; lower retention_ratio, question_batch or max_new_tokens to need less memory'


def _engine_request(
    config: DriveConfig, checkpoint: Checkpoint, processing: ImageProcessing
) -> EngineRequest:
    return EngineRequest(
        model_name=checkpoint.folder.name,
        model_folder=config.model,
        vision_sha256=cache(lambda: hash_vision_part(checkpoint)),
        processing=processing.to_json(),
        num_views=_num_pictures(config, checkpoint),
    )


def _num_pictures(config: DriveConfig, checkpoint: Checkpoint) -> int:
    return 1 if checkpoint.mosaic is not None else len(config.cameras)


def _check_cameras(config: DriveConfig, checkpoint: Checkpoint) -> None:
    """Raise `ConfigError` where a camera has no place in the picture that the model takes."""
    mosaic = checkpoint.mosaic
    strangers = [name for name in config.cameras if mosaic and name not in mosaic.cameras]
    if mosaic and strangers:
        raise ConfigError(
            f'cameras: got {strangers[0]}, allowed with {checkpoint.name}: '
            f'{", ".join(mosaic.cameras)}, which are stitched into the picture that it takes'
        )


def _find_regions(
    mosaic: Mosaic | None, grid: tuple[int, int], device: torch.device
) -> dict[str, Region]:
    if mosaic is None:
        return {}
    return {camera: mosaic.region(camera, grid, device) for camera in mosaic.cameras}


def _make_frame_stack(
    encoder: VisionEncoder, num_views: int, device: torch.device
) -> FrameStack | None:
    takes = encoder.input_spec
    if takes.kind != FRAMES:
        return None
    return FrameStack(num_views, takes.height, takes.width, pinned=device.type == 'cuda')


def _deadline(
    deadline_ms: float, started_ns: int, must_stop: Callable[[], bool]
) -> Callable[[], bool]:
    """Return a check that is True once `deadline_ms` (0: never) after `started_ns` are over."""
    if deadline_ms == 0.0:
        return must_stop
    end_ns = started_ns + int(deadline_ms * NS_PER_MS)
    return lambda: time.monotonic_ns() >= end_ns or must_stop()


def _shared_times(sweep: _Sweep) -> StageTimes:
    frame_set, shared = sweep.frame_set, sweep.clock.durations_ms
    return StageTimes(
        sync_wait_ms=(frame_set.closed_ns - frame_set.first_arrival_ns) / NS_PER_MS,
        queue_ms=(sweep.started_ns - frame_set.closed_ns) / NS_PER_MS,
        decode_ms=shared.get('decode', 0.0),
        preprocess_ms=shared.get('preprocess', 0.0),
        encode_ms=shared.get('encode', 0.0),
        select_ms=shared['select'],
    )
