"""A model of a given shape with random weights, and the operations of its prefill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from p2d_node.benchmarks.model_shape import ModelShape
from p2d_node.checkpoints.untrained import make_tokenizer
from p2d_node.errors import ConfigError
from p2d_node.language_model.chat_template import ChatTemplate
from p2d_node.language_model.families.llava_onevision import LlavaOnevision
from p2d_node.language_model.fused_layers import fuse_decoder_layers
from p2d_node.language_model.input_sequence import InputSequence
from p2d_node.language_model.packed_linear import pack_linear_layers
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

DECISIVE_SCALE = 100.0
"""Of the embeddings, so that what the layers add does not change the most likely token."""

SelectTokens = Callable[[Tensor], Sequence[Tensor]]
"""Maps hidden states [views, tokens, hidden] to the kept indices of each view, ascending."""


def build_model(
    shape: ModelShape,
    *,
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
    packed: bool = True,
    decisive: bool = False,
) -> LlavaOnevision:
    """Build a model of `shape` with random weights.

    Args:
        shape: The sizes.
        device: Where it runs.
        dtype: Of its weights.
        seed: Of its weights.
        packed: Whether decoder layers are fused and linear layers packed on a CPU, as those of a
            checkpoint are.
        decisive: Whether one next token is far more likely than the others, as in a trained model.
            Without that, rounding decides.
    """
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
    if decisive:
        _make_decisive(model)
    if packed:
        fuse_decoder_layers(model.model.language_model.layers)
        pack_linear_layers(model)
    return LlavaOnevision(model.eval(), tokenizer, ChatTemplate(tokenizer))


@torch.no_grad()
def _make_decisive(model: Any) -> None:
    """Let every token be followed by the one before it in the vocabulary."""
    embeddings = model.get_input_embeddings().weight
    embeddings.mul_(DECISIVE_SCALE)
    model.lm_head.weight.copy_(embeddings.roll(-1, 0))


def make_prompt(family: LlavaOnevision, num_text_tokens: int, question: str = '') -> Prompt:
    """Build a six-view prompt, filled up with words to `num_text_tokens` text tokens.

    Raises:
        ConfigError: The prompt has more tokens even without a question.
    """
    prompt = family.build_prompt(question, NUSCENES_CAMERAS)
    missing = num_text_tokens - sum(len(s) for s in (*prompt.segments, prompt.suffix))
    if missing < 0:
        raise ConfigError(
            f'text_tokens: got {num_text_tokens}, allowed: {num_text_tokens - missing} or more'
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
    """Run the prefill as the pipeline does: all work before the first generated token.

    Args:
        family: The model.
        prompt: The prompt.
        visual_tokens: [views, tokens, hidden].
        select: Chooses the kept tokens of each view; None keeps all.
        prune_layer: The layer before which tokens are dropped.
        max_new_tokens: Number of tokens to reserve capacity for; 0: the cache grows with each.

    Returns:
        The prefilled prompt and the logits [1, 1, vocabulary] after it.
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

    Attention counts in full although the causal half would suffice, as the papers count it. Token
    selection is not counted, as it is not part of the model.
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
