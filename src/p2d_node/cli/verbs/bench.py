"""`p2d bench`: times of single stages and of the whole node, each beside a named baseline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from p2d_node.benchmarks.plans import (
    DraftBenchmark,
    ModelBenchmark,
    PrefillBenchmark,
    QuestionBenchmark,
    SelectionBenchmark,
)
from p2d_node.cli.options import argument, Options, same_as
from p2d_node.cli.verb import Verb, VerbGroup
from p2d_node.cli.verbs.shared import device, json_output, retention_ratio, threads
from p2d_node.config import DriveConfig, EncoderConfig
from p2d_node.errors import ConfigError

SELECT_EXAMPLES = """example:
  p2d bench select --tokens 729 --hidden 1152 --retention-ratio 0.1 0.25
  p2d bench select --json > selection.json
"""
PREFILL_EXAMPLES = """example:
  p2d bench prefill --threads 1
  p2d bench prefill --shape drivemm --device cuda --dtype bfloat16 --json > prefill.json
"""
QUESTIONS_EXAMPLES = """example:
  p2d bench questions --questions 20 --threads 1 --json
"""
DRAFTS_EXAMPLES = """example:
  p2d bench drafts --threads 1
  p2d bench drafts --answer-tokens 64 --agreement 0 0.9 --json > drafts.json
"""
NODE_EXAMPLES = """example:
  p2d bench node --model models/drivemm --hz 2 --sweeps 40 --retention-ratio 0.1
