"""The losses of training: answers, and auxiliary losses on the encoder and the language model.

Without the auxiliary losses a model this small learns late which view and object a question is
about. Their heads are not exported.
"""

from __future__ import annotations

import torch
from torch import nn, Tensor
from torch.nn import functional

from p2d_sim.questions import LETTERS
from p2d_sim.training.packed_forward import Hidden
from p2d_sim.training.plan import ModelSize
from p2d_sim.training.samples import IGNORED, SIGNAL_KIND
from p2d_sim.world import COLOURS, CONDITIONS, LIGHTS, STATUSES

ATTENTION_LAYERS = (1, 2)
"""In these layers the first half of the heads learns to attend to what the question is about."""

VIEW_LAYER = 1
CONTENT_LAYER = 3
"""Layers on whose output heads predict the view and the content of the answer."""

BACKGROUND_WEIGHT = 0.15
JOINT_WEIGHTS = {
    'attention': 0.25, 'option': 0.25, 'view': 0.15, 'place': 0.3, 'content': 0.4, 'seen_in': 0.2,
    'letter': 0.2, 'patches': 0.25,
}  # fmt: skip
Losses = dict[str, Tensor]


def later_layer(num_layers: int) -> int:
    """Return the layer whose output predicts the content, in a model of any depth."""
    return min(CONTENT_LAYER, num_layers - 2)


class PatchHeads(nn.Module):
    """Linear heads on the features of the encoder, with one prediction per patch."""

    def __init__(self, size: ModelSize) -> None:
        super().__init__()
        width = size.vision_hidden
        self.norm = nn.LayerNorm(width)
        self.kind = nn.Linear(width, SIGNAL_KIND + 1)
        self.colour = nn.Linear(width, len(COLOURS))
        self.status = nn.Linear(width, len(STATUSES))
        self.light = nn.Linear(width, len(LIGHTS))
        self.centre = nn.Linear(width, 2)
        self.log_distance = nn.Linear(width, 1)
        self.conditions = nn.Linear(width, len(CONDITIONS))
        self.row = nn.Linear(width, size.grid)
        self.column = nn.Linear(width, size.grid)

    def forward(self, features: Tensor, batch: dict[str, Tensor]) -> Losses:
        """Return the losses.

        Args:
            features: Float [views, patches, hidden].
            batch: Patch labels, each [sweeps, views, patches].
        """
        hidden = self.norm(features)
        weight = torch.ones(SIGNAL_KIND + 1, device=features.device)
        weight[0] = BACKGROUND_WEIGHT
        rare = torch.tensor([0.1, 1.0], device=features.device)
        places = torch.arange(features.shape[1], device=features.device)
        rows, columns = (
            part.expand(features.shape[0], -1)
            for part in (places // self.row.out_features, places % self.row.out_features)
        )
        return {
            'kind': _classify(self.kind(hidden), batch['kind'], weight),
            'colour': _classify(self.colour(hidden), batch['colour']),
            'status': _classify(self.status(hidden), batch['status']),
            'light': _classify(self.light(hidden), batch['light']),
            'centre': _classify(self.centre(hidden), batch['centre'], rare),
            'distance': _regress(self.log_distance(hidden)[..., 0], batch['log_distance']),
            'conditions': _classify(self.conditions(hidden.mean(dim=1)), batch['conditions']),
            # The language model needs the position of a patch in its features.
            'row': _classify(self.row(hidden), rows),
            'column': _classify(self.column(hidden), columns),
        }


class AnswerHeads(nn.Module):
    """Linear heads on hidden states of the language model, with one prediction per question."""

    def __init__(self, size: ModelSize, vocabulary: int, num_views: int = 6) -> None:
        super().__init__()
        width = size.text_hidden
        self.view = nn.Linear(width, num_views)
        self.place = nn.Linear(width, 2 * size.grid)
        self.content = nn.Linear(width, vocabulary)
        self.seen_in = nn.Linear(width, num_views)
        self.letter = nn.Linear(width, len(LETTERS))

    def forward(self, hidden: Hidden, batch: dict[str, Tensor]) -> Losses:
        """Return the losses; `batch` holds packed questions, see `packing.Packed`."""
        early = _at(hidden.between[VIEW_LAYER], batch['answer_at'])
        late = _at(hidden.between[max(hidden.between)], batch['answer_at'])
        rows, columns = self.place(late).chunk(2, dim=-1)
        place = _classify(rows, batch['place'][..., 0]) + _classify(
            columns, batch['place'][..., 1]
        )
        return {
            'view': _classify(self.view(early), batch['view']),
            'place': place,
            'content': _classify(self.content(late), batch['content']),
            # The answer copies the letter of an option from the tokens of its words.
            'letter': _classify(self.letter(hidden.between[VIEW_LAYER]), batch['letter']),
            'seen_in': _classify(self.seen_in(late), batch['seen_in']),
        }


def _at(hidden: Tensor, places: Tensor) -> Tensor:
    return hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))


