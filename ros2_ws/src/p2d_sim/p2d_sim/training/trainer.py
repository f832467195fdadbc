"""One training step of each stage, on a CPU or a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from p2d_node.errors import BackendUnavailableError
import torch
from torch import nn, Tensor

from p2d_sim.training.losses import (
    answer_loss,
    AnswerHeads,
    JOINT_WEIGHTS,
    later_layer,
    LOOK_LAYERS,
    look_loss,
    Losses,
    option_loss,
    PatchHeads,
    VIEW_LAYER,
)
from p2d_sim.training.model import make_model
from p2d_sim.training.packed_forward import (
    Hidden,
    lay_out_prefix,
    patch_places,
    Pruning,
    question_mask,
    run_packed,
)
from p2d_sim.training.packing import Packer
from p2d_sim.training.plan import ModelSize
from p2d_sim.training.tokenizer import make_tokenizer

NUM_VIEWS = 6
WEIGHT_DECAY = 0.02


def encode(model: Any, pixels: Tensor) -> Tensor:
    """Return the encoder's features before its last normalisation, [views, patches, hidden].

    Args:
        model: transformers' LLaVA-OneVision.
        pixels: RGB uint8 [sweeps, views, height, width, 3].
    """
    flat = pixels.flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    features: Tensor = model.model.vision_tower(flat, output_hidden_states=True).hidden_states[-1]
    return features


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Everything that is trained, and the tokenizer's view of a prompt."""

    size: ModelSize
    model: Any
    patch_heads: PatchHeads
    answer_heads: AnswerHeads
    packer: Packer

    @classmethod
    def fresh(cls, size: ModelSize, seed: int, device: torch.device) -> Parts:
        """Return untrained parts on `device`."""
        tokenizer = make_tokenizer()
        model = make_model(size, tokenizer, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            patch_heads, answer_heads = PatchHeads(size), AnswerHeads(size, len(tokenizer))
        return cls(
            size=size,
            model=model.to(device),
            patch_heads=patch_heads.to(device),
            answer_heads=answer_heads.to(device),
            packer=Packer(tokenizer),
        )

    def module(self) -> nn.ModuleDict:
        """Return all that is trained under one roof, for optimizer and checkpoint."""
        return nn.ModuleDict(
            {
                'model': self.model,
                'patch_heads': self.patch_heads,
                'answer_heads': self.answer_heads,
            }
        )

    def encoder_losses(self, batch: dict[str, Tensor]) -> Losses:
        """Losses of the encoder stage."""
        losses: Losses = self.patch_heads(encode(self.model, batch['pixels']), batch)
        losses['total'] = torch.stack(list(losses.values())).sum()
        return losses

    def joint_losses(self, batch: dict[str, Tensor]) -> Losses:
        """Losses of the joint stage: answers first, then everything that helps to find them."""
        features = encode(self.model, batch['pixels'])
        hidden, places = self.understand(features, batch)
        losses: Losses = self.answer_heads(hidden, batch)
        losses['look'] = look_loss(hidden.looks, batch, places)
        if hidden.last_look is not None:
            losses['option'] = option_loss(hidden.last_look, batch)
        losses['patches'] = torch.stack(list(self.patch_heads(features, batch).values())).sum()
        answers = answer_loss(self.model.lm_head(hidden.asked), batch)
        helping = [JOINT_WEIGHTS[name] * loss for name, loss in losses.items()]
        losses['answer'] = answers
        losses['total'] = answers + torch.stack(helping).sum()
        return losses

    def understand(self, features: Tensor, batch: dict[str, Tensor]) -> tuple[Hidden, Tensor]:
        """Run projector and language model over packed questions.

        Args:
            features: Encoder features [sweeps * views, patches, hidden].
            batch: Packed questions.

        Returns:
            Its hidden states, and where the visual tokens lie in the prefix.
        """
        visual = self.model.model.multi_modal_projector(features)
        return self.read(visual.unflatten(0, (-1, NUM_VIEWS)), batch)

    def read(
        self, visual: Tensor, batch: dict[str, Tensor], pruning: Pruning | None = None
    ) -> tuple[Hidden, Tensor]:
        """Run the language model over visual tokens [sweeps, views, patches, hidden]."""
        sweeps = visual.shape[0]
        segments, preamble = self.packer.segments, self.packer.preamble
        prefix = lay_out_prefix(self.model, segments, preamble, visual)
        length, device = prefix.shape[1], prefix.device
        asked = self.model.get_input_embeddings()(batch['tokens']).to(prefix.dtype)
        hidden = run_packed(
            self.model.model.language_model,
            prefix,
            torch.arange(length, device=device).expand(sweeps, -1),
            asked,
            batch['positions'] + length,
            mask=question_mask(batch['owner']),
            looks_at=LOOK_LAYERS,
            answer_at=batch['answer_at'],
            keep=(VIEW_LAYER, later_layer(self.size.text_layers)),
            pruning=pruning,
        )
        return hidden, patch_places(segments, visual.shape[2], device)


def make_optimizers(
    module: nn.Module, learning_rate: float, *, scales: Mapping[str, float]
) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the transformers, and AdamW for everything else.

    Args:
        module: From `Parts.module`.
        learning_rate: Root mean square of a step, for both.
        scales: Beginning of a parameter's name to a factor on its learning rate; 0 leaves it out.

    Raises:
        BackendUnavailableError: This torch has no Muon.
    """
    if not hasattr(torch.optim, 'Muon'):
        raise BackendUnavailableError(
            f'training: got torch {torch.__version__}, needed: 2.9 or newer, which has Muon'
        )
    matrices: dict[float, list[nn.Parameter]] = {}
    rest: dict[float, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        scale = next((value for start, value in scales.items() if name.startswith(start)), 1.0)
        if scale > 0.0:
            inner = parameter.dim() == 2 and '.layers.' in name
            (matrices if inner else rest).setdefault(scale, []).append(parameter)
    return [
        torch.optim.Muon(
            _groups(matrices),
            lr=learning_rate,
            weight_decay=WEIGHT_DECAY,
            adjust_lr_fn='match_rms_adamw',
        ),
        torch.optim.AdamW(
            _groups(rest), lr=learning_rate, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY
        ),
    ]


def _groups(by_scale: Mapping[float, list[nn.Parameter]]) -> list[dict[str, Any]]:
    return [{'params': params, 'scale': scale} for scale, params in sorted(by_scale.items())]
