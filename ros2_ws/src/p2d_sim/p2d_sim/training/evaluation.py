"""Held-out accuracy of a finished model: overall, per kind, without pictures, with few tokens.

Frames are drawn at full size, coded as JPEG and prepared by `p2d_node` itself. Questions of a
sweep are answered together; `agreement_with_pipeline` shows that `DrivingPipeline` says the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from p2d_node.benchmarks.selection import ADAPTIVE, choose_tokens
from p2d_node.config import DriveConfig
from p2d_node.image_decoding import decode_frame
from p2d_node.pipeline import DrivingPipeline
from p2d_node.preprocessing import ImageProcessing, normalize, resize_frame
from p2d_node.records import CameraFrame, CompressedImage, FrameSet, NUSCENES_CAMERAS
from p2d_node.token_selection import num_keep_from_retention
import torch
from torch import Tensor
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from p2d_sim.cameras import CAMERAS, FULL_HEIGHT_PX, FULL_WIDTH_PX
from p2d_sim.drawing import render_sweep
from p2d_sim.ground_truth import find_truth
from p2d_sim.questions import ask_all, Question
from p2d_sim.sweeps import METRES_PER_PX, to_jpeg
from p2d_sim.training.batches import collate_packed
from p2d_sim.training.losses import AnswerHeads, PatchHeads
from p2d_sim.training.model import ModelSize
from p2d_sim.training.packed_forward import Pruning
from p2d_sim.training.packing import Packed, Packer
from p2d_sim.training.samples import draw_snapshot, HELD_OUT_SEED, label_patches
from p2d_sim.training.scoring import right_answers, Score
from p2d_sim.training.trainer import Parts

RETENTIONS = (1.0, 0.5, 0.25, 0.1, 0.05)
METHODS = ('tfps', ADAPTIVE, 'divprune', 'random', 'grid')
PRUNE_LAYERS = (0, 1)
STAMP_NS = 1_700_000_000_000_000_000
TRUTH_PX = 168
MAX_TOKENS, MAX_QUESTIONS = 1280, 96
"""Room for all questions of a sweep: none is left out in an evaluation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """A held-out sweep.

    Attributes:
        seed: Of the scene.
        frames: Camera to JPEG.
        visual: Visual tokens, float32 [1, views, patches, hidden].
        packed: All questions about it.
    """

    seed: int
    frames: dict[str, bytes]
    visual: Tensor
    packed: Packed