def _classify(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy over the defined labels; 0 if there are none."""
    flat, wanted = logits.flatten(0, -2).float(), labels.flatten()
    total = functional.cross_entropy(flat, wanted, weight, ignore_index=IGNORED, reduction='sum')
    known = wanted != IGNORED
    if weight is None:
        return total / known.sum().clamp(min=1)
    return total / weight[wanted.clamp(min=0)][known].sum().clamp(min=1e-6)


def _regress(values: Tensor, wanted: Tensor) -> Tensor:
    known = ~wanted.isnan()
    error = (values.float().flatten() - torch.nan_to_num(wanted.flatten())).abs()
    return (error * known.flatten()).sum() / known.sum().clamp(min=1)


def answer_loss(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Return the cross-entropy of the answers; long and short answers have the same weight.

    Args:
        logits: Float [sweeps, tokens, vocabulary].
        batch: Packed questions.
    """
    labels, owner = batch['labels'], batch['owner']
    losses = functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction='none'
    ).view_as(labels)
    counted = (labels != IGNORED).float()
    sweeps, questions = owner.shape[0], int(owner.max()) + 1
    slot = owner.clamp(min=0)
    zeros = torch.zeros(sweeps, questions, device=logits.device)
    lengths = zeros.scatter_add(1, slot, counted)
    totals = zeros.scatter_add(1, slot, losses * counted)
    asked = lengths > 0
    return (totals / lengths.clamp(min=1.0))[asked].mean()


def attention_loss(
    attention: dict[int, Tensor], batch: dict[str, Tensor], places: Tensor
) -> Tensor:
    """Return the negative log of the attention on what the questions are about, in nats.

    Args:
        attention: Layer to attention logits [sweeps, heads, questions, prefix].
        batch: Packed questions.
        places: Places of the visual tokens in the prefix, int64 [views * patches].
    """
    target = batch['target']
    aimed = target.any(dim=-1)
    losses = []
    for logits in attention.values():
        heads = max(1, logits.shape[1] // 2)
        log_share = logits[:, :heads].log_softmax(dim=-1)[..., places]
        masked = log_share.masked_fill(~target[:, None], -torch.inf)
        share = masked.logsumexp(dim=-1).masked_fill(~aimed[:, None], 0.0)
        losses.append(-share.sum() / (aimed.sum() * heads).clamp(min=1))
    return torch.stack(losses).mean()


def option_loss(last_attention: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Return the negative log of the last layer's attention on the right option, in nats.

    Args:
        last_attention: Attention logits [sweeps, heads, questions, prefix + tokens].
        batch: Packed questions.
    """
    owner, option = batch['owner'], batch['option']
    heads = max(1, last_attention.shape[1] // 2)
    numbers = torch.arange(last_attention.shape[2], device=owner.device)
    wanted = option[:, None] & (owner[:, None] == numbers[:, None])
    offered = wanted.any(dim=-1)
    log_share = last_attention[:, :heads].log_softmax(dim=-1)[..., -owner.shape[1] :]
    share = log_share.masked_fill(~wanted[:, None], -torch.inf).logsumexp(dim=-1)
    return -share.masked_fill(~offered[:, None], 0.0).sum() / (offered.sum() * heads).clamp(min=1)
