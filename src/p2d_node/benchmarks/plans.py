"""What each benchmark measures: sizes, ratios, rounds.

The command line reads its options from these classes, so this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import itertools

from p2d_node.benchmarks.machines import BANDWIDTH_EFFICIENCY, COMPUTE_EFFICIENCY
from p2d_node.benchmarks.model_shape import ModelShape, SCALED, TEXT_TOKENS
from p2d_node.config_option import check_fields, option
from p2d_node.errors import ConfigError
from p2d_node.records import NUSCENES_CAMERAS

DTYPE_NAMES = ('float32', 'bfloat16', 'float16')

RATIOS_HELP = "Shares of each view's visual tokens that are kept: kept/total."
WARM_UP_HELP = 'Rounds that run before the measured ones.'
REPEATS_HELP = 'Measured rounds.'
MAX_ROUNDS = 10_000

QUESTION_TOKENS = 15
"""Of `TEXT_TOKENS`: a question of ten tokens and the chat marks after it."""

STORED_BITS = {32: 32.0, 16: 16.0, 8: 8.0, 4: 4.25}
"""Bits per weight to stored bits: with 4 bits, 128 weights share a scale and a zero of 16 bits."""


@dataclass(frozen=True, kw_only=True)
class SelectionBenchmark:
    """Token selection: every number of tokens with every width and every retention ratio.

    The defaults of `num_tokens` are the tokens per view of InternVL at 448 px, of SigLIP at
    384 px, and of a 32 x 32 grid; those of `hidden` the widths of InternViT-300M, of
    SigLIP-so400m and of an 8B language model.
    """

    num_views: int = option(6, 'Cameras.', minimum=1, maximum=64)
    num_tokens: Sequence[int] = option((256, 729, 1024), 'Visual tokens per view.', minimum=1)
    hidden: Sequence[int] = option((1024, 1152, 4096), 'Features per visual token.', minimum=1)
    retention_ratios: Sequence[float] = option(
        (0.05, 0.10, 0.25, 0.50), RATIOS_HELP, above=0.0, maximum=1.0
    )
    device: str = option('cpu', 'torch device.')
    dtype: str = option('float32', 'Number format of the visual tokens.', choices=DTYPE_NAMES)
    warm_up: int = option(2, WARM_UP_HELP, minimum=0, maximum=MAX_ROUNDS)
    repeats: int = option(10, REPEATS_HELP, minimum=1, maximum=MAX_ROUNDS)

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(self)

    @property
    def num_cases(self) -> int:
        """Number of rows in the report."""
        return len(self.num_tokens) * len(self.hidden) * len(self.retention_ratios)


@dataclass(frozen=True, kw_only=True)
class ModelBenchmark:
    """What the benchmarks of a language model with random weights share."""

    shape: ModelShape = SCALED
    answer_tokens: int = option(16, 'Tokens per answer.', minimum=2, maximum=4096)
    device: str = option('cpu', 'torch device.')
    dtype: str = option('float32', 'Number format of the weights.', choices=DTYPE_NAMES)
    warm_up: int = option(1, WARM_UP_HELP, minimum=0, maximum=MAX_ROUNDS)
    repeats: int = option(3, REPEATS_HELP, minimum=1, maximum=MAX_ROUNDS)

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(self)

    def check_prune_layers(self, name: str, layers: Sequence[int]) -> None:
        """Raise `ConfigError` where the shape has no decoder layer of that number."""
        num_layers = self.shape.text['num_hidden_layers']
        for layer in layers:
            if not 0 <= layer < num_layers:
                raise ConfigError(f'{name}: got {layer}, allowed: 0 to {num_layers - 1}')


@dataclass(frozen=True, kw_only=True)
class PrefillBenchmark(ModelBenchmark):
    """Prefill and decoding: every retention ratio with every pruning layer."""

    retention_ratios: Sequence[float] = option(
        (1.0, 0.5, 0.25, 0.1, 0.05), RATIOS_HELP, above=0.0, maximum=1.0
    )
    prune_layers: Sequence[int] = option(
        (0, 1), 'Decoder layers before which tokens are dropped.', minimum=0
    )

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        self.check_prune_layers('prune_layers', self.prune_layers)

    @property
    def num_steps(self) -> int:
        """How many times something is measured."""
        return len(self.cases) * (self.warm_up + self.repeats)

    @property
    def cases(self) -> list[tuple[float, int]]:
        """Retention ratio and pruning layer of each row; unpruned there is one layer only."""
        pairs = itertools.product(self.retention_ratios, self.prune_layers)
        return list(dict.fromkeys((ratio, layer if ratio < 1 else 0) for ratio, layer in pairs))


@dataclass(frozen=True, kw_only=True)
class QuestionBenchmark(ModelBenchmark):
    """Many questions about one sweep, answered in three ways."""

    num_questions: int = option(20, 'Questions about the sweep.', minimum=2, maximum=256)
    retention_ratio: float = option(
        0.1, "Share of each view's visual tokens that is kept: kept/total.", above=0.0, maximum=1.0
    )
    prune_layer: int = option(0, 'Decoder layer before which tokens are dropped.', minimum=0)

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        self.check_prune_layers('prune_layer', (self.prune_layer,))

    @property
    def num_steps(self) -> int:
        """How many times something is measured."""
        return 3 * (self.warm_up + self.repeats)

    def model_plan(self) -> PrefillBenchmark:
        """Return the model's part of the plan."""
        return PrefillBenchmark(
            shape=self.shape,
            retention_ratios=(self.retention_ratio,),
            prune_layers=(self.prune_layer,),
            answer_tokens=self.answer_tokens,
            device=self.device,
            dtype=self.dtype,
            warm_up=self.warm_up,
            repeats=self.repeats,
        )