def load_parts(folder: Path) -> Parts:
    """Load a finished model for evaluation, float32 on the CPU; its auxiliary heads are gone."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    ).eval()
    vision, text = model.config.vision_config, model.config.text_config
    size = ModelSize(
        image_px=vision.image_size,
        patch_px=vision.patch_size,
        vision_hidden=vision.hidden_size,
        vision_layers=vision.num_hidden_layers,
        text_hidden=text.hidden_size,
        text_layers=text.num_hidden_layers,
    )
    return Parts(
        size=size,
        model=model,
        patch_heads=PatchHeads(size),
        answer_heads=AnswerHeads(size, len(tokenizer)),
        packer=Packer(tokenizer),
    )


class Evaluator:
    """Draws held-out sweeps and asks a model about them."""

    def __init__(
        self, folder: Path, *, height: int = FULL_HEIGHT_PX, width: int = FULL_WIDTH_PX
    ) -> None:
        """Load the model in `folder`; frames are drawn at `height` x `width`."""
        self.folder = folder
        self.parts = load_parts(folder)
        self._processing = ImageProcessing.from_folder(folder)
        self._height, self._width = height, width

    def sweeps(self, num_questions: int) -> Iterator[HeldOut]:
        """Yield held-out sweeps until they have `num_questions` questions."""
        asked, seed = 0, HELD_OUT_SEED
        while asked < num_questions:
            sweep = self.sweep(seed)
            asked, seed = asked + len(sweep.packed.asked), seed + 1
            yield sweep

    def sweep(self, seed: int) -> HeldOut:
        """Draw and encode the sweep of `seed`."""
        snapshot = draw_snapshot(seed)
        cameras = list(CAMERAS.values())
        views = render_sweep(
            snapshot, cameras, self._height, self._width, metres_per_px=METRES_PER_PX
        )
        frames = {
            camera.name: to_jpeg(view.pixels) for camera, view in zip(cameras, views, strict=True)
        }
        size = (TRUTH_PX, TRUTH_PX)
        small = [cv2.resize(view.ids, size, interpolation=cv2.INTER_NEAREST) for view in views]
        ids = np.asarray(small, np.uint8)
        truth = find_truth(snapshot, cameras, list(ids))
        questions = ask_all(truth, np.random.default_rng((9, seed)))
        packed = self._pack(questions, label_patches(truth, ids, self.parts.size.grid).ids)
        return HeldOut(seed=seed, frames=frames, visual=self.encode(frames), packed=packed)

    def _pack(self, questions: Sequence[Question], patch_ids: np.ndarray) -> Packed:
        return self.parts.packer.pack(
            questions, patch_ids, max_tokens=MAX_TOKENS, max_questions=MAX_QUESTIONS
        )

    @torch.inference_mode()
    def encode(self, frames: dict[str, bytes]) -> Tensor:
        """Turn JPEG frames into visual tokens with the node's own preprocessing."""
        squares = []
        for camera in NUSCENES_CAMERAS:
            payload = CompressedImage(format='jpeg', data=frames[camera])
            decoded = decode_frame(CameraFrame(camera, STAMP_NS, payload))
            squares.append(resize_frame(decoded, self._processing))
        pixel_values = normalize(squares, self._processing, torch.device('cpu'))
        model = self.parts.model.model
        tower = model.vision_tower(pixel_values, output_hidden_states=True)
        visual: Tensor = model.multi_modal_projector(tower.hidden_states[-1])
        return visual[None]

    def blank(self) -> Tensor:
        """Return the visual tokens of six grey pictures."""
        grey = to_jpeg(np.full((self._height, self._width, 3), 127, np.uint8))
        return self.encode(dict.fromkeys(NUSCENES_CAMERAS, grey))

    @torch.inference_mode()
    def right(self, packed: Packed, visual: Tensor, pruning: Pruning | None = None) -> list[bool]:
        """Tell which questions are answered right, word for word."""
        batch = collate_packed([packed])
        hidden, _ = self.parts.read(visual, batch, pruning)
        logits = self.parts.model.lm_head(hidden.asked)
        return [bool(good) for good in right_answers(logits, batch, len(packed.asked))]

    def pruning(self, method: str, retention: float, layer: int) -> Pruning:
        """Return what drops visual tokens as the pipeline does."""
        places = self._places()
        views, tokens = places.shape
        num_keep = [num_keep_from_retention(tokens, retention)] * views

        def choose(prefix: Tensor) -> Tensor:
            seen = prefix[0, places.flatten()].view(views, tokens, -1)
            stay = torch.ones(prefix.shape[1], dtype=torch.bool)
            stay[places.flatten()] = False
            for view, indices in enumerate(choose_tokens(seen, num_keep, method)):
                stay[places[view, indices]] = True
            return stay.nonzero()[:, 0]

        return Pruning(layer=layer, choose=choose)

    def _places(self) -> Tensor:
        """Return where each view's tokens lie in the prefix, int64 [views, patches]."""
        tokens, start, rows = self.parts.size.num_tokens, 0, []
        for ids in self.parts.packer.segments:
            start += len(ids)
            rows.append(torch.arange(start, start + tokens))
            start += tokens + 1
        return torch.stack(rows)


