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
    ATTENTION_LAYERS,
    attention_loss,
    JOINT_WEIGHTS,
    later_layer,
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
    run_packed,
)
from p2d_sim.training.packing import Packer
from p2d_sim.training.plan import ModelSize
from p2d_sim.training.tokenizer import make_tokenizer

NUM_VIEWS = 6
WEIGHT_DECAY = 0.02


def encode(model: Any, pixels: Tensor) -> Tensor:
    """Return the features of the vision encoder, float [sweeps * views, patches, hidden].

    Args:
        model: transformers' LLaVA-OneVision.
        pixels: RGB uint8 [sweeps, views, height, width, 3].
    """
    flat = pixels.flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    features: Tensor = model.model.vision_tower(flat, output_hidden_states=True).hidden_states[-1]
    return features


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The model, its auxiliary heads, and the packer that tokenises questions.

    Attributes:
        size: Size of the model.
        model: transformers' LLaVA-OneVision.
        patch_heads: Heads on the encoder, for training only.
        answer_heads: Heads on the language model, for training only.
        packer: Turns questions into tokens.
    """

    size: ModelSize
    model: Any
    patch_heads: PatchHeads
    answer_heads: AnswerHeads
    packer: Packer

    @classmethod
    def untrained(cls, size: ModelSize, seed: int, device: torch.device) -> Parts:
        """Return parts with random weights on `device`."""
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
        """Return all trained parts as one module, for optimizers and checkpoints."""
        return nn.ModuleDict(
            {
                'model': self.model,
                'patch_heads': self.patch_heads,
                'answer_heads': self.answer_heads,
            }
        )

    def encoder_losses(self, batch: dict[str, Tensor]) -> Losses:
        """Return the losses of the encoder stage, and their sum as `total`."""
        losses: Losses = self.patch_heads(encode(self.model, batch['pixels']), batch)
        losses['total'] = torch.stack(list(losses.values())).sum()
        return losses

    def joint_losses(self, batch: dict[str, Tensor]) -> Losses:
        """Return the losses of the joint stage, and their weighted sum as `total`.

        `answer` is the loss of the answers; the others are auxiliary.
        """
        features = encode(self.model, batch['pixels'])
        hidden, places = self.forward_features(features, batch)
        losses: Losses = self.answer_heads(hidden, batch)
        losses['attention'] = attention_loss(hidden.attention, batch, places)
        if hidden.last_attention is not None:
            losses['option'] = option_loss(hidden.last_attention, batch)
        losses['patches'] = torch.stack(list(self.patch_heads(features, batch).values())).sum()
        answers = answer_loss(self.model.lm_head(hidden.asked), batch)
        helping = [JOINT_WEIGHTS[name] * loss for name, loss in losses.items()]
        losses['answer'] = answers
        losses['total'] = answers + torch.stack(helping).sum()
        return losses

    def forward_features(
        self, features: Tensor, batch: dict[str, Tensor]
    ) -> tuple[Hidden, Tensor]:
        """Run projector and language model over packed questions.

        Args:
            features: Encoder features [sweeps * views, patches, hidden].
            batch: Packed questions.

        Returns:
            Hidden states, and the places of the visual tokens, see `forward_tokens`.
        """
        visual = self.model.model.multi_modal_projector(features)
        return self.forward_tokens(visual.unflatten(0, (-1, NUM_VIEWS)), batch)

    def forward_tokens(
        self, visual: Tensor, batch: dict[str, Tensor], pruning: Pruning | None = None
    ) -> tuple[Hidden, Tensor]:
        """Run the language model over visual tokens and packed questions.

        Args:
            visual: Visual tokens, float [sweeps, views, patches, hidden].
            batch: Packed questions.
            pruning: Drops visual tokens; None keeps all.

        Returns:
            Hidden states, and the places of the visual tokens in the prefix, int64
            [views * patches].
        """
        segments = self.packer.segments
        prefix = lay_out_prefix(self.model, segments, self.packer.preamble, visual)
        asked = self.model.get_input_embeddings()(batch['tokens']).to(prefix.dtype)
        hidden = run_packed(
            self.model.model.language_model,
            prefix,
            asked,
            batch,
            attention_layers=ATTENTION_LAYERS,
            keep_layers=(VIEW_LAYER, later_layer(self.size.text_layers)),
            pruning=pruning,
        )
        return hidden, patch_places(segments, visual.shape[2], prefix.device)


def make_optimizers(
    module: nn.Module, learning_rate: float, *, scales: Mapping[str, float]
) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the transformers, and AdamW for everything else.

    Args:
        module: From `Parts.module`.
        learning_rate: Learning rate of both; Muon's steps are scaled to those of AdamW.
        scales: First part of a parameter's name to a factor on its learning rate; parameters
            with factor 0 are not trained.

    Raises:
        BackendUnavailableError: torch is older than 2.9, the first version with Muon.
    """
    if not hasattr(torch.optim, 'Muon'):
        raise BackendUnavailableError(
            f'torch: got {torch.__version__}, needed for the optimizer Muon: 2.9 or newer; '
            'upgrade torch'
        )
    matrices, rest = _group_parameters(module, scales)
    return [
        torch.optim.Muon(
            matrices,
            lr=learning_rate,
            weight_decay=WEIGHT_DECAY,
            adjust_lr_fn='match_rms_adamw',
        ),
        torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY),
    ]


def _group_parameters(
    module: nn.Module, scales: Mapping[str, float]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the matrices of the transformers and the other parameters, each by scale."""
    matrices: dict[float, list[nn.Parameter]] = {}
    rest: dict[float, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        scale = next((value for start, value in scales.items() if name.startswith(start)), 1.0)
        if scale > 0.0:
            inner = parameter.dim() == 2 and '.layers.' in name
            (matrices if inner else rest).setdefault(scale, []).append(parameter)
    return _to_groups(matrices), _to_groups(rest)


def _to_groups(by_scale: Mapping[float, list[nn.Parameter]]) -> list[dict[str, Any]]:
    return [{'params': params, 'scale': scale} for scale, params in sorted(by_scale.items())]