@dataclass(frozen=True, kw_only=True)
class DraftBenchmark:
    """Decoding with drafts: a model with random weights, and drives that p2d_sim draws."""

    shape: ModelShape = SCALED
    answer_lengths: Sequence[int] = option(
        (16, 64, 256),
        'Tokens per answer of the model with random weights.',
        minimum=2,
        maximum=4096,
    )
    agreements: Sequence[float] = option(
        (0.0, 0.5, 0.9, 1.0),
        'Shares of equal tokens in an answer and the one before.',
        minimum=0.0,
        maximum=1.0,
    )
    rates_hz: Sequence[float] = option(
        (12.0, 3.0, 1.0), 'Sweeps per second of the drives.', above=0.0, maximum=100.0
    )
    num_sweeps: int = option(12, 'Sweeps of each drive.', minimum=2, maximum=1000)
    max_draft_tokens: int = option(
        8, 'Largest number of drafted tokens per pass.', minimum=1, maximum=64
    )
    device: str = option('cpu', 'torch device.')
    dtype: str = option('float32', 'Number format of the weights.', choices=DTYPE_NAMES)
    warm_up: int = option(2, WARM_UP_HELP, minimum=0, maximum=MAX_ROUNDS)
    repeats: int = option(5, REPEATS_HELP, minimum=1, maximum=MAX_ROUNDS)

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """One sweep: what is kept, asked and answered, and how."""

    retention_ratio: float = option(0.1, 'Kept/total.', above=0.0, maximum=1.0)
    prune_layer: int = option(0, 'Decoder layer before which tokens are dropped.', minimum=0)
    num_views: int = option(len(NUSCENES_CAMERAS), 'Cameras.', minimum=1, maximum=64)
    num_questions: int = option(1, 'Questions per sweep.', minimum=1, maximum=1024)
    answer_tokens: int = option(60, 'Tokens per answer.', minimum=1, maximum=16384)
    text_tokens: int = option(
        TEXT_TOKENS - QUESTION_TOKENS,
        'Text tokens that all questions share.',
        minimum=1,
        maximum=16384,
    )
    question_tokens: int = option(
        QUESTION_TOKENS, 'Text tokens of each question.', minimum=1, maximum=16384
    )
    tokens_per_pass: float = option(
        1.0,
        'Tokens of an answer that each decoder pass accepts, on average; 1: no drafts.',
        minimum=1.0,
        maximum=64.0,
    )
    draft_tokens: int = option(7, 'Tokens of a draft, which a pass checks.', minimum=1, maximum=64)
    weights_bits: int = option(16, 'Bits per weight of the decoder layers.')
    value_bytes: int = option(
        2, 'Bytes of all other values: activations, cache, output layer, encoder.', minimum=1
    )
    compute_efficiency: float = option(
        COMPUTE_EFFICIENCY,
        "Assumed share of the machine's throughput that is reached.",
        above=0.0,
        maximum=1.0,
    )
    bandwidth_efficiency: float = option(
        BANDWIDTH_EFFICIENCY,
        "Assumed share of the machine's bandwidth that is reached.",
        above=0.0,
        maximum=1.0,
    )

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(self)
        if self.weights_bits not in STORED_BITS:
            allowed = ', '.join(map(str, STORED_BITS))
            raise ConfigError(f'weights_bits: got {self.weights_bits}, allowed: {allowed}')
        if self.tokens_per_pass > self.draft_tokens + 1:
            raise ConfigError(
                f'tokens_per_pass: got {self.tokens_per_pass:g}, allowed: up to '
                f'{self.draft_tokens + 1}, the tokens of a draft and the one after it'
            )

    @property
    def pass_width(self) -> int:
        """Tokens of each answer in a decoder pass."""
        return 1 if self.tokens_per_pass == 1.0 else self.draft_tokens + 1