def wilson(right: int, asked: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a proportion."""
    if asked == 0:
        return 0.0, 1.0
    share, spread = right / asked, z**2 / asked
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / asked + spread / (4 * asked))
    return max(0.0, middle - half), min(1.0, middle + half)


def summary(score: Score) -> dict[str, Any]:
    """Return what a score is reported as."""
    low, high = wilson(score.num_right, score.num_questions)
    return {
        'accuracy': round(score.overall, 4),
        'low': round(low, 4),
        'high': round(high, 4),
        'questions': score.num_questions,
        'choice': round(score.part_right(choice=True), 4),
        'free': round(score.part_right(choice=False), 4),
    }


def majority(sweeps: Sequence[HeldOut]) -> tuple[float, dict[str, float]]:
    """Return how often the most frequent answer of each kind is right, overall and per kind."""
    answers: dict[str, list[str]] = {}
    for sweep in sweeps:
        for question in sweep.packed.asked:
            answers.setdefault(question.kind, []).append(question.answer)
    best = {kind: max(map(given.count, set(given))) for kind, given in answers.items()}
    total = sum(len(given) for given in answers.values())
    shares = {kind: best[kind] / len(given) for kind, given in sorted(answers.items())}
    return sum(best.values()) / total, shares


def evaluate(
    evaluator: Evaluator, sweeps: Sequence[HeldOut], on_step: Callable[[], None]
) -> dict[str, Any]:
    """Return accuracy with all tokens, the controls, and the majority class."""
    scores = {name: Score() for name in ('pictures', 'blank', 'shuffled')}
    blank = evaluator.blank()
    for number, sweep in enumerate(sweeps):
        shuffled = sweeps[(number + 1) % len(sweeps)].visual
        pictures = {'pictures': sweep.visual, 'blank': blank, 'shuffled': shuffled}
        for name, visual in pictures.items():
            scores[name].add(sweep.packed.asked, evaluator.right(sweep.packed, visual))
        on_step()
    overall, shares = majority(sweeps)
    return {
        **{name: summary(score) for name, score in scores.items()},
        'majority': round(overall, 4),
        'kinds': {
            kind: {
                'right': right,
                'asked': asked,
                'accuracy': round(right / asked, 4),
                'majority': round(shares[kind], 4),
                'blank': _share(scores['blank'], kind),
                'shuffled': _share(scores['shuffled'], kind),
            }
            for kind, (right, asked) in scores['pictures'].per_kind().items()
        },
    }


def _share(score: Score, kind: str) -> float:
    right, asked = score.per_kind()[kind]
    return round(right / asked, 4)


def measure_retention(
    evaluator: Evaluator,
    sweeps: Sequence[HeldOut],
    on_step: Callable[[], None],
    *,
    layers: Sequence[int] = PRUNE_LAYERS,
) -> list[dict[str, Any]]:
    """Return accuracy per method, retention ratio and layer before which tokens are dropped.

    With everything kept, method and layer do not matter: that is measured once.
    """
    whole = summary(_score(evaluator, sweeps, None, on_step))
    rows = []
    for layer, method, retention in product(layers, METHODS, RETENTIONS):
        result = whole
        if retention < 1.0:
            pruning = evaluator.pruning(method, retention, layer)
            result = summary(_score(evaluator, sweeps, pruning, on_step))
        row = {'prune_layer': layer, 'method': method, 'retention_ratio': retention}
        rows.append({**row, **result})
    return rows


def _score(
    evaluator: Evaluator,
    sweeps: Sequence[HeldOut],
    pruning: Pruning | None,
    on_step: Callable[[], None],
) -> Score:
    score = Score()
    for sweep in sweeps:
        score.add(sweep.packed.asked, evaluator.right(sweep.packed, sweep.visual, pruning))
        on_step()
    return score


def agreement_with_pipeline(
    evaluator: Evaluator, sweeps: Sequence[HeldOut], *, method: str, retention: float
) -> tuple[int, int]:
    """Ask `DrivingPipeline` the same questions; returns on how many it agrees, and of how many.

    Agreement: it gives the right answer exactly where the packed evaluation says so.
    """
    config = DriveConfig(
        model=str(evaluator.folder),
        selector=method,
        retention_ratio=dict.fromkeys(NUSCENES_CAMERAS, retention),
        device='cpu',
        dtype='float32',
    )
    pipeline = DrivingPipeline.from_config(config)
    pruning = evaluator.pruning(method, retention, 0)
    agreed = asked = 0
    try:
        for sweep in sweeps:
            questions = sweep.packed.asked
            given = pipeline.answer(_frame_set(sweep), [q.text for q in questions])
            right = evaluator.right(sweep.packed, sweep.visual, pruning)
            for question, answer, good in zip(questions, given, right, strict=True):
                agreed += (answer.answer == question.answer) == good
                asked += 1
    finally:
        pipeline.close()
    return agreed, asked


def _frame_set(sweep: HeldOut) -> FrameSet:
    frames = {
        camera: CameraFrame(
            camera, STAMP_NS, CompressedImage(format='jpeg', data=sweep.frames[camera])
        )
        for camera in NUSCENES_CAMERAS
    }
    return FrameSet(stamp_ns=STAMP_NS, frames=frames, first_arrival_ns=0, closed_ns=0)
