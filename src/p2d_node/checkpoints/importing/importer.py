"""Writes the checkpoint that an import plan describes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from p2d_node.checkpoints.importing.folder import new_checkpoint_folder
from p2d_node.checkpoints.importing.plan import checked_config, ImportPlan
from p2d_node.checkpoints.importing.streaming import (
    check_steps,
    OnProgress,
    SHARD_BYTES,
    write_weights,
)
from p2d_node.durable_files import write_json
import torch
from transformers import GenerationConfig


@dataclass(frozen=True, slots=True)
class Imported:
    """The result of an import.

    Attributes:
        folder: The new checkpoint.
        model_type: Its family.
        num_weights: Number of its tensors.
        num_bytes: Size of its tensors.
        notes: Messages for the user.
    """

    folder: Path
    model_type: str
    num_weights: int
    num_bytes: int
    notes: tuple[str, ...]


def import_checkpoint(
    plan: ImportPlan,
    out: Path,
    *,
    on_progress: OnProgress,
    shard_bytes: int = SHARD_BYTES,
) -> Imported:
    """Write the checkpoint that `plan` describes.

    Args:
        plan: The result of `plan_import` of one of the formats.
        out: The folder to create; it appears when it is complete.
        on_progress: Called as weights are written.
        shard_bytes: Largest shard.

    Raises:
        ConfigError: Weights are missing, not expected or of a wrong shape, or `out` exists or
            cannot be written.
    """
    with checked_config(), torch.device('meta'):
        wanted = plan.model_class(plan.config).state_dict()
    total_bytes = check_steps(plan.steps, plan.source, wanted, plan.unexpected)
    with new_checkpoint_folder(out, total_bytes) as folder:
        _write_settings(plan, folder)
        write_weights(
            folder,
            plan.steps,
            plan.source,
            total_bytes=total_bytes,
            on_progress=on_progress,
            shard_bytes=shard_bytes,
        )
    return Imported(out, plan.config.model_type, len(wanted), total_bytes, tuple(plan.notes))


def _write_settings(plan: ImportPlan, folder: Path) -> None:
    plan.config.architectures = [plan.model_class.__name__]
    plan.config.dtype = plan.source.main_dtype()
    plan.config.save_pretrained(folder)
    GenerationConfig(eos_token_id=list(plan.end_token_ids)).save_pretrained(folder)
    plan.tokenizer.save_pretrained(folder)
    write_json(folder / 'preprocessor_config.json', plan.image_processor)
