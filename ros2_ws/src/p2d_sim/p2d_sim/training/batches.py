"""Batches of newly rendered sweeps from worker processes; every step has its own seeds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from p2d_sim.questions import ask_with_seed
from p2d_sim.training.packing import Packed, Packer
from p2d_sim.training.plan import ModelSize
from p2d_sim.training.samples import make_sample, PatchLabels, Sample
from p2d_sim.training.tokenizer import make_tokenizer

Batch = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """Contents of the batches of one stage.

    Attributes:
        size: Size of the model.
        sweeps: Sweeps per batch.
        first_seed: Seed of the first sweep of step 0.
        with_questions: Add packed questions to the batches.
    """

    size: ModelSize
    sweeps: int
    first_seed: int
    with_questions: bool


class SweepBatches(Dataset[Batch]):
    """Maps the number of a step to its batch, which is the same in every run."""

    def __init__(self, plan: BatchPlan) -> None:
        self._plan = plan
        self._packer = Packer(make_tokenizer())

    def __getitem__(self, step: int) -> Batch:
        """Render and pack the sweeps of `step`."""
        cv2.setNumThreads(1)
        plan = self._plan
        first = plan.first_seed + step * plan.sweeps
        samples = [
            make_sample(first + i, plan.size.image_px, plan.size.grid) for i in range(plan.sweeps)
        ]
        batch = collate_samples(samples)
        if plan.with_questions:
            packed = [
                pack_sample(self._packer, sample, first + i) for i, sample in enumerate(samples)
            ]
            batch |= collate_packed(packed)
        return batch


def pack_sample(packer: Packer, sample: Sample, seed: int) -> Packed:
    """Ask questions about `sample` and pack them."""
    return packer.pack(ask_with_seed(sample.truth, seed), sample.labels.ids)


def collate_samples(samples: list[Sample]) -> Batch:
    """Stack images and patch labels, each [sweeps, ...]."""
    batch = {'pixels': torch.from_numpy(np.stack([sample.pixels for sample in samples]))}
    for field in fields(PatchLabels):
        arrays = [getattr(sample.labels, field.name) for sample in samples]
        batch[field.name] = torch.from_numpy(np.stack(arrays))
    return batch


def collate_packed(packed: list[Packed]) -> Batch:
    """Stack packed questions, each [sweeps, ...]."""
    names = [field.name for field in fields(Packed) if field.name != 'asked']
    return {
        name: torch.from_numpy(np.stack([getattr(row, name) for row in packed])) for name in names
    }


def batches_from(
    plan: BatchPlan, start: int, stop: int, *, workers: int
) -> Iterator[tuple[int, Batch]]:
    """Yield (step, batch) for the steps from `start` up to but not including `stop`.

    Args:
        plan: Contents of the batches.
        start: First step.
        stop: End of the steps.
        workers: Processes that render; 0 renders in this process.
    """
    options: dict[str, Any] = {'prefetch_factor': 3} if workers else {}
    loader = DataLoader(
        SweepBatches(plan),
        sampler=range(start, stop),
        batch_size=None,
        num_workers=workers,
        **options,
    )
    yield from zip(range(start, stop), loader, strict=True)
