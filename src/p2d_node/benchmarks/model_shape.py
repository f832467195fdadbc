"""Shapes of language models that are measured with random weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from p2d_node.errors import ConfigError

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

SHAPES = {shape.name: shape for shape in (DRIVEMM, SCALED)}
