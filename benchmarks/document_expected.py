"""Writes the table of docs/install.md: least memory and times of DriveMM, from its shapes.

Nothing here is measured. A time is a lower bound: the arithmetic over the peak rate of the
data sheet, or the bytes over its bandwidth. `--check` only compares.
"""

from __future__ import annotations

from dataclasses import dataclass
import sys

from measured_tables import markdown_table, write_tables

DOCUMENT = 'docs/install.md'

BYTES = 2
"""Of a weight in bfloat16."""

VIEWS, TOKENS_PER_VIEW, TEXT_TOKENS, ANSWER_TOKENS = 6, 729, 110, 60
"""SigLIP at 384 px; preamble, question and template; an answer of a few sentences."""


@dataclass(frozen=True)
class Layers:
    """The linear weights of a stack of transformer layers.

    Attributes:
        num: Layers.
        hidden: Width.
        kv: Width of keys and of values.
        inner: Width of the feed-forward part.
        num_matrices: Matrices of the feed-forward part: 3 with a gate, else 2.
    """

    num: int
    hidden: int
    kv: int
    inner: int
    num_matrices: int

    @property
    def weights(self) -> float:
        """Number of weights."""
        attention = 2 * self.hidden * (self.hidden + self.kv)
        return self.num * (attention + self.num_matrices * self.hidden * self.inner)

    def flop(self, tokens: int, *, causal: bool) -> float:
        """Operations of one pass over a sequence: two per weight and token, and attention."""
        attention = self.num * 4 * tokens**2 * self.hidden / (2 if causal else 1)
        return 2 * self.weights * tokens + attention


# DriveMM: Llama-3.1-8B, and SigLIP-so400m without its last layer (their config.json).
LANGUAGE = Layers(num=32, hidden=4096, kv=1024, inner=14336, num_matrices=3)
VISION = Layers(num=26, hidden=1152, kv=1152, inner=4304, num_matrices=2)
VOCABULARY_WEIGHTS = 128_256 * 4096

# Name, memory in GB, bandwidth in GB/s, dense TFLOP/s in 16 bits. Data sheets give the sparse peak
# of the smallest number format; half of it is dense, and each doubling of the bits halves it.
MACHINES = (
    ('Jetson AGX Orin 64 GB', 64, 204.8, 170 / 4),
    ('Jetson AGX Thor', 128, 273, 2070 / 8),
    ('GeForce RTX 4090', 24, 1008, 165.2),
    ('GeForce RTX 5090', 32, 1792, 209.5),
)


def make_table(_name: str) -> str:
    """Return the computed bounds as Markdown."""
    total = LANGUAGE.weights + VISION.weights + 2 * VOCABULARY_WEIGHTS
    read = LANGUAGE.weights + VOCABULARY_WEIGHTS  # the embedding reads one row per token
    kept = VIEWS * (int(0.1 * TOKENS_PER_VIEW) + 1) + TEXT_TOKENS
    unpruned = VIEWS * (TOKENS_PER_VIEW + 1) + TEXT_TOKENS
    encoder_flop = VIEWS * VISION.flop(TOKENS_PER_VIEW, causal=False)
    rows = []
    for name, memory_gb, gb_per_s, tflops in MACHINES:
        seconds = [
            encoder_flop / (tflops * 1e12),
            LANGUAGE.flop(unpruned, causal=True) / (tflops * 1e12),
            max(LANGUAGE.flop(kept, causal=True) / (tflops * 1e12), BYTES * read / gb_per_s / 1e9),
            ANSWER_TOKENS * BYTES * read / (gb_per_s * 1e9),
        ]
        rows.append([name, f'{memory_gb} GB', *(_at_least(value) for value in seconds)])
    header = [
        'computed, not measured',
        'memory',
        'encoder',
        f'prefill, unpruned ({unpruned} tokens)',
        f'prefill, 10 % kept ({kept} tokens)',
        f'answer of {ANSWER_TOKENS} tokens',
    ]
    weights = f'DriveMM in bfloat16 has {BYTES * total / 1e9:.1f} GB of weights.'
    return f'{weights}\n\n{markdown_table(header, "lrrrrr", rows)}'


def _at_least(seconds: float) -> str:
    return f'≥ {seconds:.2f} s'


if __name__ == '__main__':
    sys.exit(write_tables(DOCUMENT, make_table))
