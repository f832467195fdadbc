"""Held-out sweeps, as the node would see them, and a trained model that is asked about them.

Frames are drawn at full size, coded as JPEG and prepared by `p2d_node`. All questions of a sweep
are answered in one forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from p2d_node.benchmarks.selection import choose_tokens
from p2d_node.errors import checkpoint_faults
from p2d_node.image_decoding import decode_frame
from p2d_node.preprocessing import ImageProcessing, normalize, resize_frame
from p2d_node.records import CameraFrame, CompressedImage, NUSCENES_CAMERAS
from p2d_node.token_selection import num_keep_from_retention
from p2d_node.units import NS_PER_S
import torch
from torch import Tensor

from p2d_sim.cameras import CAMERAS, FULL_HEIGHT_PX, FULL_WIDTH_PX
from p2d_sim.drawing import render_sweep
from p2d_sim.ground_truth import find_truth, shrink_ids
from p2d_sim.questions import ask_with_seed, Question
from p2d_sim.sweeps import FIRST_STAMP_S, METRES_PER_PX, to_jpeg
from p2d_sim.training.batches import collate_packed
from p2d_sim.training.losses import AnswerHeads, PatchHeads
from p2d_sim.training.model import load_trained
from p2d_sim.training.packed_forward import patch_places, Pruning
from p2d_sim.training.packing import Packed, Packer
from p2d_sim.training.plan import ModelSize
from p2d_sim.training.samples import draw_snapshot, HELD_OUT_SEED, label_patches
from p2d_sim.training.scoring import right_answers
from p2d_sim.training.trainer import Parts

STAMP_NS = FIRST_STAMP_S * NS_PER_S
"""Capture stamp of all frames, nanoseconds since the epoch."""

MAX_TOKENS, MAX_QUESTIONS = 1280, 96
"""Enough for all questions of a sweep: an evaluation leaves none out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """A sweep that no training has seen, with its visual tokens and its questions.

    Attributes:
        seed: Seed of the scene.
        frames: Camera name to JPEG.
        visual: Visual tokens, float32 [1, views, patches, hidden].
        packed: All questions about the sweep.
    """

    seed: int
    frames: dict[str, bytes]
    visual: Tensor
    packed: Packed


def load_parts(folder: Path) -> Parts:
    """Load a trained model, float32 on the CPU; its auxiliary heads get random weights.

    Raises:
        ConfigError: The folder holds no trained model.
    """
    tokenizer, model = load_trained('model', folder)
    with checkpoint_faults(folder):
        return _make_parts(tokenizer, model)


def _make_parts(tokenizer: Any, model: Any) -> Parts:
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
    """Draws held-out sweeps and asks a trained model about them. Not thread-safe."""

    def __init__(
        self, folder: Path, *, height: int = FULL_HEIGHT_PX, width: int = FULL_WIDTH_PX
    ) -> None:
        """Load the model in `folder`; frames are drawn at `height` x `width` pixels.

        Raises:
            ConfigError: The folder holds no trained model.
        """
        self.folder = folder
        self.parts = load_parts(folder)
        self._processing = ImageProcessing.from_folder(folder)
        self._height, self._width = height, width

    def sweeps(self, num_questions: int) -> Iterator[HeldOut]:
        """Yield held-out sweeps until they have at least `num_questions` questions."""
        asked = 0
        for seed in count(HELD_OUT_SEED):
            if asked >= num_questions:
                return
            sweep = self.sweep(seed)
            asked += len(sweep.packed.asked)
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
        ids = np.stack([shrink_ids(view.ids) for view in views])
        truth = find_truth(snapshot, cameras, list(ids))
        questions = ask_with_seed(truth, seed)
        packed = self._pack(questions, label_patches(truth, ids, self.parts.size.grid).ids)
        return HeldOut(seed=seed, frames=frames, visual=self.encode(frames), packed=packed)

    def _pack(self, questions: Sequence[Question], patch_ids: np.ndarray) -> Packed:
        return self.parts.packer.pack(
            questions, patch_ids, max_tokens=MAX_TOKENS, max_questions=MAX_QUESTIONS
        )

    @torch.inference_mode()
    def encode(self, frames: dict[str, bytes]) -> Tensor:
        """Encode JPEG frames with the node's own preprocessing.

        Returns:
            Visual tokens, float32 [1, views, patches, hidden].
        """
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
        """Return the visual tokens of six grey images, float32 [1, views, patches, hidden]."""
        grey = to_jpeg(np.full((self._height, self._width, 3), 127, np.uint8))
        return self.encode(dict.fromkeys(NUSCENES_CAMERAS, grey))

    @torch.inference_mode()
    def check_answers(
        self, packed: Packed, visual: Tensor, pruning: Pruning | None = None
    ) -> list[bool]:
        """Return for each packed question whether its answer is right, word for word.

        Args:
            packed: The questions.
            visual: Visual tokens, float32 [1, views, patches, hidden].
            pruning: Drops visual tokens; None keeps all.
        """
        batch = collate_packed([packed])
        hidden, _ = self.parts.forward_tokens(visual, batch, pruning)
        logits = self.parts.model.lm_head(hidden.asked)
        return [bool(good) for good in right_answers(logits, batch, len(packed.asked))]

    def pruning(self, method: str, retention: float, layer: int) -> Pruning:
        """Return what drops visual tokens as the pipeline does.

        Args:
            method: Name of the selector, or `ADAPTIVE`.
            retention: Kept tokens of all tokens of a view, above 0 to 1.
            layer: Layer before which tokens are dropped, 0: from the input.
        """
        views, tokens = len(NUSCENES_CAMERAS), self.parts.size.num_tokens
        places = patch_places(self.parts.packer.segments, tokens, torch.device('cpu'))
        places = places.view(views, tokens)
        num_keep = [num_keep_from_retention(tokens, retention)] * views

        def choose(prefix: Tensor) -> Tensor:
            seen = prefix[0, places.flatten()].view(views, tokens, -1)
            stay = torch.ones(prefix.shape[1], dtype=torch.bool)
            stay[places.flatten()] = False
            for view, indices in enumerate(choose_tokens(seen, num_keep, method)):
                stay[places[view, indices]] = True
            return stay.nonzero()[:, 0]

        return Pruning(layer=layer, choose=choose)
