"""Refuses models whose attention costs far more than their weights show.

Attention grows with the square of the tokens, and its keys and values with their number, whatever
the weights are: a model of megabytes can have so many narrow layers that a sweep takes hours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from p2d_node.errors import ConfigError

MAX_RATIO = 16
"""Of the operations of attention to those of the weights. Published models have one with 7,000
patches or 24,000 tokens, and small ones nine with the 74,000 tokens of the longest clips."""

FREE_OPERATIONS = 1 << 38
"""Attention that takes no more is not compared: a second of two processor cores."""

FREE_CACHE_BYTES, CACHE_RATIO = 1 << 30, 4
"""Keys and values take up to a gibibyte, and four times the memory of the weights; those of
published models of two billion weights take as much as they with 24,000 tokens."""

VALUE_BYTES = 4
"""Of keys, values and weights in float32."""


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers of a transformer.

    Attributes:
        number: How many.
        width: Features of a token.
        attended: Heads times head size, of queries.
        cached: The same, of keys, and of values.
        inner: Features between the two parts of the MLP, of the experts that a token uses.
    """

    number: int
    width: int
    attended: int
    cached: int
    inner: int

    @classmethod
    def of_text(cls, config: Any) -> Layers:
        """Read a transformers configuration of a language model."""
        heads = config.num_attention_heads
        head_size = getattr(config, 'head_dim', None) or config.hidden_size // heads
        experts = getattr(config, 'num_experts_per_tok', None)
        inner = experts * config.moe_intermediate_size if experts else config.intermediate_size
        return cls(
            config.num_hidden_layers,
            config.hidden_size,
            heads * head_size,
            config.num_key_value_heads * head_size,
            inner,
        )

    @classmethod
    def of_vision(cls, config: Any) -> Layers:
        """Read a transformers configuration of a vision tower."""
        width = getattr(config, 'embed_dim', None) or config.hidden_size
        inner = getattr(config, 'intermediate_size', None) or int(width * config.mlp_ratio)
        number = getattr(config, 'depth', None) or config.num_hidden_layers
        return cls(number, width, width, width, inner)

    @property
    def num_weights(self) -> int:
        """Weights of all layers, without a gate of the MLP."""
        attention = 2 * self.width * (self.attended + self.cached)
        return self.number * (attention + 2 * self.width * self.inner)

    def check(self, part: str, num_tokens: int) -> None:
        """Check what attention over `num_tokens` tokens costs.

        Raises:
            ConfigError: It takes more operations, or more memory, than models of such weights.
        """
        operations = 4 * num_tokens**2 * self.attended * self.number
        of_weights = 2 * num_tokens * self.num_weights
        cache_bytes = 2 * VALUE_BYTES * num_tokens * self.cached * self.number
        allowed_bytes = FREE_CACHE_BYTES + CACHE_RATIO * VALUE_BYTES * self.num_weights
        if operations > max(FREE_OPERATIONS, MAX_RATIO * of_weights):
            got = f'takes {operations:.1e} operations, allowed: {MAX_RATIO * of_weights:.1e}'
        elif cache_bytes > allowed_bytes:
            got = f'keeps {cache_bytes >> 20} MiB, allowed: {allowed_bytes >> 20}'
        else:
            return
        raise ConfigError(
            f'model: config.json: attention of its {part} over {num_tokens} tokens {got}; copy '
            'config.json and the weights from one checkpoint, or lower view_max_pixels or '
            'frames_per_camera'
        )
