"""Shapes of language models that are measured with random weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from p2d_node.errors import ConfigError

TEXT_TOKENS = 115
"""Text tokens of DriveMM's prompt, counted by hand as the Llama-3 tokenizer is gated: system
text 35, numbered pictures 23, the sentence that names the views 32, a question 10, chat marks 15.
"""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of a LLaVA-OneVision model with a Llama text model.

    Attributes:
        name: Name in reports.
        text: Sizes of the text model, as `LlamaConfig` names them.
        vision: Sizes of the vision tower, as `SiglipVisionConfig` names them.
        num_text_tokens: Text tokens of the prompt; the newline token of each view is not
            included.
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

Attention has a larger share of the operations than in DriveMM, because attention grows with the
number of tokens and the rest with the width. Reports therefore give the share of operations after
pruning for both shapes.
"""

SHAPES = {shape.name: shape for shape in (DRIVEMM, SCALED)}
