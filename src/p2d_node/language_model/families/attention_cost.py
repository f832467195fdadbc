"""Refuses models whose attention costs far more than their weights show.

The cost of attention grows with the square of the tokens, and the memory of its keys and values
with their number. Neither depends on the weights: a model of megabytes can have so many narrow
layers that a sweep takes hours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from p2d_node.errors import ConfigError

MAX_RATIO = 16
"""Of the operations of attention to those of the weights. Published models have one or two with
7,000 patches or 24,000 tokens, and small ones ten with the 74,000 tokens of the longest clips."""

FREE_OPERATIONS = 1 << 38
"""Attention that takes no more per sweep is not compared: some seconds of two processor cores."""

SOFTMAX_OPERATIONS = 40
"""For each pair of tokens and each head; small heads cost more by them than by their features."""

FREE_CACHE_BYTES, CACHE_RATIO = 1 << 30, 4
"""Keys and values take up to a gibibyte, and four times the memory of the weights; those of
published models of two billion weights take as much as the weights at 24,000 tokens."""

VALUE_BYTES = 4
"""Of keys, values and weights in float32."""

NUM_PICTURES = 6
"""Of a sweep, each of which the vision tower attends to alone."""


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers of a transformer.

    Attributes:
        number: How many.
        width: Features of a token.
        heads: Of queries.
        head_size: Features of a head.
        cached_heads: Of keys, and of values.
        inner: Features between the two parts of the MLP, of the experts that a token uses.
    """

    number: int
    width: int
    heads: int
    head_size: int
    cached_heads: int
    inner: int

    @property
    def num_weights(self) -> int:
        """Weights of all layers, without a gate of the MLP."""
        attended = self.head_size * (self.heads + self.cached_heads)
        return self.number * 2 * self.width * (attended + self.inner)

    def check(self, part: str, num_tokens: int, num_sequences: int = 1) -> None:
        """Check what attention costs.

        Args:
            part: What the layers are, for messages.
            num_tokens: The tokens that attend to each other.
            num_sequences: How many times so many.

        Raises:
            ConfigError: It takes more operations, or more memory, than models of such weights.
        """
        of_pair = 4 * self.head_size + SOFTMAX_OPERATIONS
        operations = num_sequences * num_tokens**2 * self.number * self.heads * of_pair
        of_weights = num_sequences * 2 * num_tokens * self.num_weights
        features = 2 * self.number * self.cached_heads * self.head_size
        cache_bytes = VALUE_BYTES * num_tokens * features
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


def check_text(config: Any, num_tokens: int) -> None:
    """Check a language model, by its transformers configuration.

    Raises:
        ConfigError: See `Layers.check`.
    """
    heads = config.num_attention_heads
    experts = _setting(config, 'num_experts_per_tok')
    layers = Layers(
        number=config.num_hidden_layers,
        width=config.hidden_size,
        heads=heads,
        # Some classes read it though they do not declare it, others ignore it.
        head_size=max(getattr(config, 'head_dim', None) or 0, config.hidden_size // heads),
        cached_heads=config.num_key_value_heads,
        inner=experts * config.moe_intermediate_size if experts else config.intermediate_size,
    )
    layers.check('language model', num_tokens)


def check_vision(config: Any, num_patches: int) -> None:
    """Check a vision tower, by its transformers configuration.

    Raises:
        ConfigError: See `Layers.check`.
    """
    width = _setting(config, 'embed_dim') or config.hidden_size
    heads = _setting(config, 'num_heads') or config.num_attention_heads
    layers = Layers(
        number=_setting(config, 'depth') or config.num_hidden_layers,
        width=width,
        heads=heads,
        head_size=width // heads,
        cached_heads=heads,
        inner=_setting(config, 'intermediate_size') or int(width * config.mlp_ratio),
    )
    layers.check('vision tower', num_patches, NUM_PICTURES)


def _setting(config: Any, name: str) -> Any:
    """Return a setting that models of this type have; None for one that only the file has."""
    return getattr(config, name) if hasattr(type(config)(), name) else None
