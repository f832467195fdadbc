"""Settings of a training run and of its model; importing them needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

STAGES = ('encoder', 'joint')
"""The encoder alone on labels of patches, then everything together on questions."""


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Sizes of a model.

    Attributes:
        image_px: Side of the encoder's input, pixels.
        patch_px: Side of a patch, pixels.
        vision_hidden: Width of the encoder.
        vision_layers: Depth of the encoder.
        text_hidden: Width of the language model.
        text_layers: Depth of the language model.
    """

    image_px: int = 168
    patch_px: int = 12
    vision_hidden: int = 192
    vision_layers: int = 5
    text_hidden: int = 256
    text_layers: int = 5

    @property
    def grid(self) -> int:
        """Patches along a side of a view."""
        return self.image_px // self.patch_px

    @property
    def num_tokens(self) -> int:
        """Visual tokens per view."""
        return self.grid**2


MINI = ModelSize()
TINY = ModelSize(
    image_px=96, patch_px=12, vision_hidden=64, vision_layers=2, text_hidden=64, text_layers=3
)
"""For tests and the smoke run."""


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Settings of a training run; pairs are for the two `STAGES`.

    Attributes:
        folder: Folder of checkpoints and log.
        size: Size of the model.
        seed: Seed of the initial weights.
        steps: Steps per stage.
        sweeps: Sweeps per step.
        learning_rates: Highest learning rate per stage.
        start: Trained model that a new run starts from; None: random weights.
        device: `cpu` or `cuda`.
        workers: Processes that render; 0 renders in the training process.
        save_minutes: Time between checkpoints.
        check_minutes: Time between evaluations on held-out sweeps; 0: never.
    """

    folder: Path
    size: ModelSize = MINI
    seed: int = 0
    steps: tuple[int, int] = (3000, 4000)
    sweeps: int = 4
    learning_rates: tuple[float, float] = (2e-3, 1.5e-3)
    start: Path | None = None
    device: str = 'cpu'
    workers: int = 1
    save_minutes: float = 4.0
    check_minutes: float = 6.0
