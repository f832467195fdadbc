"""Models of a given shape with random weights: what a prefill costs, in time and in operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from p2d_node.checkpoints.untrained import make_tokenizer
from p2d_node.errors import ConfigError
from p2d_node.language_model.families.llava_onevision import LlavaOnevision
from p2d_node.language_model.input_sequence import InputSequence
from p2d_node.language_model.prefix import Prefix
from p2d_node.language_model.prompt import Prompt
from p2d_node.records import NUSCENES_CAMERAS
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    LlamaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    SiglipVisionConfig,
)

TEXT_TOKENS = 115
"""Text of DriveMM's prompt in Llama-3 tokens, counted by hand, for that tokenizer is gated: system
text 35, numbered pictures 23, the sentence that names the views 32, a question 10, chat marks 15.
"""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of a LLaVA-OneVision model with a Llama text model.

    Attributes:
        name: What reports call it.
        text: Sizes of the text model, as `LlamaConfig` names them.
        vision: Sizes of the vision tower, as `SiglipVisionConfig` names them.
        num_text_tokens: Tokens of the prompt that are not visual ones; every view's newline token
            comes on top.
    """

    name: str
    text: dict[str, int] = field(default_factory=dict)
    vision: dict[str, int] = field(default_factory=dict)
    num_text_tokens: int = TEXT_TOKENS

    @property
    def num_tokens(self) -> int:
        """Visual tokens per view."""
        return int((self.vision['image_size'] // self.vision['patch_size']) ** 2)

    def with_layers(self, num_layers: int) -> ModelShape:
        """Return the shape with fewer decoder layers."""
        most = self.text['num_hidden_layers']
        if not 1 <= num_layers <= most:
            raise ConfigError(f'layers: got {num_layers}, allowed: 1 to {most}')
        name = f'{self.name}, {num_layers} of {most} layers'
        return replace(self, name=name, text={**self.text, 'num_hidden_layers': num_layers})


DRIVEMM = ModelShape(
    name='drivemm',
    text={
        'vocab_size': 128256,
        'hidden_size': 4096,
        'intermediate_size': 14336,
        'num_hidden_layers': 32,
        'num_attention_heads': 32,
        'num_key_value_heads': 8,
    },
    vision={
        'hidden_size': 1152,
        'intermediate_size': 4304,
        'num_hidden_layers': 26,
        'num_attention_heads': 16,
        'image_size': 384,
        'patch_size': 14,
    },
)
"""Llama-3.1-8B and SigLIP-so400m without its last layer; six views of 729 tokens."""

SCALED = ModelShape(
    name='scaled',
    text={
        'vocab_size': 32000,
        'hidden_size': 512,
        'intermediate_size': 1792,
        'num_hidden_layers': 16,
        'num_attention_heads': 8,
        'num_key_value_heads': 2,
    },
    vision={
        'hidden_size': 288,
        'intermediate_size': 1076,
        'num_hidden_layers': 4,
        'num_attention_heads': 4,
        'image_size': 384,
        'patch_size': 14,
    },
)
"""As many tokens as DriveMM and about its share of work in the encoder, small enough for a CPU.

Attention has a larger share here than in DriveMM, for it grows with the tokens and the rest with
the width: the share of operations that is left after pruning is given for both.
"""

SelectTokens = Callable[[Tensor], Sequence[Tensor]]
"""Maps hidden states [views, tokens, hidden] to the kept indices of each view, ascending."""

SHAPES = {shape.name: shape for shape in (DRIVEMM, SCALED)}


def build_model(
    shape: ModelShape, *, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> LlavaOnevision:
    """Make a model of `shape` with random weights."""
    tokenizer = make_tokenizer()
    config = LlavaOnevisionConfig(
        text_config=LlamaConfig(
            **shape.text, max_position_embeddings=32768, tie_word_embeddings=False
        ),
        vision_config=SiglipVisionConfig(**shape.vision, vision_use_head=False),
        image_token_id=tokenizer.convert_tokens_to_ids('<image>'),
        vision_feature_layer=-1,
        vision_feature_select_strategy='full',
        tie_word_embeddings=False,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(seed)
            model: Any = LlavaOnevisionForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    return LlavaOnevision(model.eval(), tokenizer)


def make_prompt(family: LlavaOnevision, num_text_tokens: int, question: str = '') -> Prompt:
    """Build the six-view prompt with as many words as it takes to have `num_text_tokens`.

    Raises:
        ConfigError: Fewer tokens than the prompt has without a question.
    """
    prompt = family.build_prompt(question, NUSCENES_CAMERAS)
    missing = num_text_tokens - sum(len(s) for s in (*prompt.segments, prompt.suffix))
    if missing < 0:
        raise ConfigError(
            f'text tokens: got {num_text_tokens}, allowed: {num_text_tokens - missing} or more'
        )
    return family.build_prompt('the ' * missing + question, NUSCENES_CAMERAS)


@torch.inference_mode()
def prefill(
    family: LlavaOnevision,
    prompt: Prompt,
    visual_tokens: Tensor,
    select: SelectTokens | None,
    prune_layer: int,
    *,
    max_new_tokens: int = 0,
) -> tuple[Prefix, Tensor]:
    """Run everything that comes before the first generated token; as the pipeline does it.

    Args:
        family: The model.
        prompt: What it is asked.
        visual_tokens: [views, tokens, hidden].
        select: Chooses the kept tokens of each view; None keeps all.
        prune_layer: The layer before which tokens are dropped.
        max_new_tokens: Number of tokens to reserve capacity for; 0: the cache grows with each.

    Returns:
        The prefilled prompt and the logits [1, vocabulary] after it.
    """
    inputs = family.embed_prefix(prompt, visual_tokens)
    prefix = prefill_views(family, inputs, select, prune_layer)
    question: InputSequence = family.embed_text(prompt.suffix, inputs.end_position)
    return family.decoder.extend(prefix, [question], max_new_tokens=max_new_tokens)


def prefill_views(
    family: LlavaOnevision,
    inputs: InputSequence,
    select: SelectTokens | None,
    prune_layer: int,
) -> Prefix:
    """Run both halves of the prefill, with token selection between them; None keeps all."""
    paused = family.decoder.begin_prefill(inputs, prune_layer)
    keep = None if select is None else select(paused.visual_states)
    return family.decoder.resume_prefill(paused, keep)


class FlopCount:
    """Counts the operations of prefills at a model's true shape, on the meta device.

    Attention counts in full, also where its causal half would do, as the papers count it. Token
    selection does not count: it is no part of the model.
    """

    def __init__(self, shape: ModelShape) -> None:
        """Build the model without weights."""
        self._shape = shape
        device = torch.device('meta')
        self._family = build_model(shape, device=device, dtype=torch.bfloat16)
        self._prompt = make_prompt(self._family, shape.num_text_tokens)

    def prefill(self, num_keep: int, prune_layer: int) -> int:
        """Return the floating-point operations of a prefill that keeps `num_keep` per view."""
        shape = (len(NUSCENES_CAMERAS), self._shape.num_tokens, self._shape.text['hidden_size'])
        tokens = torch.empty(shape, device='meta', dtype=torch.bfloat16)

        def keep_first(states: Tensor) -> Sequence[Tensor]:
            return [torch.arange(num_keep, device='meta')] * len(states)

        with FlopCounterMode(display=False) as counter:
            prefill(self._family, self._prompt, tokens, keep_first, prune_layer)
        return int(counter.get_total_flops())