"""


@dataclass(frozen=True, kw_only=True)
class SelectOptions(Options):
    """Measure the time of token selection per sweep, beside the published per-token loop."""

    num_views: int = same_as(SelectionBenchmark, 'num_views', flag='--views')
    num_tokens: tuple[int, ...] = same_as(SelectionBenchmark, 'num_tokens', flag='--tokens')
    hidden: tuple[int, ...] = same_as(SelectionBenchmark, 'hidden')
    retention_ratios: tuple[float, ...] = same_as(
        SelectionBenchmark, 'retention_ratios', flag='--retention-ratio'
    )
    device: str = device()
    dtype: str = same_as(SelectionBenchmark, 'dtype')
    warm_up: int = same_as(SelectionBenchmark, 'warm_up')
    repeats: int = same_as(SelectionBenchmark, 'repeats')
    num_threads: int | None = threads()
    json: bool = json_output()


SELECT = Verb(
    name='select',
    help='time of token selection per sweep, beside the published per-token loop',
    examples=SELECT_EXAMPLES,
    options=SelectOptions,
    run='p2d_node.cli.bench_select:run',
)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """What `bench prefill` and `bench questions` need to know about the model."""

    shape: str = argument('scaled', 'Sizes of the model: scaled, or drivemm, an 8B model.')
    layers: int | None = argument(
        None, 'Number of decoder layers.', default_text='all layers of the shape'
    )
    answer_tokens: int = same_as(ModelBenchmark, 'answer_tokens')
    device: str = device()
    dtype: str = same_as(ModelBenchmark, 'dtype')
    warm_up: int = same_as(ModelBenchmark, 'warm_up')
    repeats: int = same_as(ModelBenchmark, 'repeats')
    num_threads: int | None = threads()
    json: bool = json_output()


@dataclass(frozen=True, kw_only=True)
class PrefillOptions(ModelOptions):
    """Measure prefill and decoding of a model with random weights.

    Per retention ratio and pruning layer. Operations are also counted at the true shape of
    DriveMM.
    """

    retention_ratios: tuple[float, ...] = same_as(
        PrefillBenchmark, 'retention_ratios', flag='--retention-ratio'
    )
    prune_layers: tuple[int, ...] | None = same_as(
        PrefillBenchmark,
        'prune_layers',
        flag='--prune-layer',
        default=None,
        default_text='0 1',
    )
    text_tokens: int | None = argument(
        None,
        'Text tokens of the prompt.',
        default_text='as in the shape',
        minimum=1,
        maximum=16384,
    )


PREFILL = Verb(
    name='prefill',
    help='prefill, decoding and whole sweeps at several retention ratios, beside unpruned',
    examples=PREFILL_EXAMPLES,
    options=PrefillOptions,
    run='p2d_node.cli.bench_language_model:run_prefill',
)


@dataclass(frozen=True, kw_only=True)
class QuestionsOptions(ModelOptions):
    """Measure the time of answering many questions about one sweep, as a batch and otherwise."""

    num_questions: int = same_as(QuestionBenchmark, 'num_questions', flag='--questions')
    retention_ratio: float = same_as(QuestionBenchmark, 'retention_ratio')
    prune_layer: int = same_as(QuestionBenchmark, 'prune_layer')


QUESTIONS = Verb(
    name='questions',
    help='many questions about one sweep: together, one by one, and separately',
    examples=QUESTIONS_EXAMPLES,
    options=QuestionsOptions,
    run='p2d_node.cli.bench_language_model:run_questions',
)


@dataclass(frozen=True, kw_only=True)
class DraftsOptions(Options):
    """Measure decoder passes and time per answer, with each source of drafts and without.

    A model with random weights shows them by length and agreement of the answers; drawn drives
    show them for a real model.
    """

    model: str = same_as(DriveConfig, 'model')
    answer_lengths: tuple[int, ...] = same_as(
        DraftBenchmark, 'answer_lengths', flag='--answer-tokens'
    )
    agreements: tuple[float, ...] = same_as(DraftBenchmark, 'agreements', flag='--agreement')
    rates_hz: tuple[float, ...] = same_as(DraftBenchmark, 'rates_hz', flag='--hz')
    num_sweeps: int = same_as(DraftBenchmark, 'num_sweeps', flag='--sweeps')
    max_draft_tokens: int = same_as(DraftBenchmark, 'max_draft_tokens')
    device: str = device()
    dtype: str = same_as(DraftBenchmark, 'dtype')
    warm_up: int = same_as(DraftBenchmark, 'warm_up')
    repeats: int = same_as(DraftBenchmark, 'repeats')
    num_threads: int | None = threads()
    json: bool = json_output()


DRAFTS = Verb(
    name='drafts',
    help='decoder passes and time per answer, with drafts and without',
    examples=DRAFTS_EXAMPLES,
    options=DraftsOptions,
    run='p2d_node.cli.bench_drafts:run',
)


@dataclass(frozen=True, kw_only=True)
class NodeOptions(Options):
    """Play sweeps to a drive node over DDS; report latency per stage, and answers per second."""

    model: str = same_as(DriveConfig, 'model')
    bag: Path | None = argument(
        None,
        'Bag of six cameras to play, raw or compressed; the node subscribes to its topics.',
        default_text='a drive that p2d_sim draws',
    )
    sweeps: int = argument(
        30, 'Without --bag: number of sweeps of the drawn drive.', minimum=1, unless='bag'
    )
    hz: float = argument(
        1.0,
        'Without --bag: sweeps per second of the drawn drive.',
        above=0.0,
        maximum=100.0,
        unless='bag',
    )
    warm_up: int = argument(3, 'Sweeps at the start that the figures leave out.', minimum=0)
    retention_ratio: float = retention_ratio(0.1)
    questions: int = argument(1, 'Questions per sweep.', minimum=1)
    max_new_tokens: int = same_as(DriveConfig, 'max_new_tokens', default=16)
    encoder_backend: str = same_as(EncoderConfig, 'backend')
    device: str = device()
    num_threads: int | None = threads("torch's own choice, less one")
    json: bool = json_output()

    def __post_init__(self) -> None:
        """Check the values and how they fit together."""
        super().__post_init__()
        if self.sweeps <= self.warm_up:
            raise ConfigError(
                f'sweeps: got {self.sweeps} with --warm-up {self.warm_up}, allowed: more sweeps '
                'than those'
            )


NODE = Verb(
    name='node',
    help='latency and answers per second of the whole node',
    examples=NODE_EXAMPLES,
    options=NodeOptions,
    run='p2d_node.cli.bench_node:run',
)

BENCH = VerbGroup(
    name='bench',
    help='measure single stages, or the whole node',
    description='Measure single stages, or the whole node, each beside a named baseline.',
    examples=SELECT_EXAMPLES,
    verbs=(SELECT, PREFILL, QUESTIONS, DRAFTS, NODE),
)
